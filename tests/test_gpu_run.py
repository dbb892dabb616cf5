"""benchmarks/gpu_run.sh: what fails, hangs or crashes costs no other step its result."""

import csv
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu_run.sh"
# Stands for Python: three steps go wrong, each in its own way, the others say what they were asked.
INTERPRETER = """\
#!/usr/bin/env bash
case "$*" in
  *"check "*"--only smoke"*) echo "1 of 6 checks failed: smoke: mma float16"; exit 1 ;;
  *"check "*"--only primitive"*) echo "recording"; sleep 1000 ;;
  *"check "*"--skip"*) echo "half way"; kill -SEGV $$ ;;
  *) echo "asked: $*" ;;
esac
"""


def run(tmp_path, *arguments, seconds=20, interpreter=INTERPRETER):
    """The script's exit status, what it printed, and its steps by name."""
    python = tmp_path / "python"
    python.write_text(interpreter)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "SECONDS_IN_ALL": str(seconds)}
    done = subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=120
    )
    steps = {}
    if arguments and (Path(arguments[0]) / "steps.tsv").exists():
        with (Path(arguments[0]) / "steps.tsv").open(newline="") as file:
            steps = {row[0]: row[1:] for row in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    return done, steps


def test_what_goes_wrong_costs_no_other_step(tmp_path):
    out = tmp_path / "out"
    done, steps = run(tmp_path, out)
    assert done.returncode == 1
    assert steps["smoke"][0] == "failed" and "smoke: mma float16" in steps["smoke"][2]
    assert steps["golden"][0].startswith("stopped after") and steps["golden"][2] == "recording"
    assert steps["check"][0] == "crashed, signal 11" and steps["check"][2] == "half way"
    for name in ("compile", "bench", "pytest"):
        assert steps[name][0] == "ok" and steps[name][2].startswith("asked: "), steps[name]
    assert list(steps)[:4] == ["versions", "compile", "smoke", "golden"]
    # Each has its log, and one file holds them all.
    assert (out / "golden.log").read_text() == "recording\n"
    with tarfile.open(out / "results.tgz") as packed:
        assert {f"{name}.log" for name in steps} | {"steps.tsv"} <= set(packed.getnames())
    # The table ends the output, a line a step.
    printed = done.stdout.splitlines()
    table = printed[next(i for i, line in enumerate(printed) if line.startswith("step ")) :]
    assert [line.split()[0] for line in table[1:-1]] == list(steps)
    assert "bytes in" in table[-1]


def test_tools_that_are_missing_are_no_failure(tmp_path):
    """Of a machine with none: an interpreter that lets every step pass, and a PATH with no such tool."""
    done, steps = run(tmp_path, tmp_path / "out", interpreter='#!/usr/bin/env bash\necho "asked: $*"\n')
    if any(steps[name][0] == "ok" for name in ("memcheck", "ncu")):
        pytest.skip("this machine has CUDA's tools")
    tools = [f"{tool}{of}" for tool in ("memcheck", "racecheck", "synccheck") for of in ("", "-learned")]
    assert {steps[name][0] for name in (*tools, "ncu")} == {"not installed"}
    assert done.returncode == 0


def test_tools_watch_the_gradients_of_options_too(tmp_path, monkeypatch):
    says_what_it_is_asked = '#!/usr/bin/env bash\necho "asked: $*"\n'
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(says_what_it_is_asked)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    _, steps = run(tmp_path, tmp_path / "out", interpreter=says_what_it_is_asked)
    for name in ("memcheck", "racecheck", "synccheck"):
        plain, learned = ((tmp_path / "out" / f"{name}{of}.log").read_text() for of in ("", "-learned"))
        assert steps[name][0] == steps[f"{name}-learned"][0] == "ok"
        assert f"--tool {name} " in plain and f"--tool {name} " in learned
        assert "--bias --sinks --wrt q k v bias sinks" in learned and "--bias" not in plain


def test_the_whole_has_an_end(tmp_path):
    done, steps = run(tmp_path, tmp_path / "out", seconds=3, interpreter="#!/usr/bin/env bash\nsleep 1000\n")
    assert done.returncode == 1
    assert steps["pytest"][0] == "no time left" and steps["ncu"][0] == "no time left"


def test_the_backend_reaches_every_step(tmp_path):
    _, steps = run(
        tmp_path, tmp_path / "out", "--backend", "emulator:sm_90a",
        interpreter='#!/usr/bin/env bash\necho "asked: $*"\n',
    )  # fmt: skip
    assert "--arch sm_90a" in steps["compile"][2]
    for name in ("smoke", "golden", "check", "bench"):
        assert "--backend emulator:sm_90a" in steps[name][2]


@pytest.mark.parametrize("arguments", [(), ("out", "--backend"), ("out", "--fast", "cuda")])
def test_malformed_calls_are_refused(tmp_path, arguments):
    done, steps = run(tmp_path, *arguments)
    assert done.returncode == 2 and "usage:" in done.stderr and not steps
