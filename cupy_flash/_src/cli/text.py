"""A text as input for attention: bytes, embedded by a small deterministic scheme."""

from __future__ import annotations

from importlib import resources

import numpy as np


def read_text() -> bytes:
    """The text that comes with the package.

    >>> read_text()[:20]
    b'A note on attention,'
    """
    return (resources.files("cupy_flash") / "data" / "attention.txt").read_bytes()


def embed(text: bytes, seqlen: int, heads: int, head_dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values of the first `seqlen` bytes of a text, repeated where it is shorter.

    Each byte has a row of a random table, each position the waves of "Attention Is All You Need" (Vaswani
    et al., 2017, section 3.5); their sum is projected to q, k and v by random matrices. Queries and keys
    share theirs, so that equal bytes find each other and the rows of scores are as uneven as trained ones.

    Returns
    -------
    q, k, v : ndarray, shape (heads, seqlen, head_dim), float32
        The same on every machine, up to rounding.

    Examples
    --------
    >>> q, k, v = embed(b"to be or not to be", 18, heads=2, head_dim=4)
    >>> q.shape
    (2, 18, 4)
    """
    width = heads * head_dim
    rng = np.random.default_rng(0)
    table = rng.standard_normal((256, width))
    project_qk, project_v = rng.standard_normal((2, width, width)) / np.sqrt(width)

    codes = np.resize(np.frombuffer(text, np.uint8), seqlen)
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.arange(seqlen)[:, None] * frequencies
    waves = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)[:, :width]
    x = (table[codes] + np.sqrt(2) * waves) / np.sqrt(2)  # both parts have unit variance

    def split_heads(y: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(y.reshape(seqlen, heads, head_dim).swapaxes(0, 1), np.float32)

    qk = split_heads(x @ project_qk)
    return qk, qk.copy(), split_heads(x @ project_v)
