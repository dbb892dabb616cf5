"""Bugs of the soft cap in its three languages."""

from bugs import Bug

VALUES = "tests/test_softcap.py::test_every_backend_keeps_the_budget"

BUGS = [
    Bug(
        "cupy_flash/_src/components/softcap.py",
        "a cap of 0 passes",
        "if cap <= 0:",
        "if cap < 0:",
        ("tests/test_softcap.py::test_a_softcap_is_above_0",),
    ),
    Bug(
        "cupy_flash/_src/components/softcap.py",
        "no number is too small to divide by",
        "min(max(value, 1 / largest), largest)",
        "min(value, largest)",
        ("tests/test_softcap.py::test_a_cap_beyond_all_numbers_makes_scores_equal_or_changes_nothing",),
    ),
    Bug(
        "cupy_flash/_src/components/softcap.py",
        "gradients pass as if nothing were capped",
        "return ds * (1 - xp.tanh(s / self.cap) ** 2)",
        "return ds",
        ("tests/test_softcap.py::test_gradients_are_those_of_differences[numpy]",),
    ),
    Bug(
        "cuda_src/attention/score/softcap.cuh",
        "scores come in as if they were scaled",
        "min(unit / cap_log2, kLargest)",
        "min(1 / cap_log2, kLargest)",
        (f"{VALUES}[emulator-about the cap-float32]",),
    ),
    Bug(
        "cuda_src/attention/score/softcap.cuh",
        "a large cap divides scores to 0",
        "static_cast<Accumulator>(kLog2E), unit * kLargest)",
        "static_cast<Accumulator>(kLog2E), kLargest)",
        ("tests/test_softcap.py::test_scores_of_any_size_meet_any_cap",),
    ),
    Bug(
        "cuda_src/attention/score/softcap.cuh",
        "gradients grow with the cap",
        "fma(-y, y, Accumulator(1))",
        "fma(y, y, Accumulator(1))",
        (f"{VALUES}[emulator-about the cap-float32]",),
    ),
    Bug(
        "cuda_src/cpu/score/softcap.h",
        "small scores are differences of larger numbers",
        "part[0] * power[0] + (power[0] - T(1));",
        "(part[0] + T(1)) * power[0] - T(1);",
        ("tests/test_softcap.py::test_small_scores_keep_their_last_digits[cpu-float32]",),
    ),
    Bug(
        "cuda_src/cpu/score/softcap.h",
        "gradients pass as if nothing were capped",
        "return g * kept;",
        "return g;",
        (f"{VALUES}[cpu-about the cap-float32]",),
    ),
]
