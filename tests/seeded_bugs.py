"""Plant the bugs of tests/bugs one by one, in copies side by side of the repository, and run what must notice them.

    python tests/seeded_bugs.py                       all
    python tests/seeded_bugs.py cuda_src/mma plan.py  those whose file or description contains a word
    python tests/seeded_bugs.py --random 15           some

Without a bug these tests must pass, which is tried first and fills the cache of kernels. Each bug then has a copy of
that cache, so that nothing of it is found again. Prints what became of each bug and a table; the exit status is 0 if
each was caught and none of the equivalent ones was.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bugs import Bug, all_bugs

from cupy_flash._src.cli.arguments import positive_int

ROOT = Path(__file__).parents[1]
# Of pytest: 1 is a failed test; below 0, a process that a signal ended. Others say that the tests were not run.
FAILED, PASSED = 1, 0
SECONDS_A_TEST, SECONDS_A_BUG = 120, 300
TRIES = 2  # a bug among threads may pass by once


def main() -> int:
    args = parse()
    chosen = [
        bug for bug in all_bugs() if not args.words or any(word in f"{bug.file}: {bug.what}" for word in args.words)
    ]
    if args.random is not None:
        seed = random.randrange(2**32) if args.seed is None else args.seed
        print(f"{args.random} of {len(chosen)} bugs, --seed {seed}")
        chosen = random.Random(seed).sample(chosen, min(args.random, len(chosen)))
    if not chosen:
        raise SystemExit(f"no bugs whose file or description contains {' or '.join(args.words)}")
    with tempfile.TemporaryDirectory() as folder:
        work, cache = (
            Path(folder),
            Path(os.environ.get("CUPY_FLASH_CACHE_DIR", f"{folder}/cache")).expanduser().resolve(),
        )
        cache.mkdir(parents=True, exist_ok=True)
        trees = queue.SimpleQueue()
        for i in range(args.jobs):
            trees.put(copy_tree(work / f"tree{i}"))
        unharmed(trees, cache, sorted({test for bug in chosen for test in bug.noticed_by}), args.jobs)

        def tried(bug: Bug) -> str:
            tree = trees.get()
            start = time.monotonic()
            outcome, output = try_bug(bug, tree, cache)
            trees.put(tree)
            print(f"{outcome:<10} {time.monotonic() - start:5.1f} s  {bug.file}: {bug.what}", flush=True)
            if outcome == "broken" or (args.verbose and outcome != expected(bug)):
                print(output, flush=True)
            return outcome

        with ThreadPoolExecutor(args.jobs) as pool:
            outcomes = list(pool.map(tried, chosen))
    report(chosen, outcomes)
    return int(any(outcome != expected(bug) for bug, outcome in zip(chosen, outcomes, strict=True)))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="only bugs whose file or description contains one of these")
    parser.add_argument("--random", type=positive_int, metavar="N", help="only N of them")
    parser.add_argument("--seed", type=int, help="of the choice (default: another each time)")
    parser.add_argument(
        "--jobs", type=positive_int, default=os.cpu_count() or 1, help="copies side by side (default: CPUs)"
    )
    parser.add_argument("--verbose", action="store_true", help="print what pytest says where a bug survives")
    return parser.parse_args()


def copy_tree(to: Path) -> Path:
    """The repository as a checkout has it."""
    made = shutil.ignore_patterns(
        ".git", ".venv*", "__pycache__", "*.egg-info", ".*_cache", ".hypothesis", "build", "dist"
    )
    return shutil.copytree(ROOT, to, ignore=made)


def unharmed(trees: queue.SimpleQueue, cache: Path, tests: list[str], jobs: int) -> None:
    """Stop unless the tests pass without a bug; fills the cache."""
    tree = trees.get()
    status, output = run(tree, cache, tests, "-n", str(min(jobs, len(tests))), seconds=None)
    trees.put(tree)
    if status != PASSED:
        raise SystemExit(f"{output}\nwithout any bug the tests do not pass")


def expected(bug: Bug) -> str:
    return "equivalent" if bug.equivalent else "caught"


def try_bug(bug: Bug, tree: Path, cache: Path) -> tuple[str, str]:
    """What became of a bug, and what pytest said."""
    file = tree / bug.file
    text = file.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        return "broken", f"{bug.old!r} stands {text.count(bug.old)} times in {bug.file}, not once"
    with tempfile.TemporaryDirectory(dir=tree.parent) as folder:
        own = Path(folder) / "cache"
        shutil.copytree(cache, own, copy_function=link, dirs_exist_ok=True)
        try:
            file.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
            for _ in range(TRIES):
                status, output = run(tree, own, bug.noticed_by, "-x", "-n", "0", seconds=SECONDS_A_BUG)
                if status != PASSED:
                    break
        finally:
            file.write_text(text, encoding="utf-8")
    if status == PASSED:
        return ("equivalent" if bug.equivalent else "survived"), output
    return ("caught" if status == FAILED or status < 0 else "broken"), output


def link(source: str, to: str) -> None:
    """Files of the cache are replaced, never written to: a second name is a copy."""
    try:
        os.link(source, to)
    except OSError:
        shutil.copy2(source, to)


def run(
    tree: Path, cache: Path, tests: tuple[str, ...] | list[str], *options: str, seconds: float | None
) -> tuple[int, str]:
    """Status and output of pytest on some tests of a copy; failed, if there is a limit and they take longer."""
    environment = os.environ | {
        "CUPY_FLASH_CACHE_DIR": str(cache),
        "HYPOTHESIS_PROFILE": "unshrunk",
        "PYTHONPATH": str(tree),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--timeout={SECONDS_A_TEST}"]
    command += ["-o", "addopts=--doctest-modules --strict-markers", "-m", "not slow", *options, *tests]
    # In a session of their own, whose end is that of all that the tests have started.
    with subprocess.Popen(
        command, cwd=tree, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", start_new_session=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            return FAILED, f"no end in {error.timeout:g} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


def report(bugs: list[Bug], outcomes: list[str]) -> None:
    """A line for each folder, and what was not as expected."""
    columns = ("caught", "equivalent", "survived", "broken")
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for bug, outcome in zip(bugs, outcomes, strict=True):
        for row in (str(Path(bug.file).parent), "all"):
            counts[row][outcome] += 1
    print(f"\n{'':<40}{'seeded':>8}" + "".join(f"{column:>12}" for column in columns))
    for row in sorted(counts, key=lambda row: (row == "all", row)):
        print(f"{row:<40}{counts[row].total():>8}" + "".join(f"{counts[row][column]:>12}" for column in columns))
    for bug, outcome in zip(bugs, outcomes, strict=True):
        if outcome == "equivalent":
            print(f"equivalent: {bug.file}: {bug.what}: {bug.equivalent}")
        if outcome != expected(bug):
            print(f"{outcome}, not {expected(bug)}: {bug.file}: {bug.what}")


if __name__ == "__main__":
    sys.exit(main())
