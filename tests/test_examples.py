"""Plain pytest draws the same examples every time; a run of the slow tests draws others."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEST = """
from hypothesis import given, settings, strategies as st

@settings(max_examples=5)
@given(st.integers(0, 2**62))
def test_it(n):
    print("drawn", n)
"""


@pytest.mark.parametrize("ci", [None, pytest.param("true", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("marks", "same"), [((), True), pytest.param(("-m", "slow or hypothesis"), False, marks=pytest.mark.slow)]
)
def test_examples_are_drawn(marks, same, ci, tmp_path):
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())

    def draw():
        command = [
            sys.executable,
            "-m",
            "pytest",
            *["-q", "-s", "-n", "0", "-p", "no:cacheprovider", "test_it.py"],
            *marks,
        ]
        environment = {name: value for name, value in os.environ.items() if name != "HYPOTHESIS_PROFILE"}
        environment |= {"PYTHONPATH": str(ROOT)} | ({"CI": ci} if ci else {})
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return re.findall(r"drawn (\d+)", done.stdout)

    first, second = draw(), draw()
    assert len(first) == 5
    assert (first == second) == same
