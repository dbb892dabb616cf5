"""A character transformer around flash_attention_vjp: two layers, a backward by hand, Adam.

    python examples/char_transformer.py                  # NumPy on the CPU, half a minute on two cores
    python examples/char_transformer.py --device cuda    # CuPy on a GPU

Every function returns its result and, as flash_attention_vjp does, a function that maps the gradient of the result to
the gradients of its arguments. The backward of the model is to call these in reverse order.
"""

import argparse
import time
from importlib import resources

import numpy as np

from cupy_flash import flash_attention_vjp

SEQLEN, BATCH, WIDTH, HEADS, LAYERS = 64, 16, 128, 4, 2
xp = np  # or cupy, which main() puts in its place


def linear(x, w):
    def vjp(dy):
        return dy @ w.T, x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])

    return x @ w, vjp


def rms_norm(x, gain):
    r = 1 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    unit = x * r

    def vjp(dy):
        dunit = dy * gain
        dx = r * (dunit - unit * xp.mean(dunit * unit, axis=-1, keepdims=True))
        return dx, xp.sum(dy * unit, axis=(0, 1))

    return unit * gain, vjp


def attention(x, w_in, w_out):
    """Causal self-attention. q, k and v are views of one projection, laid out (B, S, 3, H, D): nothing is copied."""
    projected, vjp_in = linear(x, w_in)
    q, k, v = xp.moveaxis(projected.reshape(*x.shape[:2], 3, HEADS, -1), (2, 3), (0, 2))  # each (B, H, S, D)
    heads, vjp_attention = flash_attention_vjp(q, k, v, causal=True)
    y, vjp_out = linear(heads.swapaxes(1, 2).reshape(x.shape), w_out)

    def vjp(dy):
        dheads, dw_out = vjp_out(dy)
        dq_dk_dv = vjp_attention(dheads.reshape(*x.shape[:2], HEADS, -1).swapaxes(1, 2))
        dprojected = xp.moveaxis(xp.stack(dq_dk_dv), (0, 2), (2, 3)).reshape(projected.shape)
        return *vjp_in(dprojected), dw_out

    return y, vjp


def mlp(x, w_in, w_out):
    hidden, vjp_in = linear(x, w_in)
    y, vjp_out = linear(xp.maximum(hidden, 0), w_out)

    def vjp(dy):
        dhidden, dw_out = vjp_out(dy)
        return *vjp_in(dhidden * (hidden > 0)), dw_out

    return y, vjp


def half_layer(block, x, gain, w_in, w_out):
    """x + block(norm(x)): of a layer, attention is the first half and the MLP the second."""
    normed, vjp_norm = rms_norm(x, gain)
    y, vjp_block = block(normed, w_in, w_out)

    def vjp(dy):
        dnormed, dw_in, dw_out = vjp_block(dy)
        dx, dgain = vjp_norm(dnormed)
        return dy + dx, dgain, dw_in, dw_out

    return x + y, vjp


def embed(tokens, table, places):
    def vjp(dx):
        dtable, dplaces = xp.zeros_like(table), xp.zeros_like(places)
        xp.add.at(dtable, tokens, dx)
        dplaces[: dx.shape[1]] = dx.sum(axis=0)
        return dtable, dplaces

    return table[tokens] + places[: tokens.shape[1]], vjp


def model(weights, tokens):
    """Logits of the next character at every position, and their vjp to the gradients of all weights, in order."""
    table, places, *halves, gain, w = weights
    x, vjp_embed = embed(tokens, table, places)
    vjps = []
    for i in range(0, len(halves), 3):
        x, vjp = half_layer((attention, mlp)[i // 3 % 2], x, *halves[i : i + 3])
        vjps.append(vjp)
    x, vjp_norm = rms_norm(x, gain)
    logits, vjp_logits = linear(x, w)

    def backward(dlogits):
        dx, dw = vjp_logits(dlogits)
        dx, dgain = vjp_norm(dx)
        grads = [dgain, dw]
        for vjp in reversed(vjps):
            dx, *dhalf = vjp(dx)
            grads = [*dhalf, *grads]
        return [*vjp_embed(dx), *grads]

    return logits, backward


def initial_weights(rng, letters):
    def normal(*shape, std):
        return xp.asarray(rng.normal(0, std, shape), xp.float32)

    def ones():
        return xp.ones(WIDTH, xp.float32)

    angles = np.arange(SEQLEN)[:, None] / 1000 ** np.linspace(0, 1, WIDTH // 2)
    places = xp.asarray(0.5 * np.hstack([np.sin(angles), np.cos(angles)]), xp.float32)
    weights = [normal(letters, WIDTH, std=0.5), places]
    for _ in range(LAYERS):
        for inner, outer in ((3 * WIDTH, WIDTH), (4 * WIDTH, 4 * WIDTH)):  # attention, then the MLP
            w_out = normal(outer, WIDTH, std=(2 * LAYERS * outer) ** -0.5)
            weights += [ones(), normal(WIDTH, inner, std=WIDTH**-0.5), w_out]
    return [*weights, ones(), normal(WIDTH, letters, std=WIDTH**-0.5)]


def cross_entropy(logits, targets):
    """Mean of -log softmax(logits)[target] over all positions, in nats, and its gradient."""
    p = xp.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    hit = xp.arange(p.shape[-1]) == targets[..., None]
    return float(-xp.mean(xp.log(p[hit]))), (p - hit) / xp.asarray(targets.size, p.dtype)


def adam(weights, grads, moments, step, rate=2e-3, b1=0.9, b2=0.99):
    for w, g, (m, v) in zip(weights, grads, moments, strict=True):
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        w -= rate * m / (1 - b1**step) / (xp.sqrt(v / (1 - b2**step)) + 1e-8)


def train(text, steps, seed=0):
    """The weights, the letters of the text, and the loss of each step."""
    rng = np.random.default_rng(seed)
    letters, codes = np.unique(np.frombuffer(text, np.uint8), return_inverse=True)
    weights = initial_weights(rng, len(letters))
    moments = [(xp.zeros_like(w), xp.zeros_like(w)) for w in weights]
    losses, start = [], time.perf_counter()
    for step in range(1, steps + 1):
        begins = rng.integers(0, len(codes) - SEQLEN, (BATCH, 1))
        window = xp.asarray(codes[begins + np.arange(SEQLEN + 1)])
        logits, backward = model(weights, window[:, :-1])
        loss, dlogits = cross_entropy(logits, window[:, 1:])
        adam(weights, backward(dlogits), moments, step)
        losses.append(loss)
        if step == 1 or step % 50 == 0:
            print(f"step {step:4}  loss {loss:.3f}  {time.perf_counter() - start:5.1f} s", flush=True)
    return weights, letters, losses


def write(weights, letters, start, length):
    """The text that the model goes on with, each time with the likeliest character."""
    tokens = [int(np.flatnonzero(letters == code)[0]) for code in start]
    for _ in range(length):
        logits, _ = model(weights, xp.asarray([tokens[-SEQLEN:]]))
        tokens.append(int(logits[0, -1].argmax()))
    return bytes(letters[tokens]).decode(errors="replace")


def plot(losses, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, nats a character", xlim=(0, len(losses)))
    axes.plot(range(1, len(losses) + 1), losses, color="#2563a8", linewidth=1)
    axes.set_ylim(bottom=0)
    axes.set_title(f"{LAYERS} layers of width {WIDTH}, {HEADS} heads, {BATCH} x {SEQLEN} characters a step", loc="left")
    axes.grid(True, color="#e6e6e6")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def main():
    global xp
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--plot", metavar="PATH", help="draw the loss of each step")
    args = parser.parse_args()
    if args.device == "cuda":
        import cupy as xp
    if args.plot:
        import matplotlib.figure  # noqa: F401, missing before the training rather than after
    text = (resources.files("cupy_flash") / "data" / "attention.txt").read_bytes()
    weights, letters, losses = train(text, args.steps)
    print(write(weights, letters, text[:32], 200))
    if args.plot:
        plot(losses, args.plot)


if __name__ == "__main__":
    main()
