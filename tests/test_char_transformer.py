"""examples/char_transformer.py: its backward by finite differences, its training, and the script itself."""

import char_transformer as example
import numpy as np
import processes
import pytest
from conftest import GPU, require_gpu

SCRIPT = processes.ROOT / "examples" / "char_transformer.py"
TEXT = (processes.ROOT / "cupy_flash" / "data" / "attention.txt").read_bytes()


@pytest.fixture(params=["cpu", GPU])
def xp(request, monkeypatch):
    """The example computes with NumPy or with CuPy."""
    if request.param == "cuda":
        require_gpu()
        import cupy

        monkeypatch.setattr(example, "xp", cupy)
    return example.xp


def test_the_backward_is_the_gradient(xp):
    """In float64, along random directions in each weight, so little that hardly a unit of the MLP is switched."""
    rng = np.random.default_rng(0)
    weights = [w.astype(np.float64) for w in example.initial_weights(rng, 11)]
    tokens, targets = xp.asarray(rng.integers(0, 11, (2, 3, 20)))

    def loss(changed):
        return example.cross_entropy(example.model(changed, tokens)[0], targets)[0]

    logits, backward = example.model(weights, tokens)
    grads = backward(example.cross_entropy(logits, targets)[1])
    assert [g.shape for g in grads] == [w.shape for w in weights]
    for i, grad in enumerate(grads):
        step = xp.asarray(1e-7 * rng.standard_normal(grad.shape))
        ahead, behind = (loss([*weights[:i], weights[i] + sign * step, *weights[i + 1 :]]) for sign in (1, -1))
        assert ahead - behind == pytest.approx(float(2 * (grad * step).sum()), rel=1e-5, abs=1e-13)


def test_the_loss_falls(xp):
    weights, letters, losses = example.train(TEXT, 30)
    assert losses[0] > 4 and np.mean(losses[-5:]) < 2.8
    written = example.write(weights, letters, b"Attention", 5)
    assert written.startswith("Attention") and len(written) == 14


def test_the_script_runs(tmp_path):
    plot = tmp_path / "loss.svg"
    printed, _ = processes.script(SCRIPT, "--steps", "2", "--plot", plot)
    assert "step    1  loss" in printed and TEXT[:32].decode() in printed
    drawn = plot.read_text(encoding="utf-8")
    assert "nats a character" in drawn and "<!-- 0 -->" in drawn and "<!-- 4 -->" in drawn  # where the loss begins
