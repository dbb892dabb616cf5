"""What `emulator.last_run()` prints, and shows in a notebook."""

import re
from html.parser import HTMLParser

import pytest
from cases import Case

from cupy_flash import emulator, flash_attention, flash_attention_backward
from cupy_flash._src.emulator.errors import Site
from cupy_flash.emulator import Bytes, Conflicts, LaunchReport, RunReport

WORK = ["kernel", "grid", "block", "shared bytes", "barriers", "tensor-core instructions", "shuffles", "atomics"]
MOVED = ["kernel", "buffer", "bytes read", "bytes written"]
SHARED = ["kernel", "shared accesses", "bank conflicts", "lines"]


def printed(report):
    """The cells of each printed table; a cell that goes on in the lines below is put together."""
    tables = []
    for text in str(report).split("\n\n"):
        rows = []
        for line in text.splitlines():
            if line.startswith(" "):
                rows[-1][-1] += f" {line.strip()}"
            else:
                rows.append(re.split(r"\s{2,}", line))
        tables.append(rows)
    return tables


class Cells(HTMLParser):
    """The cells of each table of a page."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags = [], []
        self.feed(text)
        self.close()
        assert not self.tags, f"{self.tags} are open"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.tags.pop() == tag

    def handle_data(self, data):
        self.tables[-1][-1][-1] += data


def launch(**changes):
    counts = dict.fromkeys(("switches", "mma", "ldmatrix", "shuffles", "votes", "syncwarps", "barriers"), 0)
    values = {
        "kernel": "small",
        "grid": (1, 1, 1),
        "block": (32, 1, 1),
        "shared_bytes": 0,
        "mode": "counted",
        "seconds": 0.0,
        "cp_async": 0,
        "atomics": 0,
        "buffers": {},
        "bank_conflicts": 0,
        "shared_accesses": 0,
        **counts,
        "conflicts": (),
    }
    return LaunchReport(**(values | changes))


@pytest.fixture(scope="module", params=[("emulator:sm_80", "float16"), ("emulator:sm_75", "float32")], ids=str)
def reports(request):
    """Those of a forward and a backward pass."""
    backend, dtype = request.param
    q, k, v, dout, _ = Case(dtype=dtype, group=2, sq=80, sk=80).arrays()
    with emulator.settings(mode="counted"):
        out, lse = flash_attention(q, k, v, causal=True, return_lse=True, backend=backend)
        forward = emulator.last_run()
        flash_attention_backward(dout, q, k, v, out, lse, causal=True, backend=backend)
        return forward, emulator.last_run()


def test_the_tables_have_the_counts_of_the_report(reports):
    for report in reports:
        work, moved, shared = printed(report)
        assert (work[0], moved[0], shared[0]) == (WORK, MOVED, SHARED)
        assert [row[0] for row in work[1:]] == [x.kernel for x in report.launches]
        names = ["shared_bytes", "barriers", "mma", "shuffles", "atomics"]
        counts = [[f"{getattr(x, name):,}" for name in names] for x in report.launches]
        assert [row[3:] for row in work[1:]] == counts
        by_buffer = {(row[0], row[1]): (row[2], row[3]) for row in moved[1:]}
        assert len(by_buffer) == len(moved) - 1
        for x in report.launches:
            for name, count in x.buffers.items():
                row = by_buffer.pop((x.kernel, name), ("0", "0"))
                assert row == (f"{count.read:,}", f"{count.written:,}")
        assert not by_buffer
        users = [x for x in report.launches if x.shared_accesses]
        assert shared[1:] == [[x.kernel, f"{x.shared_accesses:,}", "0", "all"] for x in users]
        assert users


def test_notebooks_show_the_same_cells(reports):
    for report in reports:
        assert Cells(report._repr_html_()).tables == printed(report)


def test_lines_fit(reports):
    for report in reports:
        assert max(map(len, str(report).splitlines())) <= 120


def test_all_of_a_small_report():
    conflicts = (
        Conflicts(Site("part/tile.cuh", 7, (Site("kernel.cu", 30),)), 4096, 1234567),
        Conflicts(Site("kernel.cu", 9), 5, 0),
    )
    first = launch(
        kernel="first",
        grid=(4, 1, 2),
        block=(128, 1, 1),
        shared_bytes=1024,
        barriers=3,
        mma=20,
        shuffles=1,
        atomics=1000,
        bank_conflicts=1234567,
        shared_accesses=4101,
        buffers={"q": Bytes(256, 0), "unused": Bytes(0, 0), "out": Bytes(0, 2048)},
        conflicts=conflicts,
    )
    assert str(RunReport((first, launch()))) == (
        "kernel  grid       block  shared bytes  barriers  tensor-core instructions  shuffles  atomics\n"
        "first   4 x 1 x 2  128           1,024         3                        20         1    1,000\n"
        "small   1          32                0         0                         0         0        0\n"
        "\n"
        "kernel  buffer  bytes read  bytes written\n"
        "first   q              256              0\n"
        "first   out              0          2,048\n"
        "\n"
        "kernel  shared accesses  bank conflicts  lines\n"
        "first             4,101       1,234,567  all\n"
        "first             4,096       1,234,567  part/tile.cuh:7 from kernel.cu:30"
    )


def test_long_chains_of_lines_go_on_below():
    callers = tuple(Site("simt/backward_tiles.cuh", line) for line in range(100, 106))
    conflicts = (Conflicts(Site("simt/matmul.cuh", 7, callers), 1, 1),)
    report = RunReport((launch(shared_accesses=1, bank_conflicts=1, conflicts=conflicts),))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 120
    assert printed(report)[-1][-1] == ["small", "1", "1", str(conflicts[0].site)]
    (column,) = (line.index("simt/matmul.cuh:7 from") for line in lines if "matmul" in line)
    assert re.fullmatch(f" {{{column}}}(from )?simt/.*", lines[-1])


def test_modes_that_count_nothing_have_one_table():
    report = RunReport((launch(mode="fast", buffers=None, bank_conflicts=None, shared_accesses=None),))
    assert len(printed(report)) == len(Cells(report._repr_html_()).tables) == 1


def test_totals_are_sums_and_of_what_was_not_counted_an_error():
    some = launch(mma=3, atomics=0, bank_conflicts=0, buffers={"q": Bytes(5, 0), "out": Bytes(2, 8)})
    report = RunReport((some, launch(mma=4, bank_conflicts=6)))
    totals = {"mma": 7, "atomics": 0, "bank_conflicts": 6, "bytes_read": 7, "bytes_written": 8}
    assert {name: report.total(name) for name in totals} == totals
    fast = RunReport((some, launch(mode="fast", buffers=None, bank_conflicts=None, shared_accesses=None)))
    assert (fast.total("mma"), fast.total("barriers")) == (3, 0)
    for name in ("bytes_read", "bytes_written", "bank_conflicts", "shared_accesses"):
        with pytest.raises(ValueError, match=f"'{name}' is not counted in mode 'fast'"):
            fast.total(name)


def test_many_launches():
    report = RunReport(tuple(launch(kernel=f"kernel_{i}", barriers=i) for i in range(500)))
    ((names, *rows),) = printed(report)
    assert [(row[0], row[names.index("barriers")]) for row in rows] == [(f"kernel_{i}", str(i)) for i in range(500)]


def test_no_launches():
    assert str(RunReport(())) == RunReport(())._repr_html_() == "no kernel was launched"
    with emulator.run():
        pass
    assert str(emulator.last_run()) == "no kernel was launched"


def test_notebooks_show_names_as_they_are():
    name = "<b>a & b</b>"
    report = RunReport((launch(kernel=name, buffers={name: Bytes(1, 2)}),))
    work, moved = Cells(report._repr_html_()).tables
    assert (work[1][0], moved[1][:2]) == (name, [name, name])
    assert "<b>" not in report._repr_html_()
