"""Files of the cache: seen whole or not at all, nothing left of a write that fails, locks that end with their block."""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import resource
import signal
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from processes import start

from cupy_flash._src import cache
from cupy_flash._src.cache import files, places, room, trust

NAME, OTHER = "emulator/fast-0.so", "emulator/other-0.so"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    monkeypatch.delenv("CUPY_FLASH_CACHE_LIMIT", raising=False)
    monkeypatch.setattr(room, "_uses", uses := room._Uses())
    for name, nothing in (("_told", {}), ("_own", {}), ("_refusals", {})):
        monkeypatch.setattr(places, name, nothing)
    yield tmp_path / "cache"
    for file in uses._files.values():
        os.close(file)


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


# --- whole or not at all ---


def sealed(content):
    return hashlib.sha256(content).digest() + content


def whole(path):
    data = path.read_bytes()
    assert data[:32] == hashlib.sha256(data[32:]).digest(), f"{len(data)} bytes are seen of a file that is not whole"
    return len(data)


WRITER = f"""
import sys
import numpy as np
from cupy_flash._src import cache
from test_cache_files import sealed
rng = np.random.default_rng(1)
print("at work", flush=True)
for n in range(50):
    cache.store({NAME!r}, sealed(rng.bytes(int(rng.integers(3 * 10**5)))))
"""


def test_readers_that_never_stop_see_nothing_or_the_whole(folder):
    """While a process and a thread replace a file again and again; once it is there it stays."""
    stop, seen, failures = threading.Event(), [0, 0], []

    def read(reader):
        try:
            while not stop.is_set():
                size = cache.find(NAME, whole)
                assert size is not None or not seen[reader]
                seen[reader] += size is not None
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for reader in readers:
        reader.start()
    other, rng = start(WRITER), np.random.default_rng(0)
    assert other.stdout.readline()
    n = 0
    while n < 50 or (other.poll() is None and not failures):
        cache.store(NAME, sealed(rng.bytes(int(rng.integers(3 * 10**5)))))
        n += 1
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures and other.wait() == 0 and min(seen) > 10
    assert below(folder) == [NAME, "in-use"]


@contextlib.contextmanager
def full():
    """No file may grow beyond 1000 bytes: a write of more fails in its middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def failing(function, error):
    def fail(*args, **options):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files.os, function, fail)
        yield


FAILURES = {
    "full disk": (full, OSError),
    "no rename": (lambda: failing("replace", OSError(errno.EIO, "seeded")), OSError),
    "interrupt": (lambda: failing("replace", KeyboardInterrupt()), KeyboardInterrupt),
    "no new file": (lambda: failing("open", OSError(errno.EDQUOT, "seeded")), OSError),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_write_that_fails_leaves_all_as_it_was(failure, folder):
    context, error = FAILURES[failure]
    path = cache.store(NAME, b"before")
    files.write_atomically(new := path.with_name("new.so"), b"")
    new.unlink()
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for target in (path, new):
        with context(), pytest.raises(error):
            files.write_atomically(target, bytes(5000))
    assert below(folder) == [NAME, "in-use"] and path.read_bytes() == b"before"
    assert not opened or len(os.listdir("/proc/self/fd")) == opened
    files.write_atomically(path, b"after")
    assert path.read_bytes() == b"after"


def test_what_fits_nowhere_is_an_error_and_the_warning_names_the_folders(folder, tmp_path):
    with full(), pytest.warns(RuntimeWarning) as told:
        path = cache.store(NAME, bytes(1000))
        with pytest.raises(OSError, match="File too large"):
            cache.store(NAME, bytes(1001))
    assert path.is_relative_to(folder) and path.read_bytes() == bytes(1000)
    assert len(told) == 2, "where new files go next, and that they go nowhere for good"
    ends = [f"{tmp_path / 'users' / 'cupy_flash'}. Set", f"{places._own[os.getpid()]} until this process ends. Set"]
    for warning, end in zip((str(x.message) for x in told), ends, strict=True):
        assert f"puts nothing new into its cache {folder}: it cannot be written ([Errno 27] File too large" in warning
        assert f"New files go to {end}" in warning
    places._refusals[places._key(tmp_path / "users" / "cupy_flash" / "emulator")] = None  # it has room again
    path = cache.store(NAME, b"0")
    assert path == tmp_path / "users" / "cupy_flash" / NAME


KILLED = f"""
import os, signal, sys
from cupy_flash._src import cache
os.replace = lambda *_: (print("written", flush=True), signal.pause())
cache.store({NAME!r}, bytes(500))
"""


def test_what_a_killed_writer_left_is_never_found_and_goes_first(folder, monkeypatch):
    writer = start(KILLED)
    assert writer.stdout.readline()
    writer.kill()
    writer.wait()
    (left,) = (folder / "emulator").iterdir()
    assert cache.find(NAME, Path.read_bytes) is None
    os.utime(left, (1, 1))
    cache.store("emulator/fast-1.so", bytes(50))
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "100")
    room._uses._bytes.clear()  # as in another process, which uses neither
    os.close(room._uses._files.popitem()[1])
    room.make_room(folder)
    assert below(folder) == ["emulator/fast-1.so", "in-use"]


def test_the_first_file_that_is_whole_is_found(folder, tmp_path):
    """In the preferred folder, or else in the next; damage in one is no end of the search."""
    users = tmp_path / "users" / "cupy_flash"
    for place, content in ((folder, b"first"), (users, b"second")):
        files.write_atomically(place / NAME, content)
    places.refuse(folder, "emulator", OSError(errno.EROFS, "seeded"))

    def read(path):
        return path.read_bytes() or None

    assert cache.find(NAME, read) == b"first"
    (folder / NAME).write_bytes(b"")
    assert cache.find(NAME, read) == b"second"
    (folder / NAME).unlink()
    (folder / NAME).mkdir()
    assert cache.find(NAME, read) == b"second"
    (users / NAME).write_bytes(b"")
    assert cache.find(NAME, read) is None
    assert cache.folders("emulator") == [folder, users] and cache.folders("cpu") == [folder]


# --- locks ---


def test_a_lock_ends_with_its_block_whatever_ends_that(folder, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 10)
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for error in (ValueError, KeyboardInterrupt, None):
        with contextlib.ExitStack() as children:
            with contextlib.suppress(ValueError, KeyboardInterrupt), cache.lock(NAME), cache.lock(OTHER):
                assert below(folder) == ["emulator/fast-0.lock", "emulator/other-0.lock"]
                with open(folder / "emulator" / "fast-0.lock") as file, pytest.raises(BlockingIOError):
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                child = os.fork()
                if child == 0:  # has it not, and keeps nobody from it
                    signal.pause()
                children.callback(os.waitpid, child, 0)
                children.callback(os.kill, child, signal.SIGKILL)
                if error:
                    raise error
            assert below(folder) == [] and not files._held
            with cache.lock(NAME):
                pass
    assert not opened or len(os.listdir("/proc/self/fd")) == opened


def test_a_lock_whose_file_cannot_be_removed_ends_too(folder):
    with cache.lock(NAME):
        (path := folder / "emulator" / "fast-0.lock").unlink()
        path.mkdir()
    path.rmdir()
    with cache.lock(NAME):
        path.unlink()
    assert not files._held


def test_one_at_a_time_passes_a_lock(folder, monkeypatch):
    happened, inside, leave = [], threading.Event(), threading.Event()
    something = threading.Semaphore(0)

    def note(what):
        happened.append(what)
        something.release()

    def hold():
        with cache.lock(NAME):
            inside.set()
            leave.wait()
            happened.append("first leaves")

    def follow():
        with cache.lock(NAME):
            note("second enters")

    def sleep(seconds):
        if "second waits" not in happened:
            note("second waits")
        real(seconds)

    real = time.sleep
    monkeypatch.setattr(files, "time", types.SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    threads = [threading.Thread(target=hold), threading.Thread(target=follow)]
    threads[0].start()
    inside.wait()
    threads[1].start()
    something.acquire()
    leave.set()
    for thread in threads:
        thread.join()
    assert happened == ["second waits", "first leaves", "second enters"]


# --- room ---


def test_what_goes_is_what_the_definition_says(folder, monkeypatch):
    """The least recently used first, and no more than it takes to come from above the limit to 0.9 of it."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        facts = {}  # size, time of the last use, whether in use
        for n in range(rng.integers(1, 9)):
            top, name = rng.choice(room.FOLDERS), f"x-{n}"
            parts = [("so",), ("cubin", "json"), ("cubin", "0123.tmp")][rng.integers(3)]
            sizes, ages = rng.integers(1, 50, len(parts)), rng.permutation(100)[: len(parts)] * 10 + n
            for part, size, age in zip(parts, sizes, ages, strict=True):
                path = folder / top / "sub" / f"{name}.{part}"
                files.write_atomically(path, bytes(int(size)))
                os.utime(path, (10**9, 10**9 - int(age)))
            facts[f"{top}/sub/{name}"] = int(sizes.sum()), -int(ages.min()), bool(rng.integers(4) == 0)
        total = sum(size for size, _, _ in facts.values())
        limit = int(rng.integers(total // 2, total + 2))
        left, kept = total, set(facts)
        for name in sorted(facts, key=lambda name: facts[name][1]):
            if total > limit and left > 0.9 * limit and not facts[name][2]:
                kept.remove(name)
                left -= facts[name][0]
        users = room._Uses()  # of another process
        for name, (_, _, used) in facts.items():
            assert not used or users.hold(folder, room._byte(name))
        found = {entry.name: (entry.size, entry.used - 10**9) for entry in room.entries(folder)}
        assert found == {name: fact[:2] for name, fact in facts.items()}
        monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", str(limit))
        room.make_room(folder)
        assert {entry.name for entry in room.entries(folder)} == kept, (facts, limit)
        for file in users._files.values():
            os.close(file)
        monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "0")
        room.make_room(folder)
        assert not room.entries(folder)
        monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "none")


def test_the_time_of_a_use_is_noted_when_the_last_is_long_ago(folder):
    path = cache.store(NAME, b"0")
    for age, noted in ((0.5, False), (1.5, True), (-0.5, False)):
        then = time.time() - age * room.FRESH
        os.utime(path, (then, then))
        assert cache.find(NAME, lambda path: path) == path
        assert (abs(path.stat().st_mtime - then) > 1) == noted
        assert cache.find(NAME, lambda path: None) is None


def test_every_unit_of_the_limit(monkeypatch):
    for n, prefix in enumerate("kmgt", 1):
        for base, unit in ((1000, f"{prefix}b"), (1024, f"{prefix}ib")):
            for text in (f"3{unit}", f"3 {unit.upper()}", f"3.0{unit.capitalize()}"):
                monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", text)
                assert room.limit() == 3 * base**n, text
    for text in ("3b", "3 k", " 3", "3.kb", ".5kb", "NONE", "3kbb", "3  kb", "1" * 16):
        monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", text)
        with pytest.warns(RuntimeWarning, match=rf"CUPY_FLASH_CACHE_LIMIT is {re.escape(repr(text))}: .*; 2GB holds"):
            assert room.limit() == 2 * 10**9


# --- trust ---


def test_the_way_to_a_path_is_all_that_is_looked_at(tmp_path):
    here = Path(os.path.realpath(tmp_path))
    (here / "a" / "b").mkdir(parents=True)
    (here / "a" / "b" / "file").touch()
    (here / "up").symlink_to("a/b/../b")
    (here / "a" / "absolute").symlink_to(here / "up")
    for path, steps in {
        "a/b/file": ["a", "a/b", "a/b/file"],
        "a/../a/b": ["a", "a", "a/b"],
        "up/file": ["up", "a", "a/b", "a/b", "a/b/file"],
        "a/absolute/file": ["a", "a/absolute", "up", "a", "a/b", "a/b", "a/b/file"],
        "none": ["none"],
    }.items():
        found = [x for x in trust._steps(here / path) if x.is_relative_to(here) and x != here]
        assert found == [here / step for step in steps], path
    assert list(trust._steps(here / "a"))[:-1] == [*[*reversed(here.parents)][1:], here]
    for n in range(trust._MOST_LINKS + 1):
        (here / f"link{n}").symlink_to(f"link{n + 1}")
    assert list(trust._steps(here / "link1"))[-1] == here / f"link{trust._MOST_LINKS + 1}"
    with pytest.raises(OSError, match="link0") as raised:
        list(trust._steps(here / "link0"))
    assert raised.value.errno == errno.ELOOP


@pytest.mark.parametrize(("number", "name", "members", "private"), [
    (1000, "owner", [], True), (1000, "owner", ["owner"], True), (1000, "owner", ["owner", "other"], False),
    (1000, "owner", ["other"], False), (1000, "staff", [], False), (0, "owner", [], False),
    (1000, None, [], False),
])  # fmt: skip
def test_a_folder_of_ones_private_group_is_ones_own(number, name, members, private, folder, monkeypatch):
    """Many systems make homes writable by it; others than its owner could not write there."""

    def group(_):
        if name is None:
            raise KeyError("no such group")
        return types.SimpleNamespace(gr_gid=number, gr_name=name, gr_mem=members)

    path = cache.store(NAME, b"0")
    folder.parent.chmod(0o775)
    monkeypatch.setattr(trust, "grp", types.SimpleNamespace(getgrgid=group))
    monkeypatch.setattr(trust, "pwd", types.SimpleNamespace(getpwuid=lambda _: types.SimpleNamespace(pw_name="owner")))
    objection = trust.objection(path, folder)
    assert objection is None if private else f"others may replace what lies in {folder.parent}: chmod" in objection
    folder.parent.chmod(0o777)
    assert "others may replace" in trust.objection(path, folder)
    folder.parent.chmod(0o755)
    folder.chmod(0o775)
    assert f"{folder} is writable by others than its owner" in trust.objection(path, folder)


# --- a folder of this process alone ---

CHILD = """
import os, sys
from pathlib import Path
from cupy_flash._src import cache
first = cache.store("cpu/a-0.so", b"0")
child = os.fork()
second = cache.store("cpu/a-1.so", b"1")
assert cache.find("cpu/a-1.so", lambda path: path) == second
assert (cache.find("cpu/a-0.so", lambda path: path) == first) == bool(child), "the parent's goes with the parent"
assert second.is_relative_to(first.parent) == bool(child) and first.is_file()
if child:
    assert os.waitpid(child, 0)[1] == 0
    print(*os.listdir(os.environ["TMPDIR"]))
    assert first.is_file() and second.is_file()
else:
    sys.exit(0)
"""


def test_a_forked_child_has_its_own_folder_and_takes_it_along(tmp_path):
    where = dict.fromkeys(("CUPY_FLASH_CACHE_DIR", "XDG_CACHE_HOME"), os.devnull)
    (temporary := tmp_path / "temporary").mkdir()
    process = start(CHILD, TMPDIR=temporary, **where)
    out = process.communicate()[0]
    assert process.returncode == 0 and len(out.split()) == 1, "the child's went with it, the parent's is there"
    assert not list(temporary.iterdir())
