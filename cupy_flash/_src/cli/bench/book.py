"""The results as a CSV file that grows by one row a measurement, and can be gone on with."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, fields
from pathlib import Path

from cupy_flash._src.cli import UserError
from cupy_flash._src.cli.arguments import writing
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.bench.telemetry import UNITS

Row = dict[str, str]

CASE_FIELDS = tuple(field.name for field in fields(Case))
PLACE_FIELDS = ("device", "arch", "driver", "cuda", "cupy", "cupy_flash", "commit")
FIELDS = (
    *CASE_FIELDS, "method", "method_version", "status", "timer", "median_us", "p10_us", "p90_us", "repeats", "tflops",
    "gbps", "peak_bytes", "error", *(f"{unit}_{when}" for when in ("before", "after") for unit in UNITS), "plan",
    *PLACE_FIELDS, "date",
)  # fmt: skip
OLDER = tuple(name for name in FIELDS if name != "option")  # of files from before there were options
OK = "ok"


class Book:
    """Rows measured before, by anyone, and those of this run.

    Raises
    ------
    UserError
        If the file exists and is no such file, or has other columns.
    """

    def __init__(self, path: Path, place: Row) -> None:
        self.path, self.place = path, place
        self.rows = read(path, (FIELDS,)) if path.exists() else []

    def find(self, case: Case, method: str) -> Row | None:
        """The row of this case and method from the same commit on the same device."""
        wanted = case_columns(case) | {"method": method, **{k: self.place[k] for k in ("device", "commit")}}
        return next((row for row in self.rows if all(row[k] == v for k, v in wanted.items())), None)

    def add(self, case: Case, **columns: object) -> Row:
        """Append one row to the file, at once.

        Raises
        ------
        UserError
            If the file takes no more.
        """
        values = case_columns(case) | self.place | {k: cell_text(v) for k, v in columns.items()}
        row = {field: values.get(field, "") for field in FIELDS}
        self.rows.append(row)  # first: it is told though the disk be full
        new = not self.path.exists() or not self.path.stat().st_size
        with writing(self.path), self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        return row

    def here(self) -> list[Row]:
        """Rows of this commit and device."""
        return [row for row in self.rows if all(row[k] == self.place[k] for k in ("device", "commit"))]


def read(path: Path, columns: Collection[tuple[str, ...]] = (FIELDS, OLDER)) -> list[Row]:
    """Rows of a file that has some of these columns; a last line that was cut off is left out."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is not None and tuple(reader.fieldnames) not in columns:
                raise UserError(f"{path} has other columns than this version writes: give another file with --out")
            return [{"option": ""} | row for row in reader if None not in row and None not in row.values()]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is no file of results: {error}") from None


def newest(folder: Path) -> Path | None:
    """The result file of the latest date in its name, or None."""
    dated = [
        (match[1], path) for path in folder.glob("*.csv") if (match := re.search(r"-(\d{4}-\d\d-\d\d)$", path.stem))
    ]
    return max(dated)[1] if dated else None


def of_last_commit(rows: Iterable[Row]) -> list[Row]:
    """The rows of the commit and device that were measured last."""
    rows = list(rows)
    return [row for row in rows if all(row[k] == rows[-1][k] for k in ("device", "commit"))]


def case_columns(case: Case) -> Row:
    return {name: cell_text(value) for name, value in asdict(case).items()}


def case_of(row: Row) -> Case:
    """The case that a row is about."""
    direction, dtype, *sizes, causal, option = (row[name] for name in CASE_FIELDS)
    return Case(direction, dtype, *map(int, sizes), causal == "True", option)  # type: ignore[call-arg, arg-type]


def cell_text(value: object) -> str:
    """A value as a CSV has it, on one line."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(str(value).split())
