"""The rules of tests/bugs: bugs for every source file, of text that stands in it once, for tests that exist."""

import ast
import collections
import functools
import re
from pathlib import Path

import pytest
import seeded_bugs
import test_kernels
import test_mma
from bugs import UNSEEDED, Bug, all_bugs

ROOT = Path(__file__).parents[1]
BUGS = all_bugs()


def source_files():
    """Files of cuda_src and cupy_flash but Python files without more than a docstring."""
    for path in sorted(p for folder in ("cuda_src", "cupy_flash") for p in (ROOT / folder).rglob("*")):
        says_something = path.suffix == ".py" and len(ast.parse(path.read_text(encoding="utf-8")).body) > 1
        if says_something or path.suffix in (".cu", ".cuh", ".h", ".cpp"):
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


@pytest.mark.parametrize("mutants", [test_kernels.MUTANTS, test_mma.MUTANTS], ids=["simt", "mma"])
def test_what_slow_tests_mutate_stands_once(mutants):
    for name, (file, old, new, _) in mutants.items():
        text = (ROOT / "cuda_src" / file).read_text(encoding="utf-8")
        assert text.count(old) == 1 and old != new, name


def test_no_bug_is_listed_twice():
    assert len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
    assert len({(bug.file, bug.what) for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize(("statuses", "equivalent", "outcome"), [
    ([1], "", "caught"), ([0, 1], "", "caught"), ([-11], "", "caught"), ([0, 0], "", "survived"),
    ([0, 0], "reason", "equivalent"), ([1], "reason", "caught"), ([4], "", "broken"), ([5], "", "broken"),
])  # fmt: skip
def test_what_became_of_a_bug(statuses, equivalent, outcome, tmp_path, monkeypatch):
    """Planted while the tests run, with a cache that is not the common one, and taken back."""
    file, cache, left = tmp_path / "tree" / "file.py", tmp_path / "cache", list(statuses)
    file.parent.mkdir(), cache.mkdir()
    file.write_text("a + b")

    def run(tree, own, *_, **__):
        assert (tree / "file.py").read_text() == "a - b" and own != cache
        (own / "compiled").touch()
        return left.pop(0), ""

    monkeypatch.setattr(seeded_bugs, "run", run)
    bug = Bug("file.py", "wrong sign", "+", "-", ("tests",), equivalent)
    assert seeded_bugs.try_bug(bug, file.parent, cache)[0] == outcome and not left
    assert file.read_text() == "a + b" and not list(cache.iterdir())


@pytest.mark.parametrize("words", [["--jobs", "0"], ["--random", "-1"], ["no such file"]])
def test_a_choice_of_nothing_is_refused(words, monkeypatch):
    monkeypatch.setattr("sys.argv", ["seeded_bugs.py", *words])
    with pytest.raises(SystemExit):
        seeded_bugs.main()
