"""Runs, their settings and limits, whatever ends them; and what Python and the engine have in common."""

import contextvars
import ctypes
import shutil
import subprocess
import threading

import emulated
import numpy as np
import pytest

import cupy_flash._src.emulator
from cupy_flash import emulator, flash_attention
from cupy_flash._src.emulator import engine
from cupy_flash._src.toolchain import find_compiler
from cupy_flash.emulator import EmulatorError, Settings

KERNEL = """
#include "platform.cuh"
struct Params { int trap; };
extern "C" __global__ void kernel(const __grid_constant__ Params p) {
  if (blockIdx.x == static_cast<unsigned>(p.trap)) __trap();
}
"""


def launch(trap=-1, **options):
    return emulated.run(KERNEL, {"trap": np.int32(trap)}, **options)


def kernels():
    return [x.kernel for x in emulator.last_run().launches]


# ---- what belongs to a run


def test_a_run_holds_what_the_runs_inside_it_do():
    x = np.ones((1, 8, 64), np.float32)
    with emulator.run():
        launch()
        with emulator.run():
            launch()
            launch()
        assert len(kernels()) == 2
        flash_attention(x, x, x, backend="emulator")
        assert kernels() == ["attention_forward"]
        with emulator.run(continued=True):
            launch()
        assert kernels() == ["attention_forward", "kernel"]
        launch()
    assert kernels() == ["kernel"] * 3 + ["attention_forward"] + ["kernel"] * 2
    with emulator.run(continued=True):
        launch()
    assert len(kernels()) == 7
    launch()
    assert kernels() == ["kernel"]


def test_an_error_ends_a_run_and_its_settings():
    with pytest.raises(EmulatorError), emulator.run():
        launch()
        with emulator.settings(mode="counted", seed=3), emulator.run():
            launch()
            launch(trap=0)
    assert emulator.current() == Settings()
    assert len(kernels()) == 2
    launch()
    assert len(kernels()) == 1


def test_threads_and_contexts_have_runs_and_settings_of_their_own():
    found = {}

    def elsewhere(name):
        try:
            found[name] = emulator.current(), len(emulator.last_run().launches)
        except RuntimeError as error:
            found[name] = emulator.current(), str(error)
        with emulator.run():
            launch()
            launch()
        assert len(kernels()) == 2

    with emulator.settings(seed=5), emulator.run():
        launch()
        thread = threading.Thread(target=elsewhere, args=("thread",))
        thread.start()
        thread.join()
    assert kernels() == ["kernel"]
    with emulator.settings(seed=6):
        contextvars.copy_context().run(elsewhere, "copy")
    assert kernels() == ["kernel"]
    assert found["copy"] == (Settings(seed=6), 1)
    assert found["thread"][0] == Settings() and "no kernel has run in the emulator yet" in found["thread"][1]


# ---- limits


@pytest.mark.parametrize(
    ("fits", "one_more"),
    [
        ({"block": (1024,)}, {"block": (1025,)}),
        ({"block": (32, 32)}, {"block": (33, 32)}),
        ({"block": (2, 2, 256)}, {"block": (2, 2, 257)}),
        ({"block": (1, 1, 1)}, {"block": (1, 0, 1)}),
        ({"grid": (1,)}, {"grid": (0,)}),
        ({"grid": (2, 3)}, {"grid": (2**31,)}),
        ({"grid": (1, 2**16 - 1)}, {"grid": (1, 2**16)}),
        ({"grid": (1, 1, 2)}, {"grid": (1, 1, 2**16)}),
        ({"shared": 0}, {"shared": -1}),
        ({"shared": 227 * 1024}, {"shared": 227 * 1024 + 1}),
    ],
)
def test_a_launch_keeps_the_limits_to_the_last_block_thread_and_byte(fits, one_more):
    report = launch(**{"block": (1,)} | fits)
    assert report.grid[: len(fits.get("grid", ()))] == fits.get("grid", ())
    with pytest.raises(EmulatorError) as raised:
        launch(**one_more)
    assert raised.value.kind == "launch"


def test_a_launch_has_the_shared_memory_of_the_device_that_is_meant():
    text, params = emulated.host_source(KERNEL), emulated.pack({"trap": np.int32(-1)})
    emulator.launch(text, "kernel", (1,), (1,), params, 1000, [], shared_limit=1000)
    with pytest.raises(EmulatorError, match="shared_bytes is 1001: the device has 1000 for a block"):
        emulator.launch(text, "kernel", (1,), (1,), params, 1001, [], shared_limit=1000)


def test_settings_end_where_numbers_of_the_engine_do():
    for name, bits in (("seed", 64), ("preempt", 32)):
        launch(mode="checked", **{name: 2**bits - 1})
        launch(mode="checked", **{name: 0})
        for beyond in (-1, 2**bits):
            with pytest.raises(ValueError, match=f"{name} is {beyond}: expected"):
                launch(**{name: beyond})


@pytest.mark.parametrize("block", [0, 1, 5])
def test_an_error_names_its_block(block):
    with pytest.raises(EmulatorError, match=rf"^trap in kernel, block \({block}, 0, 0\): ") as raised:
        launch(trap=block, grid=(6,))
    assert raised.value.block == (block, 0, 0)


# ---- what Python and the engine have in common


def test_the_module_offers_what_it_names():
    inner = cupy_flash._src.emulator
    assert emulator.__all__ == sorted(inner.__all__)
    for name in emulator.__all__:
        assert getattr(emulator, name) is getattr(inner, name)
        assert getattr(inner, name).__module__.startswith("cupy_flash._src.")


def test_structures_have_the_layout_of_the_engine():
    lines = ['#include "launch.h"', "#include <cstddef>"]
    for kind in ("Buffer", "Launch", "Site", "Conflict", "Bytes", "Result"):
        structure = getattr(engine, f"{kind}Struct")
        lines.append(f'static_assert(sizeof(Emulator{kind}) == {ctypes.sizeof(structure)}, "");')
        for name, _ in structure._fields_:
            here = getattr(structure, name)
            lines.append(f'static_assert(offsetof(Emulator{kind}, {name}) == {here.offset}, "{kind}.{name}");')
            lines.append(f'static_assert(sizeof(Emulator{kind}::{name}) == {here.size}, "{kind}.{name}");')
    flags = "-std=c++17", "-fsyntax-only", f"-I{engine.headers()}", "-xc++", "-"
    answer = subprocess.run([*find_compiler().command, *flags], input="\n".join(lines), text=True, capture_output=True)
    assert answer.returncode == 0, answer.stderr


def test_the_engine_is_compiled_anew_if_any_file_of_it_changes(tmp_path, monkeypatch):
    folder = tmp_path / "emulator"
    shutil.copytree(engine.headers(), folder)
    monkeypatch.setattr(engine, "headers", lambda: folder)
    monkeypatch.setattr(engine, "compile_shared", lambda *args, depends, **options: depends)
    listed = [*find_compiler().command, "-std=c++17", "-MM", "engine.cpp"]
    rule = subprocess.run(listed, cwd=folder, text=True, capture_output=True, check=True).stdout
    files = {(folder / name).resolve() for name in rule.partition(":")[2].replace("\\\n", " ").split()}
    assert {"engine.cpp", "launch.h", "hooks.h"} <= {file.name for file in files}
    keys = [engine.library_path()]
    for file in sorted(files):
        file.write_bytes(file.read_bytes() + b"\n")
        keys.append(engine.library_path())
    assert len(set(keys)) == len(keys)
