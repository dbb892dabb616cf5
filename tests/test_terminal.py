"""What the commands do where they meet a terminal, a pipe, a full disk, and arguments that make no sense."""

import argparse
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import processes
import pytest
from processes import AS_A_USER, python

import cupy_flash
from cupy_flash.__main__ import COMMANDS, main
from cupy_flash._src import tuning
from cupy_flash._src.cli import Unavailable, UserError, demo, measure, progress
from cupy_flash._src.cli import explain as explain_command
from cupy_flash._src.cli.arguments import check_output, writing
from cupy_flash._src.cli.bench import book as books
from cupy_flash._src.cli.bench.cases import Case
from cupy_flash._src.cli.tune import search
from cupy_flash._src.problem import AttentionProblem

ROOT = Path(__file__).parents[1]
COLOUR, ESCAPE = re.compile(rb"\x1b\[[\d;]*m"), b"\x1b"
LIMIT = str(2**31)
CHECK = ["check", "--backend", "emulator:sm_80", "--only", "no such"]
ONE = ["--only", "forward float16 D 64 S", "--methods", "cupy_flash"]
BENCH = ["bench", "--backend", "emulator:sm_80", "--minutes=0", *ONE]
TUNE = ["tune", "--backend", "emulator:sm_80", "--kernels", "dq", "--head-dims", "64", "--minutes", "0"]


def command(*arguments, shell="", **environment):
    """A command in a process of its own: its status and what it wrote; `shell` follows it on the line."""
    line = f'"{sys.executable}" -m cupy_flash "$@" {shell}'
    names = dict.fromkeys(("NO_COLOR", "FORCE_COLOR", "PYTHON_COLORS", "PYTHONUNBUFFERED"), None) | environment
    kept = {name: value for name, value in os.environ.items() if name not in names}
    given = {name: value for name, value in names.items() if value is not None}
    return subprocess.run(
        ["bash", "-c", line, "bash", *arguments], cwd=ROOT, env=kept | given, capture_output=True, timeout=120
    )


# Mistakes.


def explain(shape="1,2,100,100,64", *options):
    return ["explain", "--shape", shape, *options]


@pytest.mark.parametrize(("arguments", "message"), [
    (explain(""), "expected five integers"),
    (explain("nan,1,1,1,1"), "expected five integers"),
    (explain("1;2;3;4;5"), "expected five integers"),
    (explain("1,2,\udcff,4,5"), r"--shape is '1,2,\udcff,4,5': expected five integers"),
    (explain("1,2,3,4,5,6"), "expected five integers"),
    (explain("1,1,1,1,-4"), "expected positive sizes"),
    (explain("1,1,1,1,513"), "q and k have head_dim 513"),
    (explain(f"1,{10**30},1,1,1"), "no array is so large"),
    (explain(f"1,{2**63 - 1},1,1,64"), "no array is so large"),
    (explain("1,1,1000000000,1,64"), "q has sequence length 1000000000: expected at most"),
    (explain("1000000,1000000,4096,4096,128"), "thread blocks: a launch takes at most 2147483647"),
    (explain("1000000,1000000,4096,4096,128", "--backward"), "attention_dkdv needs 32000000000000 thread blocks"),
    (explain("4294967292,1,1,1,64", "--backward"), "thread blocks: a launch takes at most"),
    (explain("1,4,8,8,64", "--heads-k", "3"), "the heads of q must be a multiple of the heads of k"),
    (explain("1,4,8,8,64", "--head-dim-v", "513"), "v have head_dim 513"),
    *((explain("1,4,8,8,64", "--tile", tile), "tile is ") for tile in ("", "x", "128xnan", "64x64,", "\udcff")),
    (explain("1,4,8,8,64", "--tile", "128x64,num_warps=4,stages=9999"), "shared memory"),
    (["demo", "--seqlens", "64", LIMIT], f"--seqlens has {LIMIT}: expected at most 536870912"),
    (["demo", "--backend", ""], "backend is ''"),
    (["demo", "--backend", "emulator:\udcff"], r"architecture is '\udcff'"),
    (["demo", "--output", ""], "the suffix is ''"),
    (["demo", "--output", "no such/plot.png"], "no such is not a directory"),
    (["demo", "--output", "\0.png"], "embedded null"),
    ([*CHECK, "--limit", "nan"], "--limit is nan: expected seconds, more than 0 and at most 1e+06"),
    ([*CHECK, "--limit", "1e300"], "--limit is 1e+300: expected seconds"),
    ([*CHECK, "--limit", "inf"], "--limit is inf: expected seconds"),
    ([*CHECK, "--golden", ""], "expected a name that ends in .npz"),
    ([*CHECK, "--golden", "answers.txt"], "expected a name that ends in .npz"),
    ([*CHECK, "--skip", ""], "no check is left"),
    ([*BENCH, "--out", ""], ". is not a regular file"),
    ([*BENCH, "--out", os.devnull], f"{os.devnull} is not a regular file"),
    ([*BENCH, "--out", "\0"], "embedded null"),
    ([*BENCH, "--out", "x" * 300], "File name too long"),
    ([*BENCH, "--out", "x", "--minutes=-inf"], "--minutes is -inf"),
    ([*TUNE, "--out", "/"], "/ is not a regular file"),
    ([*TUNE, "--out", os.devnull], f"{os.devnull} is not a regular file"),  # which a rename would replace
    ([*TUNE, "--out", "x" * 300], "File name too long"),
    *(([name, "--backend", "\udcff"], r"--backend is '\udcff'") for name in ("bench", "check", "tune")),
], ids=ascii)  # fmt: skip
def test_a_mistake_is_told_in_a_line(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(f"cupy_flash {arguments[0]}: ") and message in printed.err
    assert printed.err.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [
    explain("1,4,8,8,64", "--heads-k", "0"), explain("1,4,8,8,64", "--heads-k", "-1"),
    explain("1,4,8,8,64", "--head-dim-v", "0"), explain("1,4,8,8,64", "--head-dim-v", "x"),
    ["demo", "--seqlens", "9" * 5000], ["demo", "--seqlens", "²"], ["demo", "--seqlens", "inf"],
    [*BENCH, "--minutes", ""], [*TUNE, "--most", "1.5"], [*CHECK, "--limit", ""],
], ids=lambda arguments: " ".join(arguments)[:60])  # fmt: skip
def test_what_is_no_number_shows_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2 and f"usage: cupy_flash {arguments[0]}" in capsys.readouterr().err


@pytest.mark.parametrize("heads", [2**10, 400_000, 2**31 - 1])
def test_many_heads_of_a_key_head_leave_a_problem_to_count(heads):
    q, k = (np.broadcast_to(np.float16(0), (1, h, 8, 64)) for h in (heads, 1))
    parser = argparse.ArgumentParser()
    explain_command.add_arguments(parser)
    args = parser.parse_args(["--shape", f"1,{heads},8,8,64", "--heads-k", "1"])
    small = explain_command._reduced(AttentionProblem.from_arrays(q, k, k), args)
    pairs = small.num_heads_q * small.seqlen_q * small.seqlen_k
    assert (small.num_heads_q, small.seqlen_q, small.seqlen_k) == (256, 8, 8)
    assert pairs <= explain_command.EMULATED_PAIRS


@pytest.mark.parametrize("variable", ["CUPY_FLASH_CPU_TIER", "CUPY_FLASH_NUM_THREADS"])
def test_a_misspelt_variable_is_told_in_a_line(variable, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv(variable, "many")
    assert main(["demo", "--backend", "cpu", "--output", str(tmp_path / "plot.png")]) == 1
    assert capsys.readouterr().err.startswith(f"cupy_flash demo: {variable} is 'many'")


def test_lengths_that_do_not_fit_are_not_tried(monkeypatch):
    """Their inputs alone would take the machine."""
    case = measure.Case("flash", "cpu", "float32", 2**20, demo.HEADS, demo.HEAD_DIM)
    monkeypatch.setattr(measure, "ProcessPoolExecutor", None)
    monkeypatch.setattr(measure, "available_bytes", lambda backend: 2**20 * demo.HEADS * demo.HEAD_DIM * 8)
    assert measure.measure_apart(case) is None


@pytest.mark.parametrize(("name", "content", "arguments", "message"), [
    ("b.csv", b"\xff\xfe\0", BENCH, "is no file of results: 'utf-8' codec"),
    ("b.csv", b"a,b\n", BENCH, "has other columns"),
    ("t.json", b"\xff\xfe\0", TUNE, "is no table of tiles"),
    ("t.json", b"{]", TUNE, "is no table of tiles"),
])  # fmt: skip
def test_other_files_are_left_alone(name, content, arguments, message, tmp_path, capsys):
    path = tmp_path / name
    path.write_bytes(content)
    assert main([*arguments, "--out", str(path)]) == 1
    assert message in capsys.readouterr().err and path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


# Statuses.


@pytest.mark.parametrize(("error", "status", "told"), [
    (None, 0, ""), (UserError("what to put right"), 1, "cupy_flash info: what to put right\n"),
    (Unavailable("no GPU"), 2, "cupy_flash info: no GPU\n"), (KeyboardInterrupt(), 130, ""),
    (BrokenPipeError(), 141, ""),
    (OSError(28, "No space left", "a file"), 1, "cupy_flash info: [Errno 28] No space left: 'a file'\n"),
], ids=lambda x: type(x).__name__)  # fmt: skip
def test_a_status_says_how_a_command_ended(error, status, told, monkeypatch, capsys):
    def run(args):
        print("begun")
        if error:
            raise error

    monkeypatch.setattr(COMMANDS["info"], "run", run)
    assert main(["info"]) == status
    assert capsys.readouterr() == ("begun\n", told)


def test_other_errors_are_faults_of_ours_and_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(COMMANDS["info"], "run", lambda args: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        main(["info"])


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0 and capsys.readouterr() == (f"cupy_flash {cupy_flash.__version__}\n", "")


ENDED = """
import os, runpy, signal, sys
from cupy_flash._src.cli import info

def run(args):
    print("what was found")
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    finally:
        print("is written", file=sys.stderr)

info.run = run
sys.argv = ["cupy_flash", "info"]
runpy.run_module("cupy_flash", run_name="__main__")
"""


def test_a_command_that_is_ended_writes_what_it_has():
    environment = processes.environment({})
    done = subprocess.run([sys.executable, "-c", ENDED], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (143, "what was found\n", "is written\n")


# Outputs.


def test_checking_an_output_changes_nothing(tmp_path):
    kept, link = tmp_path / "kept", tmp_path / "link"
    kept.write_text("content")
    os.utime(kept, (1, 1))
    link.symlink_to(tmp_path / "target")
    check_output(kept, link, tmp_path / "new")
    assert kept.read_text() == "content" and kept.stat().st_mtime == 1
    assert sorted(tmp_path.iterdir()) == [kept, link] and link.is_symlink() and not link.exists()


def test_outputs_that_cannot_be_written_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a reader
    for path, reason in {
        tmp_path: f"{tmp_path} is not a regular file",
        tmp_path / "pipe": f"{tmp_path / 'pipe'} is not a regular file",
        tmp_path / "none" / "file": f"{tmp_path / 'none'} is not a directory",
        tmp_path / ("x" * 300): f"cannot write {tmp_path}/x*: File name too long",
    }.items():
        with pytest.raises(UserError, match=f"^{reason}$"):
            check_output(path)


def test_permissions_are_found_by_trying(tmp_path):
    (tmp_path / "file").touch(mode=0o400)
    tmp_path.chmod(0o500)
    code = (
        "import sys\nfrom pathlib import Path\nfrom cupy_flash._src.cli import UserError\n"
        "from cupy_flash._src.cli.arguments import check_output\nfor name in ('file', 'new'):\n"
        "    try: check_output(Path(sys.argv[1], name))\n    except UserError as error: print(error)"
    )
    out, _ = python(AS_A_USER + code, tmp_path)
    tmp_path.chmod(0o700)
    assert out.splitlines() == [f"cannot write {tmp_path / x}: Permission denied" for x in ("file", "new")]


@pytest.mark.parametrize(("name", "arguments"), [
    ("plot.png", ["demo", "--output"]), ("answers.npz", [*CHECK, "--golden"]), ("results.csv", [*BENCH, "--out"]),
    ("results-decode.png", [*BENCH, "--out"]), ("table.json", [*TUNE, "--out"]), ("own.json", TUNE),
])  # fmt: skip
def test_outputs_are_checked_before_the_work(name, arguments, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(tuning, "own_table", lambda arch: tmp_path / "own.json")
    monkeypatch.setattr("cupy_flash._src.cli.tune.check_measured", lambda backend, out: None)  # to its default table
    blocked = tmp_path / name
    blocked.mkdir()
    if name != "own.json":
        arguments = [*arguments, str(tmp_path / name.replace("-decode.png", ".csv"))]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert str(blocked) in printed.err and printed.err.count("\n") == 1
    assert "[" not in printed.out and "|" not in printed.out and list(tmp_path.iterdir()) == [blocked]


def refuse(*args, **kwargs):
    raise OSError(28, "No space left on device")


def test_a_plot_on_a_full_disk_comes_after_the_figures(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(demo, "measure_apart", lambda case: measure.Cost(1.0, 1000, 48, 0.0))
    monkeypatch.setattr(demo, "_show_agreement", lambda dtype, seqlen: None)
    monkeypatch.setattr(demo, "plot_memory", refuse)
    path = tmp_path / "plot.png"
    assert main(["demo", "--backend", "cpu", "--seqlens", "48", "--output", str(path)]) == 1
    printed = capsys.readouterr()
    assert re.search(r"^ +48 +1 s +1 s ", printed.out, flags=re.MULTILINE)
    assert printed.err == f"cupy_flash demo: cannot write {path}: No space left on device\n"


def test_bench_on_a_full_disk_prints_what_it_measured(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.csv"
    case = Case("decode", "float16", 1, 1, 1, 1, 32, 64, False)
    monkeypatch.setattr("cupy_flash._src.cli.bench.cases", lambda dtype, quick: [case])
    monkeypatch.setattr(books.os, "fsync", lambda file: refuse() if len(path.read_text().splitlines()) > 3 else None)
    assert main(["bench", "--backend", "emulator:sm_80", "--methods", "cupy_flash", "--out", str(path)]) == 1
    printed = capsys.readouterr()
    assert "float16 matmul of 64 and copy" in printed.out and "| 32 " in printed.out
    assert printed.err.endswith(f"cupy_flash bench: cannot write {path}: No space left on device\n")


def test_tune_on_a_full_disk_prints_what_it_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(search, "Expected", lambda case, x: types.SimpleNamespace(error=lambda bound, x: 0.0))
    monkeypatch.setattr(search.Searcher, "trial", lambda self, tile: search.Trial(tile, 1.0))
    monkeypatch.setattr(tuning, "write_table", refuse)
    path = tmp_path / "table.json"
    assert main([*TUNE, "--minutes", "9", "--most", "0", "--out", str(path)]) == 1
    printed = capsys.readouterr()
    assert "| dq | 64 | False |" in printed.out
    assert printed.err == f"cupy_flash tune: cannot write {path}: No space left on device\n"


def test_an_error_without_a_reason_of_the_system_is_told():
    with pytest.raises(UserError, match=r"^cannot write plot\.webp: encoder error -2$"), writing(Path("plot.webp")):
        raise OSError("encoder error -2")


# Standard streams.


@pytest.mark.parametrize(("arguments", "unbuffered"), [(["info"], ""), (["info"], "1"), (["--help"], "")])
def test_a_reader_that_has_left_ends_a_command_quietly(arguments, unbuffered):
    """Found at the first line or, where that waits in a buffer, at the end."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "cupy_flash", *arguments], cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_for_standard_output_is_an_error():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = command("info", shell="> /dev/full")
    assert (done.returncode, done.stderr) == (1, b"cupy_flash info: [Errno 28] No space left on device\n")


@pytest.mark.parametrize(("arguments", "status", "closed"), [
    (["info"], 0, ">&-"), (["info"], 0, "2>&-"), (explain(""), 1, ">&-"), (explain(""), 1, "<&- >&- 2>&-"),
])  # fmt: skip
def test_closed_streams_are_no_error(arguments, status, closed):
    done = command(*arguments, shell=closed)
    assert done.returncode == status and b"Traceback" not in done.stdout + done.stderr
    assert bool(done.stdout) == (closed == "2>&-" and status == 0)
    assert bool(done.stderr) == (closed == ">&-" and status == 1)


def test_paths_that_are_no_text_are_told(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.csv"
    done = command(*BENCH, "--out", path, PYTHONIOENCODING="utf-8")
    assert done.returncode == 0 and rb"/\udcff.csv" in done.stdout and os.path.exists(path)


# Terminals.


class Terminal:
    """Stands for standard error."""

    def __init__(self, is_one=True):
        self.isatty, self.written = lambda: is_one, ""

    def write(self, text):
        self.written += text

    def flush(self):
        pass


@pytest.mark.parametrize(("stream", "term", "drawn"), [
    (Terminal(), "xterm", True), (Terminal(), "dumb", False), (Terminal(is_one=False), "xterm", False),
    (None, "xterm", False),
])  # fmt: skip
def test_bars_are_for_terminals(stream, term, drawn, monkeypatch, capsys):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", term)
    with progress.progress("job", 3) as bar:
        bar.set_description("step")
        bar.update()
        bar.write("a row")
    assert ("step: " in getattr(stream, "written", "")) == drawn
    assert drawn or not getattr(stream, "written", "")
    assert capsys.readouterr().out == "a row\n"


def test_without_tqdm_there_is_no_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress("job", 3) as bar:
        bar.write("a row")
        bar.update()
    assert terminal.written == "" and capsys.readouterr().out == "a row\n"


def on_terminal(*arguments, **environment):
    """What a command writes to a terminal that is its standard output and standard error."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", "cupy_flash", *arguments], cwd=ROOT, env=environment, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            read = os.read(ours, 4096)
        except OSError:  # Linux tells so that the other end was closed
            break
        if not read:
            break
        written += read
    os.close(ours)
    return process.wait(), written


SHOWN = [["info"], ["--help"], explain("0"), [*BENCH, "--out"]]


@pytest.mark.parametrize("arguments", SHOWN, ids=lambda arguments: " ".join(arguments[:3]))
def test_no_escape_sequences_where_there_is_no_terminal(arguments, tmp_path):
    done = command(*arguments, *[str(tmp_path / "b.csv")][: "--out" in arguments], TERM="xterm-256color")
    assert done.stdout + done.stderr and ESCAPE not in done.stdout + done.stderr and b"\r" not in done.stderr


@pytest.mark.parametrize("arguments", SHOWN, ids=lambda arguments: " ".join(arguments[:3]))
def test_no_colour_on_a_terminal_that_asks_for_none(arguments, tmp_path):
    status, written = on_terminal(
        *arguments, *[str(tmp_path / "b.csv")][: "--out" in arguments], NO_COLOR="1", TERM="xterm-256color"
    )
    assert status == (1 if "0" in arguments else 0)
    assert written and not COLOUR.search(written)
