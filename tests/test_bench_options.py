"""The options that `bench` compares: their definition for each library against ours, their work, and old files."""

import contextlib
import csv
import functools
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cpu import measure as cpu_measure
from cpu import table as cpu_table
from cpu.cases import Case as CpuCase
from cpu.cases import cases as cpu_cases
from cpu.libraries import LIBRARIES
from cpu.results import Row, growth
from stand_ins import Tensor

from cupy_flash import attention_reference, attention_reference_backward, flash_attention, flash_attention_backward
from cupy_flash._src.cli import UserError, bench
from cupy_flash._src.cli.bench import book as books
from cupy_flash._src.cli.bench import methods, options, runner, table, verify
from cupy_flash._src.cli.bench.cases import Case, Numbers, cases
from cupy_flash._src.cli.bench.plot import plot
from cupy_flash._src.components import ARRAYS
from cupy_flash._src.device import named
from cupy_flash._src.problem import DTYPES, AttentionProblem

NAMES = (
    "window9", "softcap3", "alibi", "documents2", "lengths", "bias", "sinks", "softcapmod3", "documentsmod2",
)  # fmt: skip
PLACE = dict.fromkeys(books.PLACE_FIELDS, "x")


def small(option, direction="forward", causal=None, **fields):
    decode = direction == "decode"
    sizes = {"batch": 3, "heads_q": 4, "heads_k": 2, "seqlen_q": 1 if decode else 80, "seqlen_k": 80, "head_dim": 32}
    causal = option[:3] in ("win", "ali", "sof", "sin") if causal is None else causal
    return Case(direction, "float16", **sizes | fields, causal=causal, option=option)


SMALL = [small(name, direction) for name in NAMES for direction in ("forward", "backward")]
SMALL += [
    small("lengths", "decode"),
    small("documents2", causal=True),
    small("alibi", causal=False),
    small("window9", causal=False),
]


@pytest.fixture(autouse=True)
def few_numbers(monkeypatch):
    monkeypatch.setattr(sys.modules[Numbers.__module__], "POOL", 65537)


# What an option is.


def test_names_say_what_and_how_large():
    for name in ("", *NAMES, "window1024"):
        assert str(options.named(name)) == name
    assert (options.named("window1024").kind, options.named("window1024").size) == ("window", 1024)
    assert {options.named(name).kind for name in ("", *NAMES)} == set(options.KINDS)
    assert {kind: option().kind for kind, option in options.KINDS.items()} == {kind: kind for kind in options.KINDS}


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_the_definition_is_that_of_our_calls(case):
    """Scores of N(0, 1) through the definition give what the reference gives for the same keywords."""
    x, option = Numbers(np).inputs(case), options.named(case.option)
    q, k, v = (a.astype(np.float64) for a in x[:3])
    k, v = (a.repeat(case.group, axis=1) for a in (k, v))
    s = option.score(q @ k.swapaxes(-1, -2) * case.head_dim**-0.5)
    if (bias := options.added(np, case)) is not None:
        s = s + bias
    shown = options.seen(np, case)
    s = s if shown is None else np.where(shown, s, -np.inf)
    p, given = np.exp(s), options.given(case, np)
    sink = np.exp(given["sinks"].astype(np.float64)[:, None, None]) if "sinks" in given else 0
    assert set(option.takes) == set(given) & set(ARRAYS)
    exact = attention_reference(*x[:3], compute_dtype=np.float64, **given)
    # The bias has the type of the inputs, as those have it that take one.
    atol = 2e-2 if case.option == "alibi" else 1e-12
    np.testing.assert_allclose(p / (p.sum(-1, keepdims=True) + sink) @ v, exact, atol=atol)


def test_the_slope_is_the_derivative():
    option, s = options.named("softcap3"), np.linspace(-9, 9, 50)
    difference = (option.score(s + 1e-6) - option.score(s - 1e-6)) / 2e-6
    np.testing.assert_allclose(option.slope(option.score(s)), difference, atol=1e-8)
    assert all(options.named(name).slope(s) is None for name in ("", *NAMES) if not name.startswith("softcap"))


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_work_is_that_of_the_pairs_that_are_seen(case):
    """But of causal, without more, half of all; keys that do not exist are not read."""
    full = case.batch, 1, case.seqlen_q, case.seqlen_k
    shown = options.seen(np, case)
    pairs = np.broadcast_to(True if shown is None else shown, full).sum()
    if case.causal and not case.option.startswith("window"):
        everything = options.seen(np, replace(case, causal=False))
        pairs = np.broadcast_to(True if everything is None else everything, full).sum() / 2
    products = 5 if case.direction == "backward" else 2
    assert case.flops == 2 * products * case.heads_q * case.head_dim * pairs
    lengths = options.given(case, np).get("k_lengths", np.full(case.batch, case.seqlen_k))
    rows = case.batch * case.heads_q * case.seqlen_q + case.heads_k * lengths.sum()
    backward = case.direction == "backward"
    learned = {"bias": 4 * 80 * 80, "sinks": 4}.get(case.option, 0)
    assert case.bytes_moved == 2 * (case.head_dim * rows * (4 if backward else 2) + learned * (2 if backward else 1))


def test_lengths_differ_and_are_half_on_average():
    for batch, seqlen in ((8, 16384), (8, 2048), (1, 128)):
        lengths = options.given(small("lengths", batch=batch, seqlen_k=seqlen), np)["k_lengths"]
        assert len(set(lengths)) == batch and lengths.min() > 0 and lengths.max() < seqlen
        assert abs(lengths.mean() / seqlen - 0.5) < 0.001


def test_documents_see_themselves():
    mask = options.given(small("documents2", seqlen_q=6, seqlen_k=6), np)["mask"]
    np.testing.assert_array_equal(mask, np.kron(np.eye(2), np.ones((3, 3))))


def test_functions_take_the_place_of_options():
    softcap, documents = {"score_mod", "score_args", "mask_mod"}, {"mask_mod", "mask_args"}
    for name, taken in (("softcapmod3", softcap), ("documentsmod2", documents)):
        found = options.given(small(name), np)
        assert found.keys() == {"causal", *taken} and found["causal"] is False


def test_every_kind_is_measured_and_a_few_are_quick():
    full, quick = ([c for c in cases("float16", q) if c.option] for q in (False, True))
    kinds = {options.named(c.option).kind for c in full}
    assert kinds == set(options.KINDS) - {""} and set(quick) < set(full) and 2 <= len(quick) <= 5
    assert {(c.direction, c.option) for c in full} >= {("decode", "lengths"), ("backward", "lengths")}
    (window,) = (c for c in full if c.option.startswith("window") and c.direction == "forward")
    assert window.causal and window.seqlen_k == 16384 and options.named(window.option).size == 1024
    for case in full:
        reduced = case.reduced()
        assert options.named(reduced.option).kind == options.named(case.option).kind
        assert reduced.flops < 2**30
    assert options.named(window.reduced().option).size == 8  # of 128 keys as 1024 of 16384


# Planning and verification.


@pytest.mark.parametrize("name", NAMES)
def test_launches_are_those_of_the_call(name):
    """Though no mask of full size is made for them."""
    case = small(name, "backward", seqlen_q=2**17, seqlen_k=2**17)
    found = runner.launches(case, named("sm_90a"))
    short = small(name, "backward")
    x = Numbers(np).inputs(short)
    problem = AttentionProblem.from_arrays(*x[:3], **options.given(short, np), wrt=options.wrt(short))
    wanted = {"bias": "attention_dterm", "sinks": "attention_dsinks"}
    assert {launch.kernel.entry for launch in found} & set(wanted.values()) == {wanted[x] for x in wanted if x == name}
    kernels = [launch.kernel for launch in found if launch.kernel.family == "mma"]
    assert {"attention_forward", "attention_dkdv"} <= {kernel.entry for kernel in kernels}
    for kernel in kernels:
        used = [x.type for x in problem.components if x.concept != "Sink" or kernel.entry == "attention_forward"]
        assert [part.type for part in kernel.parts] == used, kernel


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_verification_accepts_standard_attention(case):
    x = Numbers(np).inputs(case)
    assert 0 < verify.Expected(case, x).error(methods.standard(np, case, x), x) < 0.1


@pytest.mark.parametrize("name", ["softcapmod3", "documentsmod2"])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verification_knows_which_part_a_function_is_of(name, direction, monkeypatch):
    """Ours has it right, with functions that tell apart where scores are: bias and mask by b, h and i."""
    monkeypatch.setattr(options, "mods", types.SimpleNamespace(
        causal=lambda b, h, i, j: (j <= i) & ((i + h + b) % 3 != j % 3),
        softcap=lambda s, b, h, i, j, cap: cap * np.tanh(s / cap) + (b + 2 * h) * np.sin(i * 1.0) * (j % 2),
        documents=lambda b, h, i, j, of_queries, of_keys: (of_queries[b, i] == of_keys[b, j]) & ((i * h + b) % 5 != j),
    ))  # fmt: skip
    options._functions_of.cache_clear()
    case = small(name, direction)
    x = Numbers(np).inputs(case)
    assert 0 < verify.Expected(case, x).error(methods.Flash("cpu").bind(case, x), x) < 0.1
    options._functions_of.cache_clear()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_verification_rejects_another_option(name, direction):
    """Those that lack it, and those that have another size of it."""
    case = small(name, direction)
    x = Numbers(np).inputs(case)
    other = {"window9": "window12", "softcap3": "softcap4", "documents2": "documents4"}
    other |= {"softcapmod3": "softcapmod4", "documentsmod2": "documentsmod4"}
    for wrong in {"", other.get(name, "")}:
        with pytest.raises(ArithmeticError, match=r"^wrong: "):
            verify.Expected(case, x).error(methods.standard(np, replace(case, option=wrong), x), x)


@pytest.mark.parametrize("option", ["bias", "sinks"])
def test_verification_rejects_a_wrong_gradient_of_an_option(option):
    """Of elements that are verified: those of the last group of heads, and of the first and last rows."""
    case = small(option, "backward")
    x = Numbers(np).inputs(case)
    bound, expected = methods.standard(np, case, x), verify.Expected(case, x)
    right, places = bound.backward, {"bias": [(0, 2, 0, 5), (0, -1, -1, -1)], "sinks": [(2,), (3,)]}[option]
    for place in places:

        def wrong(saved, dout, place=place):
            *others, gradient = right(saved, dout)
            gradient[place] += np.float16(0.5)
            return [*others, gradient]

        bound.backward = wrong
        with pytest.raises(ArithmeticError, match=f"^wrong: d{option} is off"):
            expected.error(bound, x)


def test_verification_knows_which_rows_and_heads_a_mask_is_of():
    """Of full size: an element of it for each batch element, head, row and key that is verified."""
    case = small("documents2")
    expected = verify.Expected(case, Numbers(np).inputs(case))
    rng = np.random.default_rng(0)
    mask = rng.random((3, 4, 80, 80)) < 0.5
    slopes, lengths = rng.random((3, 4)), np.arange(3)
    found = {"mask": mask, "alibi_slopes": slopes, "k_lengths": lengths}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "given", lambda case, xp: dict(found))
        given = expected._given(slice(48, 80))
    np.testing.assert_array_equal(given["mask"], mask[2, 2:4, 48:80])
    np.testing.assert_array_equal(given["alibi_slopes"], slopes[2, 2:4])
    assert given["k_lengths"] == 2 and given["q_offset"] == 48


# The other libraries.


def attend(q, k, v, change, sinks=None):
    """Attention of (B, H, S, D) by its definition; `change` maps scaled scores (B, H, Sq, Sk) to others."""
    q, k, v = (np.asarray(a).astype(np.float64) for a in (q, k, v))
    k, v = (a.repeat(q.shape[1] // k.shape[1], axis=1) for a in (k, v))
    s = change(q @ k.swapaxes(-1, -2) * q.shape[-1] ** -0.5)
    p = np.exp(s)
    total = p.sum(-1, keepdims=True)
    sink = 0 if sinks is None else np.exp(sinks.astype(np.float64))[:, None, None]
    out = (p / (total + sink) @ v).astype(np.float16).view(Tensor)
    out.lse = np.log(total[..., 0])
    return out


def gradients(dout, inputs, kind=Tensor):
    """Those of `SMALL` with respect to q, k, v (B, H, S, D) and what is learned."""
    dout, q, k, v, learned = (np.asarray(x) for x in (dout, *inputs))
    name = {4: "bias", 1: "sinks"}[learned.ndim]
    options = {name: learned, "causal": small(name).causal, "wrt": ("q", "k", "v", name)}
    return tuple(x.view(kind) for x in attention_reference_backward(dout, q, k, v, **options))


def grid(s):
    return [a.reshape([-1 if i == n else 1 for i in range(4)]) for n, a in enumerate(map(np.arange, s.shape))]


@pytest.fixture
def libraries(monkeypatch):
    """Modules torch, flash_attn.cute and jax on NumPy, of what options ask of them."""

    def module(name, **members):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**members))

    def sdpa(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
        assert attn_mask.ndim == 4 and not is_causal
        return attend(q, k, v, lambda s: np.where(attn_mask, s, -np.inf) if attn_mask.dtype == bool else s + attn_mask)

    def flex(q, k, v, block_mask=None, score_mod=None, enable_gqa=False, return_aux=None):
        def change(s):
            b, h, i, j = grid(s)
            s = s if score_mod is None else score_mod(s, b, h, i, j)
            if block_mask is None:
                return s
            shown, batch, heads, *sizes = block_mask
            assert heads is None and sizes == list(s.shape[2:]) and batch in (None, len(s))
            return np.where(shown(b if batch else 0, h, i, j), s, -np.inf)

        out = attend(q, k, v, change)
        return out if return_aux is None else (out, types.SimpleNamespace(**dict.fromkeys(return_aux, out.lse)))

    def flash_attn_func(q, k, v, causal, num_splits, window_size=(-1, -1), softcap=0.0, learnable_sink=None):
        assert learnable_sink is None or learnable_sink.dtype == DTYPES["bfloat16"]

        def change(s):
            *_, i, j = grid(s)
            s = softcap * np.tanh(s / softcap) if softcap else s
            left, right = window_size
            near = (i - j <= left if left >= 0 else True) & (j - i <= right if right >= 0 else True)
            return np.where(near & ((j <= i) | (not causal)), s, -np.inf)

        return attend(*(t.transpose(1, 2) for t in (q, k, v)), change, learnable_sink).transpose(1, 2)

    def dot_product_attention(
        q, k, v, bias=None, mask=None, *, is_causal, local_window_size=None, key_value_seq_lengths=None, implementation
    ):
        assert implementation == "cudnn"

        def change(s):
            b, _, i, j = grid(s)
            s = s if bias is None else s + bias
            shown = np.array(True) if mask is None else mask
            if key_value_seq_lengths is not None:
                assert key_value_seq_lengths.dtype == np.int32
                shown = shown & (j < key_value_seq_lengths[b])
            if local_window_size is not None:
                shown = shown & (i - j <= local_window_size[0]) & (j - i <= local_window_size[1])
            return np.where(shown & ((j <= i) | (not is_causal)), s, -np.inf)

        return attend(*(a.swapaxes(1, 2) for a in (q, k, v)), change).swapaxes(1, 2)

    def vjp(f, *inputs):
        def swapped(arrays):
            return [*(a.swapaxes(1, 2) for a in arrays[:3]), *arrays[3:]]

        return f(*inputs), lambda dout: swapped(gradients(dout.swapaxes(1, 2), swapped(inputs)))

    names = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
    backends = types.SimpleNamespace(**{name: name for name in names})
    module(
        "torch", float16=np.float16, bfloat16=DTYPES["bfloat16"], int16=np.int16, bool=np.bool_,
        cuda=types.SimpleNamespace(is_available=lambda: True), no_grad=contextlib.nullcontext,
        _dynamo=types.SimpleNamespace(reset=lambda: None), compile=lambda f, dynamic: f,
        from_dlpack=lambda a: np.from_dlpack(a).view(Tensor), sigmoid=lambda x: 1 / (1 + np.exp(-x)),
        autograd=types.SimpleNamespace(grad=lambda out, leaves, dout, retain_graph: gradients(dout, leaves)),
    )  # fmt: skip
    module("torch.nn.attention", sdpa_kernel=lambda chosen: contextlib.nullcontext(), SDPBackend=backends)
    module("torch.nn.functional", scaled_dot_product_attention=sdpa)
    module(
        "torch.nn.attention.flex_attention", flex_attention=flex, AuxRequest=lambda lse: ["lse"] * lse,
        create_block_mask=lambda shown, b, h, sq, sk, device: (shown, b, h, sq, sk),
    )  # fmt: skip
    module("flash_attn.cute", flash_attn_func=flash_attn_func)
    module("flash_attn_interface", flash_attn_func=flash_attn_func)
    nn = types.SimpleNamespace(dot_product_attention=dot_product_attention)
    module("jax", jit=lambda f: f, vjp=vjp, block_until_ready=lambda a: a, default_backend=lambda: "gpu", nn=nn)
    module("jax.dlpack", from_dlpack=lambda a: a)
    monkeypatch.setitem(sys.modules, "cupy", types.SimpleNamespace(from_dlpack=lambda a: np.asarray(a)))


PEERS = [m for m in methods.all_methods("cuda") if not isinstance(m, (methods.Flash, methods.Standard))]
LEARNED = ("bias", "sinks")
TAKEN = [(m, c) for m in PEERS for c in SMALL if m.takes(c) and (c.direction != "backward" or c.option in LEARNED)]


@pytest.mark.parametrize(("method", "case"), TAKEN, ids=lambda x: getattr(x, "name", None) or str(x))
def test_adapters_pass_the_option_on(libraries, method, case):
    method.load()
    x = Numbers(np).inputs(case)
    bound = method.bind(case, x)
    assert verify.Expected(case, x).error(bound, x) < 0.03


def test_a_forward_alone_is_not_timed_with_what_the_backward_needs(monkeypatch):
    case, asked, slope = small("softcap7"), [], options.Softcap.slope
    monkeypatch.setattr(options.Softcap, "slope", lambda self, score: asked.append(score) or slope(self, score))
    bound = methods.standard(np, case, Numbers(np).inputs(case))
    bound.forward()
    assert not asked
    bound.saved()
    assert len(asked) == 1


def test_what_a_method_takes():
    taken = {m.name: {options.named(c.option).kind for c in SMALL if m.takes(c)} for m in methods.all_methods("cuda")}
    every = set(options.KINDS) - {""}
    built_in = every - {"softcapmod", "documentsmod"}
    assert taken == {
        "cupy_flash": every, "FlexAttention": every, "standard (CuPy)": every, "torch flash": set(),
        **dict.fromkeys(("torch cudnn", "torch efficient", "torch math", "jax cudnn"), built_in - {"softcap", "sinks"}),
        "flash-attn-3": {"window", "softcap"}, "flash-attn-4": {"window", "softcap", "sinks"},
    }  # fmt: skip
    assert all(m.takes(small("", causal=causal)) for m in methods.all_methods("cuda") for causal in (False, True))


def test_ours_is_given_every_option(monkeypatch):
    """The forward, the one that keeps what the backward needs, and that."""
    asked = []

    def noted(function):
        return lambda *arrays, **given: asked.append((function.__name__, given)) or (None, None)

    for function in (flash_attention, flash_attention_backward):
        monkeypatch.setattr(methods, function.__name__, noted(function))
    for case in SMALL:
        bound = methods.Flash("emulator").bind(case, Numbers(np).inputs(case))
        bound.forward(), bound.backward(bound.saved(), None)
        assert [given.pop("wrt", None) for _, given in asked] == [None, None, options.wrt(case)]
        for _, given in asked:
            given = {name: value for name, value in given.items() if name not in ("return_lse", "backend")}
            expected = options.given(case, np)
            assert given.keys() == expected.keys() and all(
                given[name] is expected[name] or given[name] == expected[name] for name in given
            )
        assert [name for name, _ in asked] == ["flash_attention"] * 2 + ["flash_attention_backward"]
        asked.clear()


def test_what_a_method_lacks_is_left_out_and_told(capsys):
    book = books.Book(Path("nowhere.csv"), PLACE)
    flash, flex, fa4 = (next(m for m in PEERS if m.name == n) for n in ("torch flash", "FlexAttention", "flash-attn-4"))
    plain = small("", causal=True)
    chosen = [plain, small("window9"), small("lengths")]
    todo = runner.pending(chosen, [flash, flex, fa4], book)
    # What compiles for each case begins with the options.
    assert [(m.name, c.option) for c, m in todo] == [
        ("torch flash", ""), ("FlexAttention", "window9"), ("flash-attn-4", "window9"), ("FlexAttention", "lengths"),
        ("FlexAttention", ""), ("flash-attn-4", ""),
    ]  # fmt: skip
    bench._tell_what_is_left_out(chosen, [flash, flex, fa4])
    assert capsys.readouterr().out.splitlines() == [
        "left out: torch flash is not given window9, lengths", "left out: flash-attn-4 is not given lengths",
    ]  # fmt: skip


# What is written, and what is made of it.


def row(case, method="cupy_flash", **columns):
    values = dict.fromkeys(books.FIELDS, "") | books.case_columns(case) | PLACE
    figures = {"tflops": "7", "gbps": "7", "median_us": "9", "p10_us": "8", "p90_us": "10", "date": "2026-01-02"}
    return values | figures | {"method": method, "status": "ok"} | columns


def write(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def test_a_book_keeps_options(tmp_path):
    path = tmp_path / "x.csv"
    book = books.Book(path, PLACE)
    for case in (small(""), *SMALL):
        assert book.find(case, "m") is None
        book.add(case, method="m", status="ok")
    rows = books.read(path)
    assert [books.case_of(r) for r in rows] == [small(""), *SMALL]
    assert all(books.Book(path, PLACE).find(case, "m") for case in SMALL)


def test_files_from_before_options_are_read_and_not_gone_on_with(tmp_path):
    path, plain = tmp_path / "x.csv", [row(small("", d)) for d in ("forward", "backward")]
    write(path, books.OLDER, plain)
    assert books.read(path) == plain
    with pytest.raises(UserError, match="other columns"):
        books.Book(path, PLACE)
    (kept,) = (Path(__file__).parents[1] / "benchmarks" / "results").glob("nvidia-*.csv")
    rows = books.read(kept)
    assert len(rows) > 50 and {r["option"] for r in rows} == {""}
    assert {books.case_of(r).causal for r in rows} == {False, True}


def test_the_table_tells_the_option_behind_the_plain_cases():
    shown = [small("window9"), small(""), small("lengths", "decode"), small("", "decode")]
    text = table.render([row(case) for case in shown])
    names = [line.split("|")[1].strip() for line in text.splitlines() if "float16" in line]
    assert names == ["forward, float16", "forward, causal, window9, float16", "decode, float16",
                     "decode, lengths, float16"]  # fmt: skip


def test_options_have_a_panel_of_their_own(monkeypatch, tmp_path):
    figure, saved = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: saved.append(self))
    shown = [small("", causal=True), small("window9"), small("documents2"), small("lengths")]
    plot([row(case) for case in shown], tmp_path / "x")
    panels = {ax.get_title(loc="left"): [t.get_text() for t in ax.get_xticklabels()] for ax in saved[0].axes}
    title = "float16, head dimension 32"
    assert panels == {
        f"{title}, causal": ["80\n3 x 4/2"],
        f"{title}, with options": ["80\n3 x 4/2\ndocuments2", "80\n3 x 4/2\nlengths", "80\n3 x 4/2\nwindow9\ncausal"],
    }


def test_a_plot_has_no_empty_panels(monkeypatch, tmp_path):
    """Panels stand in two columns; of an odd number the last place stays free."""
    figure, saved = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: saved.append(self))
    plot([row(case) for case in (small(""), small("", causal=True), small("window9"))], tmp_path / "x")
    assert [bool(ax.patches) for ax in saved[0].axes if ax.get_visible()] == [True] * 3


@functools.cache
def quick_kernels(arch):
    return {launch.kernel for case in cases("float16", True) for launch in runner.launches(case, named(arch))}


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_kernels_of_options_are_compiled_ahead(arch):
    masks = {part.type for kernel in bench.kernels(named(arch)) for part in kernel.parts}
    assert masks >= {"Window", "Boolean", "Alibi", "Softcap", "KeyLengths", "Causal", "Bias", "Sinks"}
    assert masks >= {"ScoreMod", "MaskMod"}
    assert quick_kernels(arch) < bench.kernels(named(arch))


# The CPU's benchmark.


@pytest.fixture
def torch_on_numpy(monkeypatch):
    """PyTorch as `cpu_vs_torch.py` uses it; `asked` has the masks that it was given."""
    asked = []

    class Plain(Tensor):
        def numpy(self):
            return np.asarray(self)

    def sdpa(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
        assert attn_mask is None or not is_causal
        asked.append(attn_mask)
        mask = np.tril(np.ones((q.shape[2], k.shape[2]), bool)) if is_causal else attn_mask
        given = {} if mask is None else {"mask" if mask.dtype == bool else "bias": np.asarray(mask)}
        return attention_reference(*(np.asarray(t) for t in (q, k, v)), **given).view(Plain)

    fake = types.SimpleNamespace(
        float32=np.float32, int32=np.int32, no_grad=contextlib.nullcontext,
        autograd=types.SimpleNamespace(grad=lambda out, leaves, dout, retain_graph: gradients(dout, leaves, Plain)),
        from_numpy=lambda a: a.view(Plain), nn=types.SimpleNamespace(
            functional=types.SimpleNamespace(scaled_dot_product_attention=sdpa)
        ),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", fake)
    return asked


def test_windows_of_the_cpu_are_masks_for_torch(torch_on_numpy, monkeypatch):
    """Verified first, then timed; work is that of the window."""
    monkeypatch.setattr(cpu_measure, "PAUSE", 0)
    monkeypatch.setattr(cpu_measure, "TURN", 0)
    case = CpuCase("window", "forward", "float32", 4, 2, 96, 96, 32, True, "window7")
    assert cpu_measure.measure(case, seconds=0).status == "ok"
    (mask, *_) = torch_on_numpy
    i, j = np.arange(96)[:, None], np.arange(96)
    np.testing.assert_array_equal(mask.squeeze(), (j <= i) & (i - j <= 7))
    assert case.flops == 4 * 4 * 32 * mask.sum() and replace(case, what="fwd+bwd").flops == 3.5 * case.flops
    wrong = LIBRARIES["ours"]
    monkeypatch.setitem(LIBRARIES, "ours", lambda case, x: wrong(replace(case, option="window8"), x))
    assert "ours is wrong: out" in cpu_measure.measure(case, seconds=0).status


@pytest.mark.parametrize("what", ["forward", "fwd+bwd"])
def test_a_bias_of_the_cpu_is_a_mask_for_torch_that_it_learns(what, torch_on_numpy, monkeypatch):
    """One for all of a batch, not a copy for each."""
    monkeypatch.setattr(cpu_measure, "PAUSE", 0)
    monkeypatch.setattr(cpu_measure, "TURN", 0)
    case = CpuCase("bias", what, "float32", 4, 4, 64, 64, 32, option="bias", batch=3)
    assert cpu_measure.measure(case, seconds=0).status == "ok"
    assert {mask.shape for mask in torch_on_numpy} == {(1, 4, 64, 64)}
    assert "| 3x4 |" in " ".join(cpu_table.line(Row(case), types.SimpleNamespace(peak_gflops=1.0)).split())


def test_windows_of_the_cpu_are_a_section():
    found = list(cpu_cases(["window"], ["float32"], (), (), (), quick=False))
    assert [(c.seqlen_k, c.what) for c in found] == [
        (s, what) for s in (4096, 16384) for what in ("forward", "fwd+bwd")
    ]  # fmt: skip
    assert {(c.heads_q, c.head_dim, c.causal, c.option) for c in found} == {(8, 64, True, "window512")}
    assert {c.seqlen_k for c in cpu_cases(["window"], ["float32"], (), (), (), quick=True)} == {4096}
    rows = [Row(c, ours=float(c.seqlen_k), torch=c.seqlen_k**2.0) for c in found]
    rows += [Row(replace(c, section="speed", option=""), ours=1.0, torch=1.0) for c in found]
    lines = [line for line in growth(rows) if "window512" in line]
    assert len(lines) == 2 and all("ours time ~ S^1.00" in x and "torch time ~ S^2.00" in x for x in lines)
    assert "| window512 |" in cpu_table.line(rows[0], types.SimpleNamespace(peak_gflops=1.0))
