"""cuda_src/README.md: its snippets and what they print, and its changes of the kernels."""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import Case

from cupy_flash import emulator, flash_attention, flash_attention_backward

CUDA = Path(__file__).parents[1] / "cuda_src"
GUIDE = (CUDA / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Texts between fences; what is printed has no language."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", GUIDE, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


SNIPPET, TILES = blocks("python")
RACE, CONFLICTS, BYTES, RIGHT, WRONG = blocks("")


def changes():
    """(file, old, new) of each replacement in the guide's diff."""
    found = []
    for part in blocks("diff")[0].split("--- ")[1:]:
        head, _, lines = part.partition("\n")
        for old, new in re.findall(r"((?:^-.*\n)+)((?:^\+.*\n)+)", lines, flags=re.MULTILINE):
            found.append((head.partition(",")[0], *(re.sub(r"^.", "", x, flags=re.MULTILINE) for x in (old, new))))
    return found


def test_the_guide_names_what_is_there():
    for name in re.findall(r"`((?:attention|simt|mma|ptx)/[\w.]*)`", GUIDE):
        assert (CUDA / name).exists()
    sources = "".join(path.read_text(encoding="utf-8") for path in CUDA.rglob("*.cu*"))
    for word in re.findall(r"`(\w+)`", GUIDE.partition("## Change a line")[0]):
        assert word in sources or word in ("OS", "FA2")


@pytest.fixture
def printed(capsys):
    """Execute a snippet; what it prints, with single spaces."""

    names = {"np": np, "emulator": emulator, "flash_attention": flash_attention}

    def run(snippet):
        exec(compile(snippet, "cuda_src/README.md", "exec"), dict(names))
        return lines(capsys.readouterr().out)

    return run


def lines(text):
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_snippet_finds_nothing(printed):
    assert lines(RIGHT)[0] in printed(SNIPPET)
    assert emulator.last_run().total("shared_accesses") > 0
    assert emulator.last_run().total("bank_conflicts") == 0


def test_a_missing_barrier_is_a_race(mutate, printed):
    mutate("mma/ring.cuh", "    meet();\n    if ((kStages", "    if ((kStages")
    with pytest.raises(emulator.EmulatorError) as error:
        printed(SNIPPET)
    assert f"EmulatorError: {error.value}" == " ".join(lines(RACE))


def test_rows_that_are_not_swizzled_meet_in_banks(mutate, printed):
    mutate("mma/tile.cuh", "return kGroup == 64 ? row % 8 * kChunk : row / 2 % 4 * kChunk;", "return 0;")
    found = printed(SNIPPET)
    *shown, rest = lines(CONFLICTS)
    assert rest == "..." and set(shown) < set(found)
    assert lines(RIGHT)[0] in found


def test_a_tile_of_half_the_queries_reads_the_keys_twice_as_often(printed):
    assert printed(TILES) == lines(BYTES)


@pytest.mark.slow
def test_the_ptx_path_executes_the_inline_assembly(mutate, printed):
    checked = 'mode="checked", seed=1'
    assert checked in SNIPPET
    printed(SNIPPET.replace(checked, ""))
    host = emulator.last_run()
    on_ptx = SNIPPET.replace(checked, 'path="ptx"')
    assert lines(RIGHT)[0] in printed(on_ptx)
    counts = ("mma", "ldmatrix", "shuffles", "barriers", "cp_async")
    assert [emulator.last_run().total(name) for name in counts] == [host.total(name) for name in counts]
    mutate("ptx/ldmatrix.cuh", ".x4.trans.", ".x4.")
    assert lines(WRONG)[0] in printed(on_ptx)


def standard(q, k, v, dout, bias):
    """out, lse, dq, dk and dv by their definitions in float64, of two query heads that share a key head."""
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    scale = q.shape[-1] ** -0.5
    scores = scale * q @ k.swapaxes(-1, -2) + bias
    lse = np.log(np.exp(scores).sum(-1))
    p = np.exp(scores - lse[..., None])
    out = p @ v
    ds = scale * p * (dout @ v.swapaxes(-1, -2) - (dout * out).sum(-1, keepdims=True))
    dk, dv = (np.sum(x.swapaxes(-1, -2) @ y, axis=0, keepdims=True) for x, y in ((ds, q), (p, dout)))
    return out, lse, ds @ k, dk, dv


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_one_change_makes_a_window_with_alibi(dtype, deterministic, mutate):
    (edit,) = changes()
    mutate(*edit)
    q, k, v, dout, _ = Case(dtype=dtype, group=2, sq=200, sk=200).arrays()
    distance = np.arange(200)[:, None] - np.arange(200)
    bias = np.where((distance >= 0) & (distance < 128), -0.05 * distance, -np.inf)
    options = {"causal": True, "window": (127, None), "backend": "emulator:sm_80"}
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    grads = flash_attention_backward(dout, q, k, v, out, lse, deterministic=deterministic, **options)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for found, expected in zip((out, lse, *grads), standard(q, k, v, dout, bias), strict=True):
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=tolerance)
