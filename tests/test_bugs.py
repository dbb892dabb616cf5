"""The rules of tests/bugs: bugs for every source file, of text that stands in it once, for tests that exist."""

import ast
import collections
import functools
import re
from pathlib import Path

import pytest
from bugs import UNSEEDED, all_bugs

ROOT = Path(__file__).parents[1]
BUGS = all_bugs()


def source_files():
    """Files of cuda_src and cupy_flash that say anything: more than a docstring or includes."""
    for path in sorted(p for folder in ("cuda_src", "cupy_flash") for p in (ROOT / folder).rglob("*")):
        if path.suffix == ".py" and len(ast.parse(path.read_text(encoding="utf-8")).body) > 1:
            yield str(path.relative_to(ROOT))
        elif path.suffix in (".cu", ".cuh", ".h", ".cpp"):
            yield str(path.relative_to(ROOT))


@functools.cache
def functions(file):
    """Names of a test file's functions, and of a module's for doctests."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_every_source_file_has_two_bugs_or_a_reason():
    counts = collections.Counter(bug.file for bug in BUGS)
    few = {file for file in source_files() if counts[file] < 2}
    assert few == set(UNSEEDED)
    assert all(len(reason) > 20 for reason in UNSEEDED.values())


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}: {bug.what}")
def test_a_bug_can_be_planted_and_its_tests_exist(bug):
    text = (ROOT / bug.file).read_text(encoding="utf-8")
    assert text.count(bug.old) == 1 and bug.old != bug.new
    assert bug.noticed_by
    for test in bug.noticed_by:
        file, _, function = test.partition("::")
        if function:
            assert re.match(r"[\w.]+", function)[0].rpartition(".")[2] in functions(file), test
        else:
            assert (ROOT / file).is_file(), test


def test_no_bug_is_listed_twice():
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
    assert len({(bug.file, bug.what) for bug in BUGS}) == len(BUGS)
