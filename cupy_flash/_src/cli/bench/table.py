"""The results as Markdown tables: ours, the best of the others, and what the GPU could do at most."""

from __future__ import annotations

from cupy_flash._src.cli.bench.book import OK, Row, case_of
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.units import format_bytes

OURS = "cupy_flash"
LIMITS = {"matmul": "tflops", "copy": "gbps"}  # measured in the same run; methods called "cupy"


def by_case(rows: list[Row]) -> dict[Case, dict[str, Row]]:
    """Rows of attention by case and method, in the order of the papers' tables; options after the others."""
    found: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if row["direction"] not in LIMITS:
            found.setdefault(case_of(row), {})[row["method"]] = row
    order = ("forward", "backward", "decode")

    def key(case: Case) -> tuple[object, ...]:
        shape = case.head_dim, case.causal, case.group, case.seqlen_k
        return order.index(case.direction), case.dtype, bool(case.option), *shape, case.option

    return {case: found[case] for case in sorted(found, key=key)}


def limit(rows: list[Row], name: str) -> float | None:
    """The matmul's TFLOP/s or the copy's GB/s, or None where it was not measured."""
    values = [float(row[LIMITS[name]]) for row in rows if row["direction"] == name and row["status"] == OK]
    return values[-1] if values else None


def unit_of(case: Case) -> str:
    """The column of the results that says how fast a case is."""
    return "gbps" if case.direction == "decode" else "tflops"


def best_peer(case: Case, methods: dict[str, Row]) -> Row | None:
    """The fastest row that is not ours."""
    peers = [row for name, row in methods.items() if name != OURS and row["status"] == OK]
    return max(peers, key=lambda row: float(row[unit_of(case)]), default=None)


def render(rows: list[Row]) -> str:
    """One table of training and one of decoding; cases not measured by us are left out."""
    matmul, copy = limit(rows, "matmul"), limit(rows, "copy")
    cases = {case: methods for case, methods in by_case(rows).items() if OURS in methods}
    training = {case: methods for case, methods in cases.items() if case.direction != "decode"}
    decode = {case: methods for case, methods in cases.items() if case.direction == "decode"}
    parts = []
    if training:
        parts.append(_table("TFLOP/s", training, matmul, "of matmul"))
    if decode:
        parts.append(_table("GB/s", decode, copy, "of copy"))
    measured = [f"{value:.0f} {unit}" for value, unit in ((matmul, "TFLOP/s"), (copy, "GB/s")) if value]
    if measured:
        size = next(row["head_dim"] for row in rows if row["direction"] == "matmul")
        parts.append(f"Measured in the same run, float16 matmul of {size} and copy: " + ", ".join(measured) + ".")
    return "\n\n".join(parts)


def _table(unit: str, cases: dict[Case, dict[str, Row]], most: float | None, of_most: str) -> str:
    lines = [
        f"| | D | B | H | S | {unit} | {of_most} | best other | its {unit} | ratio | memory |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, methods in cases.items():
        ours, peer, column = methods[OURS], best_peer(case, methods), unit_of(case)
        words = [case.direction, "causal" * case.causal, case.option, case.dtype]
        what = ", ".join(word for word in words if word)
        heads = f"{case.heads_q}" if case.group == 1 else f"{case.heads_q}/{case.heads_k}"
        cells = [what, str(case.head_dim), str(case.batch), heads, str(case.seqlen_k)]
        if ours["status"] == OK:
            speed = float(ours[column])
            cells += [f"{speed:.0f}", f"{speed / most:.0%}" if most else "-"]
        else:
            speed = 0.0
            cells += [ours["status"][:40].replace("|", "/"), "-"]
        if peer:
            other = float(peer[column])
            cells += [peer["method"], f"{other:.0f}", f"{speed / other:.2f}" if speed else "-"]
        else:
            cells += ["-", "-", "-"]
        cells.append(format_bytes(int(ours["peak_bytes"])) if ours["peak_bytes"] else "-")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
