"""cuda_src/README.md: its snippet, and its change of the kernels, which is a window with ALiBi."""

import re
from pathlib import Path

import numpy as np
import pytest
from cases import Case

from cupy_flash import emulator, flash_attention, flash_attention_backward

CUDA = Path(__file__).parents[1] / "cuda_src"
GUIDE = (CUDA / "README.md").read_text(encoding="utf-8")


def block(language):
    (text,) = re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)
    return text


def changes():
    """(file, old, new) of each replacement in the guide's diff."""
    found = []
    for part in block("diff").split("--- ")[1:]:
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


def test_the_snippet_runs_and_finds_a_race(mutate, capsys):
    exec(compile(block("python"), "cuda_src/README.md", "exec"), {})
    assert "largest error 0.000" in capsys.readouterr().out
    mutate("mma/forward.cu", "    __syncthreads();\n    issue<kIsKey", "    issue<kIsKey")
    with pytest.raises(emulator.EmulatorError) as error:
        exec(compile(block("python"), "cuda_src/README.md", "exec"), {})
    shown = re.search(r"EmulatorError: (.*?)\n```", GUIDE, flags=re.DOTALL)[1]
    assert str(error.value) == shown.replace("\n", " ")


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
def test_three_lines_make_a_window_with_alibi(dtype, deterministic, mutate):
    edits = changes()
    assert len(edits) == 3
    for edit in edits:
        mutate(*edit)
    q, k, v, dout, _ = Case(dtype=dtype, group=2, sq=200, sk=200).arrays()
    distance = np.arange(200)[:, None] - np.arange(200)
    bias = np.where((distance >= 0) & (distance < 128), -0.05 * distance, -np.inf)
    options = {"causal": True, "backend": "emulator:sm_80"}
    out, lse = flash_attention(q, k, v, return_lse=True, **options)
    grads = flash_attention_backward(dout, q, k, v, out, lse, deterministic=deterministic, **options)
    tolerance = 1e-5 if dtype == "float32" else 1e-2
    for found, expected in zip((out, lse, *grads), standard(q, k, v, dout, bias), strict=True):
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=tolerance)
