"""Bugs of the commands `check`, `compile`, `demo`, `explain`, `info` and `tune`."""

from bugs import Bug

FOLDER = "cupy_flash/_src/cli"
CHECK, CLI, EXPLAIN, TUNE = (f"tests/test_{name}.py::" for name in ("check", "cli", "explain", "tune"))
SEARCH = "tests/test_tuning.py::"


def bug(file: str, what: str, old: str, new: str, *tests: str) -> Bug:
    return Bug(f"{FOLDER}/{file}", what, old, new, tests)


BUGS = [
    bug(
        "check/__init__.py",
        "a check that failed is counted and not named",
        "self.failed.append(name)",
        "self.failed.append(failure)",
        CHECK + "test_wrong_numbers_are_named",
    ),
    bug(
        "check/__init__.py",
        "failures do not fail the command",
        "    if report.failed:\n",
        "    if len(report.failed) > 1:\n",
        CHECK + "test_wrong_numbers_are_named",
        CHECK + "test_a_primitive_that_answers_wrongly_fails_the_command",
    ),
    bug(
        "check/__init__.py",
        "answers that differ are right",
        '"" if outcome.status == "passed" else outcome.message',
        '"" if outcome.status != "failed" else outcome.message',
        CHECK + "test_a_primitive_that_answers_wrongly_fails_the_command",
    ),
    bug(
        "check/__init__.py",
        "a check that one --skip names is left out only if all do",
        "not any(text in name for text in args.skip)",
        "not (args.skip and all(text in name for text in args.skip))",
        CHECK + "test_only_and_skip_choose",
    ),
    bug(
        "check/staged.py",
        "a launch is not waited for",
        '        stage("fault", _named(step.kernel))\n        synchronize(backend)\n',
        "",
        CHECK + "test_a_gpus_failures_name_stage_and_kernel",
    ),
    bug(
        "check/staged.py",
        "what the emulator finds has the stage of its launch",
        'if error.kind != "launch":',
        'if error.kind == "launch":',
        CHECK + "test_the_emulators_failures_name_stage_and_kernel",
        CHECK + "test_a_launch_that_the_emulator_refuses",
    ),
    bug(
        "check/staged.py",
        "later checks launch one by one too",
        "    finally:\n        del runtime.run",
        "    finally:\n        runtime.run = launch",
        CHECK + "test_the_emulators_failures_name_stage_and_kernel",
    ),
    bug(
        "check/suite.py",
        "what is no number is within the budget",
        "if not error <= budget:",
        "if error > budget:",
        CHECK + "test_a_wrong_number_in_any_result_fails_and_is_named",
    ),
    bug(
        "check/suite.py",
        "dv is not held to its budget",
        "zip(NAMES, results, *references, strict=True)",
        "zip(NAMES[:4], results, *references, strict=False)",
        CHECK + "test_a_wrong_number_in_any_result_fails_and_is_named",
    ),
    bug(
        "check/suite.py",
        "the budget is spent twice",
        "if not error <= budget:",
        "if not error <= 2 * budget:",
        CHECK + "test_a_result_may_spend_its_budget_and_no_more",
    ),
    bug(
        "check/suite.py",
        "one result that repeats is enough",
        "        if not all(same):",
        "        if not any(same):",
        CHECK + "test_bits_that_do_not_repeat_fail",
    ),
    bug(
        "check/suite.py",
        "a replay that is no number is right",
        "np.max([np.abs(x - y).max() for x, y in zip(replayed, direct, strict=True)])",
        "max([np.abs(x - y).max() for x, y in zip(replayed, direct, strict=True)])",
        CHECK + "test_a_replay_is_held_to_a_direct_call",
    ),
    bug(
        "check/suite.py",
        "repeats are of the schedule that need not repeat",
        '"deterministic": p.deterministic, "return_lse": True}',
        '"deterministic": False, "return_lse": True}',
        CHECK + "test_bits_that_do_not_repeat_fail",
    ),
    bug(
        "check/suite.py",
        "a process whose device is lost goes on",
        "    except RuntimeError:\n        return False",
        "    except RuntimeError:\n        return True",
        CHECK + "test_a_process_goes_on_while_its_device_answers",
    ),
]
