"""The cache on other people's machines: no home, nothing writable, no locks, foreign hands, forks, too little room."""

import errno
import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import AS_A_USER, ATTEND, python, start

from cupy_flash._src import cache, toolchain
from cupy_flash._src.backends import native
from cupy_flash._src.cache import files, places, room, trust
from cupy_flash._src.toolchain import compile_shared

ANSWER = 'extern "C" int answer() { return 42; }\n'
FLAGS = ("-O1", "-fPIC")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home of its own, and a cache that nothing has been seen of."""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    for name in ("CUPY_FLASH_CACHE_DIR", "XDG_CACHE_HOME", "CUPY_FLASH_CACHE_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(folder))
    for name, nothing in (("_told", {}), ("_own", {}), ("_refusals", {}), ("_absolute", {})):
        monkeypatch.setattr(places, name, nothing)
    return folder


def answer():
    return compile_shared(ANSWER, "answer", flags=FLAGS)


# --- where it is ---


def test_the_cache_is_where_the_environment_says(home, monkeypatch, tmp_path):
    assert cache.folder() == home / ".cache" / "cupy_flash"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert cache.folder() == home / ".cache" / "cupy_flash"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder() == tmp_path / "xdg" / "cupy_flash"
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", "~/mine")
    assert cache.folder() == home / "mine"


def nobody(*_):
    raise KeyError("no passwd entry")


@pytest.mark.parametrize("value", [None, "~nobody-of-this-name/cache", "/proc/nowhere", "x" * 5000, "/dev/null"])
def test_a_call_computes_whatever_the_environment_says(home, value, monkeypatch, recwarn):
    import pwd

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr(pwd, "getpwnam", nobody)
    if value is not None:
        monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", value)
    path = answer()
    assert answer() == path and path.is_file()
    (warning,) = recwarn.list
    assert "Set CUPY_FLASH_CACHE_DIR to a folder of your own" in str(warning.message)
    assert str(path.parents[1]) in str(warning.message)


@pytest.mark.slow
def test_attention_runs_without_a_home(tmp_path):
    code = "import pwd\ndef nobody(*_): raise KeyError\npwd.getpwuid = nobody\n" + ATTEND
    nothing = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "CUPY_FLASH_CACHE_DIR"))
    out, err = python(code, **nothing, TMPDIR=str(tmp_path))
    assert out.startswith("compiled C++")
    assert err.count("RuntimeWarning") == 1 and str(tmp_path) in err
    assert not list(tmp_path.iterdir()), "its own folder goes with it"


def test_a_relative_folder_stays_where_it_was(home, tmp_path, monkeypatch):
    (tmp_path / "first").mkdir()
    monkeypatch.chdir(tmp_path / "first")
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", "mine")
    path = answer()
    assert path.is_relative_to(tmp_path / "first" / "mine")
    monkeypatch.chdir(tmp_path)
    assert answer() == path
    assert not (tmp_path / "mine").exists()


ELSEWHERE = """
import os
import numpy as np
from cupy_flash import flash_attention
x = np.ones((1, 8, 16), np.float32)
os.mkdir("below")
flash_attention(x, x, x, backend="emulator")
os.chdir("below")
flash_attention(x, x, x, causal=True, backend="emulator")
print(*os.listdir())
"""


@pytest.mark.slow
def test_the_emulator_follows_no_change_of_folder(tmp_path):
    assert python(ELSEWHERE, cwd=tmp_path, CUPY_FLASH_CACHE_DIR="cache")[0] == "\n"


def test_folders_and_files_are_for_the_owner_to_write_and_for_all_to_read(home):
    before = os.umask(0o002)  # as where each user has a group
    try:
        path = answer()
    finally:
        os.umask(before)
    modes = {x.stat().st_mode & 0o777 for x in (path.parents[1], *path.parents[1].rglob("*"))}
    assert modes == {0o755, 0o644}


# --- filled before, and not to be written ---


@pytest.fixture
def filled(tmp_path):
    """A cache that holds the CPU backend, which nobody may write, and an empty one beside it."""
    folder, empty = tmp_path / "image", tmp_path / "users"
    (folder / "cpu").mkdir(parents=True)
    shutil.copy(native.compile_library(native.isa("float32")), folder / "cpu")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield {"CUPY_FLASH_CACHE_DIR": str(folder), "XDG_CACHE_HOME": str(empty)}
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


def test_what_a_cache_holds_is_used_though_it_cannot_be_written(filled, tmp_path):
    out, err = python(AS_A_USER + ATTEND, **filled, CXX="no-such-compiler")
    assert out.startswith("compiled C++")
    assert not err
    assert [x.name for x in (tmp_path / "users").rglob("*") if x.is_file()] == []


def test_only_what_is_new_goes_elsewhere(filled, tmp_path):
    code = (
        AS_A_USER + ATTEND + "from cupy_flash._src.toolchain import compile_shared\n"
        f"for _ in range(2): print(compile_shared({ANSWER!r}, 'answer', flags={FLAGS!r}))"
    )
    for warnings in (1, 0):
        out, err = python(code, **filled, CUPY_FLASH_CPU_TIER="native")
        first, second = map(Path, out.splitlines()[-2:])
        assert first == second and first.is_relative_to(tmp_path / "users" / "cupy_flash")
        assert err.count("RuntimeWarning") == warnings, "the second process finds it and has nothing to tell"
        assert "compiling the CPU backend" not in err
    assert filled["CUPY_FLASH_CACHE_DIR"] in python(code.replace("42", "43"), **filled)[1]


# --- file systems without locks ---


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL])
def test_without_locks_it_is_compiled_all_the_same(home, number, monkeypatch, recwarn):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    monkeypatch.setattr(files.fcntl, "lockf", refuse)
    assert answer().is_file() and answer() == answer()
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "1")
    room.make_room(cache.folder())
    assert answer().is_file(), "nothing is removed where nobody can tell what is in use"
    assert not recwarn.list


def test_a_lock_that_is_never_released_does_not_stop_others(home, monkeypatch):
    monkeypatch.setattr(files, "PATIENCE", 0.2)
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with cache.lock("emulator/x.so"):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait()
    with cache.lock("emulator/x.so"):
        leave.set()
    thread.join()
    assert not list(cache.folder().rglob("*.lock"))


# --- forks ---

FORK = f"""
import os, signal, sys, threading, time
from cupy_flash._src.toolchain import compile_shared

def make():
    print(compile_shared({ANSWER!r}, "answer", flags={FLAGS!r}), flush=True)
"""


@pytest.fixture
def slow_compiler(tmp_path):
    """A compiler that tells that it has begun, and goes on when it may."""
    real = " ".join(toolchain.find_compiler().command)
    script, begun, go = (tmp_path / name for name in ("slow", "begun", "go"))
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-c*) touch {begun}; while [ ! -e {go} ]; do sleep 0.05; done;; esac\n'
        f'exec {real} "$@"\n'
    )
    script.chmod(0o755)
    return script, begun, go


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("killed", [False, True])
def test_a_child_forked_while_a_thread_compiles_keeps_nobody_waiting(home, slow_compiler, tmp_path, killed):
    """Neither its parent nor another process, though it lives on, and though the parent be killed meanwhile."""
    script, begun, go = slow_compiler
    environment = {"CXX": str(script), "HOME": str(home)}
    parent = start(
        f"{FORK}threading.Thread(target=make).start()\nwhile not os.path.exists({str(begun)!r}): time.sleep(0.01)\n"
        "child = os.fork()\nif child == 0:\n    signal.pause()\nprint(child, flush=True)\n",
        **environment,
    )
    child = int(parent.stdout.readline())
    try:
        if killed:
            parent.kill()
        other = start(f"{FORK}make()", **environment)
        go.touch()
        assert other.wait(60) == 0
        assert parent.wait(60) == (-signal.SIGKILL if killed else 0)
    finally:
        os.kill(child, signal.SIGKILL)
    assert other.stdout.read().strip().endswith(".so")


FORKS = """
import os, signal, threading, time
parent = threading.Thread(target=work)
parent.start()
children = []
while parent.is_alive() and len(children) < MOST:
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        CHILD
        os._exit(0)
    children.append(child)
    time.sleep(PAUSE)
parent.join(60)
assert children and not parent.is_alive()
assert not any(os.waitpid(child, 0)[1] for child in children)
os._exit(0)
"""


def forks(setup, child, most, pause):
    """Fork at many moments of what a thread does, `work`; children do something, and nobody hangs."""
    python(setup + FORKS.replace("CHILD", child).replace("MOST", str(most)).replace("PAUSE", str(pause)))


def test_children_live_while_the_parent_starts_its_compiler(home):
    """They keep open whatever they have: pipes above all."""
    setup = f"from cupy_flash._src.toolchain import compile_shared\nwork = lambda: compile_shared({ANSWER!r}, 'answer')"
    forks(setup, "time.sleep(3)", most=100, pause=0.002)


CHILD_THAT_ENDS = """
maker = threading.Thread(target=make)
maker.start()
while not os.path.exists({begun!r}):
    time.sleep(0.01)
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
open({go!r}, "w").close()
"""


def test_a_child_that_ends_takes_nothing_of_its_parents_along(home, slow_compiler):
    """Not the folder that its parent's thread compiles in."""
    script, begun, go = map(str, slow_compiler)
    parent = start(FORK + CHILD_THAT_ENDS.format(begun=begun, go=go), CXX=script, HOME=str(home))
    assert parent.wait(60) == 0
    assert parent.stdout.read().strip().endswith(".so")


HANDLER = """
import os, signal, threading
from cupy_flash._src import forks
came, go = threading.Event(), threading.Event()

def hold():
    with forks.whole():
        came.set()
        go.wait()

def handler(*_):
    with forks.whole():
        go.set()

threading.Thread(target=hold).start()
came.wait()
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.2)
child = os.fork()
with forks.whole():
    if child == 0:
        os._exit(0)
print(os.waitpid(child, 0)[1])
"""


def test_a_handler_may_compute_while_its_thread_waits_to_fork(home):
    assert python(HANDLER)[0] == "0\n"


@pytest.mark.slow
def test_children_compute_though_forked_during_the_first_call(home):
    """Modules are imported then, and imports have locks."""
    setup = (
        "import numpy as np\nfrom cupy_flash import flash_attention\nx = np.ones((2, 8, 16), np.float32)\n"
        "def work(): assert np.allclose(flash_attention(x, x, x), 1)"
    )
    forks(setup, "work()", most=20, pause=0.02)


@pytest.mark.slow
def test_children_compile_kernels_though_forked_while_a_thread_does(home):
    pytest.importorskip("cupy", reason="NVRTC comes with the extra cuda13")
    setup = (
        "from cupy_flash._src.compile import text_to_cubin\n"
        "text = 'template <int N> struct S { static __device__ int f(int x) { return S<N - 1>::f(x * 3 + N); } };'\n"
        "text += 'template <> struct S<0> { static __device__ int f(int x) { return x; } };'\n"
        "text += 'extern \"C\" __global__ void k(int* p) { p[0] = S<150>::f(p[1]); }'\n"
        "def make(n): text_to_cubin(text + f'// {n}\\n', 'k.cu', 'k', 'sm_80')\n"
        "def work(): [make(n) for n in range(12)]"
    )
    forks(setup, "make(-1 - len(children))", most=12, pause=0.05)


# --- other people's hands ---


def test_only_what_its_owner_alone_could_write_is_loaded(home, recwarn):
    path = answer()
    assert not recwarn.list
    for changed in (path, path.parent, path.parents[1]):
        mode = changed.stat().st_mode
        for bit in (0o020, 0o002):
            changed.chmod(mode | bit)
            assert "is writable by others" in trust.objection(path, path.parents[1])
            assert cache.find("emulator/" + path.name, lambda p: p) is None
        changed.chmod(mode)
        assert cache.find("emulator/" + path.name, lambda p: p) == path
    told = [str(warning.message) for warning in recwarn.list]  # once of each
    assert len(told) == 3
    for text, changed in zip(told, (path, path.parent, path.parents[1]), strict=True):
        assert f"{changed} is writable by others" in text and f"chmod -R go-w {path.parents[1]}" in text


def test_a_folder_that_others_may_write_is_neither_read_nor_written(home, monkeypatch, tmp_path, recwarn):
    path = answer()
    monkeypatch.setenv("CUPY_FLASH_CACHE_DIR", str(path.parents[1]))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    path.parents[1].chmod(0o777)
    places._refusals.clear()
    before = {x: x.stat().st_mtime_ns for x in path.parents[1].rglob("*")}
    assert answer().is_relative_to(tmp_path / "users")
    assert {x: x.stat().st_mtime_ns for x in path.parents[1].rglob("*")} == before
    (warning,) = recwarn.list
    assert "is writable by others" in str(warning.message)


@pytest.fixture
def foreign(monkeypatch):
    """A function that makes a file or folder another user's."""
    if os.getuid() == 0:
        return lambda path: os.chown(path, 12345, -1)
    uid = os.getuid()

    def give(path):
        monkeypatch.setattr(os, "geteuid", lambda: uid + 1)  # to whom what is ours is another's

    return give


def test_anothers_folder_where_all_may_make_one_is_not_trusted(home, foreign, tmp_path):
    path = answer()
    folder = path.parents[1]
    foreign(folder), foreign(path), foreign(path.parent)
    assert trust.objection(path, folder) is None, "what a colleague or an administrator prepared is used"
    folder.parent.chmod(0o1777)
    assert "belongs to another user" in trust.objection(path, folder)
    folder.parent.chmod(0o777)
    assert "others may replace" in trust.objection(path, folder)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
def test_a_strangers_file_in_ones_own_folder_is_not_trusted(home, foreign):
    path = answer()
    foreign(path)
    assert "belongs to another user" in trust.objection(path, path.parents[1])


def test_a_link_is_judged_by_where_it_leads(home, tmp_path):
    path = answer()
    other = tmp_path / "other.so"
    shutil.copy(path, other)
    other.chmod(0o666)
    path.unlink()
    path.symlink_to(other)
    assert trust.objection(path, path.parents[1]) is not None


def test_a_link_of_ones_own_may_lead_to_the_cache(home, tmp_path):
    path = answer()
    (tmp_path / "link").symlink_to(path.parents[1])
    tmp_path.chmod(0o1777)
    assert trust.objection(tmp_path / "link" / "emulator" / path.name, tmp_path / "link") is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give links and folders away")
def test_who_made_the_way_to_the_cache_matters_too(home, tmp_path):
    """A link, whether or not all may make one there, and a folder above, in which its owner could replace the cache."""
    path = answer()
    folder, link = path.parents[1], tmp_path / "link"
    link.symlink_to(folder)
    os.chown(link, 12345, -1, follow_symlinks=False)
    for mode in (0o1777, 0o755):
        tmp_path.chmod(mode)
        assert "link belongs to another user" in trust.objection(link / "emulator" / path.name, link)
    os.chown(folder.parent, 12345, -1)
    assert f"{folder.parent} belongs to another user" in trust.objection(path, folder)


def test_links_that_lead_in_circles_lead_nowhere(home, tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError):
        trust.objection(tmp_path / "a", tmp_path)


def test_a_subfolder_that_others_may_write_gets_nothing_new(home, recwarn):
    path = answer()
    path.parent.chmod(0o777)
    places._refusals.clear()
    second = answer()
    assert not second.is_relative_to(path.parents[1])
    assert answer() == second, "it is found again"
    assert cache.store("cubin/sm_80/k-0.cubin", b"0").is_relative_to(path.parents[1])
    (warning,) = recwarn.list
    assert "is writable by others" in str(warning.message)


def test_a_process_that_becomes_another_user_looks_again(tmp_path):
    """As servers do that begin as root; and what can no longer be written is no reason to fail."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom cupy_flash._src import cache\n"
        "print(cache.store('cpu/a-0.so', b'0'))\n"
        f"Path(sys.argv[1], 'cpu').chmod(0o555)\n{AS_A_USER}\nprint(cache.store('cpu/a-1.so', b'1'))\n"
        "print(cache.store('cpu/a-2.so', b'2'))"
    )
    folders = {"CUPY_FLASH_CACHE_DIR": str(tmp_path / "first"), "XDG_CACHE_HOME": str(tmp_path / "second")}
    out, err = python(code, tmp_path / "first", **folders)
    assert [Path(line).relative_to(tmp_path).parts[0] for line in out.splitlines()] == ["first", "second", "second"]
    assert err.count("RuntimeWarning") == 1 and "puts nothing new into its cache" in err


# --- room ---


def fill(name, size, age):
    path = cache.store(name, bytes(size))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.fixture
def forget(home, monkeypatch):
    """A function that lets this process be another, which uses nothing of what is there."""

    def forget():
        for file in room._uses._files.values():
            os.close(file)
        monkeypatch.setattr(room, "_uses", room._Uses())

    monkeypatch.setattr(room, "_uses", room._Uses())
    yield forget
    forget()


def sizes():
    return {entry.name: entry.size for entry in room.entries(cache.folder())}


def test_what_was_used_last_stays(forget, monkeypatch):
    for n in range(10):
        fill(f"cubin/sm_80/k-{n}.cubin", 900, age=100 * n)
        fill(f"cubin/sm_80/k-{n}.json", 100, age=100 * n)
    fill("cpu/attention-0.so", 1000, age=350)
    own = cache.folder() / "tiles" / "sm_80.json"
    files.write_atomically(own, bytes(10**6))
    forget()
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "6kb")
    room.make_room(cache.folder())
    assert set(sizes()) == {"cpu/attention-0", *(f"cubin/sm_80/k-{n}" for n in range(4))}, "0.9 of the limit are kept"
    assert all(size == 1000 for size in sizes().values())
    assert own.is_file(), "measured tiles are no results of compilation"


def test_what_is_found_is_used_now(forget):
    old = 10 * room.FRESH
    path = fill("cubin/sm_80/k-0.cubin", 10, age=old)
    assert cache.find("cubin/sm_80/k-0.cubin", lambda p: p) == path
    assert time.time() - path.stat().st_mtime < old / 2


def test_nothing_in_use_is_removed(forget, monkeypatch):
    """By this process or by another, or by a forked child of one that has ended; what a dead process used is free."""
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "1")
    names = [f"emulator/fast-{n}.so" for n in range(4)]
    paths = [fill(name, 100, age=100) for name in names]
    forget()
    use = "import os, sys\nfrom cupy_flash._src import cache\nassert cache.find(sys.argv[1], lambda p: p)\n"
    wait = "print(os.getpid(), flush=True)\nsys.stdin.read()"
    child = "import time\nif os.fork(): os._exit(0)\ntime.sleep(0.2)\n"
    codes = (use + wait, use + child + wait, use + "print(0)")
    users = [start(code, name) for name, code in zip(names, codes, strict=False)]
    assert all(user.stdout.readline() for user in users)
    users[2].wait()
    assert cache.find(names[3], lambda p: p) == paths[3]
    room.make_room(cache.folder())
    assert [path.exists() for path in paths] == [True, True, False, True]
    for user in users:
        user.communicate("")
    wait_for(lambda: room.make_room(cache.folder()) or not paths[1].exists())
    assert [path.exists() for path in paths] == [False, False, False, True]
    forget()
    room.make_room(cache.folder())
    assert not sizes()


def test_storing_makes_room(forget, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "5 kB")
    for n in range(4 * cache._ROOM_EVERY):
        fill(f"emulator/fast-{n}.so", 1000, age=1000 - n)
        forget()
    assert sum(sizes().values()) <= 5000 + 1000 * cache._ROOM_EVERY
    assert f"emulator/fast-{n}" in sizes()


def test_what_killed_processes_left_behind_goes_too(forget, monkeypatch):
    fill("emulator/fast-0.so", 50, age=5)
    left = cache.folder() / "emulator" / "fast-1.0123.tmp"
    left.write_bytes(bytes(500))
    os.utime(left, (1, 1))
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "100")
    room.make_room(cache.folder())
    assert set(sizes()) == {"emulator/fast-0"}


def test_where_the_disk_is_full_the_rest_goes_elsewhere(home, tmp_path, monkeypatch, recwarn):
    full, write = home / ".cache" / "cupy_flash", files.write_atomically

    def write_elsewhere(path, content):
        if path.is_relative_to(full):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, content)

    monkeypatch.setattr(cache, "write_atomically", write_elsewhere)
    path = answer()
    assert path.is_file() and answer() == path
    (warning,) = recwarn.list
    assert "No space left on device" in str(warning.message) and str(path.parents[1]) in str(warning.message)


@pytest.mark.parametrize(("text", "size"), [
    ("1", 1), ("500MB", 500 * 10**6), ("1.5 gb", 1500 * 10**6), ("2GiB", 2**31), ("none", None), ("", 2 * 10**9),
])  # fmt: skip
def test_the_limit_is_read(text, size, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", text)
    assert room.limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "5XB", "1e9", "nan", "9" * 400, "\u0665MB"])
def test_a_limit_that_is_none_is_warned_of(text, monkeypatch):
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", text)
    with pytest.warns(RuntimeWarning, match="CUPY_FLASH_CACHE_LIMIT is .*: expected one like 500MB"):
        assert room.limit() == 2 * 10**9


def test_a_cache_of_two_names_is_one(forget, monkeypatch, tmp_path):
    path = fill("cubin/sm_80/k-0.cubin", 10, age=5)
    (tmp_path / "other").symlink_to(cache.folder())
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "1")
    room.make_room(tmp_path / "other")
    assert path.exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere locks of bytes belong to the process")
def test_reading_the_file_of_locks_lets_go_of_none(forget, monkeypatch):
    path = fill("cubin/sm_80/k-0.cubin", 10, age=5)
    (cache.folder() / "in-use").read_bytes()
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "1")
    code = "import pathlib, sys\nfrom cupy_flash._src.cache import room\nroom.make_room(pathlib.Path(sys.argv[1]))"
    python(code, cache.folder())
    assert path.exists()


def test_a_cache_cleared_by_hand_goes_on(forget, monkeypatch):
    """Its file of locks is another one then."""
    fill("cubin/sm_80/k-0.cubin", 10, age=5)
    shutil.rmtree(cache.folder())
    path = fill("cubin/sm_80/k-1.cubin", 10, age=5)
    monkeypatch.setenv("CUPY_FLASH_CACHE_LIMIT", "1")
    code = "import pathlib, sys\nfrom cupy_flash._src.cache import room\nroom.make_room(pathlib.Path(sys.argv[1]))"
    python(code, cache.folder())
    assert path.exists()
