"""What names a file of the cache: all that it depends on, to the byte, and nothing else. Nothing is compiled here."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cupy_flash._src import cache, compile, source, toolchain
from cupy_flash._src.backends import emulator as emulator_backend
from cupy_flash._src.backends import native
from cupy_flash._src.device import named
from cupy_flash._src.emulator import engine
from cupy_flash._src.emulator.module import EmulatorModule
from cupy_flash._src.plan import all_specializations
from cupy_flash._src.toolchain import Compiler, compile_shared

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
KERNELS = {k.source: k for k in all_specializations(named("sm_80"))}
COMPILER = Compiler(("c++", "-m64"), "c++ 1.0", False)


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Every file is found, under the name that it is asked for by."""
    monkeypatch.setattr(cache, "find", lambda name, read: Path(name))
    monkeypatch.setattr(toolchain, "find_compiler", lambda: COMPILER)
    monkeypatch.setattr(compile, "nvrtc_version", lambda: (13, 1))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the sources that may be edited."""
    folder = shutil.copytree(source.root(), tmp_path / "cuda_src")
    monkeypatch.setattr(source, "root", lambda: folder)
    monkeypatch.setattr(toolchain, "load", lambda path: None)
    monkeypatch.setattr(engine, "library", lambda: None)
    yield folder
    forget()


def forget():
    """As another process does, which reads the sources anew."""
    emulator_backend._text.cache_clear()
    engine.header_digest.cache_clear()


def reached(start, *folders):
    """A source and all that it includes, directly or not: found in these folders, or else in its own."""
    found, ahead = set(), [start]
    while ahead:
        path = ahead.pop()
        if path not in found:
            found.add(path)
            for name in INCLUDE.findall(path.read_text(encoding="utf-8")):
                paths = [(x / name).resolve() for x in (*folders, path.parent) if (x / name).is_file()]
                assert paths or name in ("specialization.cuh", "cpu/components.h"), name  # which Python prints
                ahead += paths[:1]
    return found


def change_a_byte(path, rng):
    """Another character in place of one of a line that is no directive."""
    data = path.read_bytes()
    places = [
        match.start() + i
        for match in re.finditer(rb"^(?!\s*#).+$", data, re.MULTILINE)
        for i, byte in enumerate(match[0])
        if chr(byte).isalnum()
    ]
    place = places[rng.integers(len(places))]
    path.write_bytes(data[:place] + b"_" + data[place + 1 :])
    return data


def test_a_byte_of_any_source_names_another_file_and_back_the_same(tree):
    """The CPU backend, the emulator's engine, kernels for it, cubins: what each includes; cubins by nothing else."""
    host, rng = tree / "emulator", np.random.default_rng(0)
    kernel = next(k for k in KERNELS.values() if k.family == "mma")
    translated = '#include "ptx_isa.h"\nextern "C" __global__ void k(const __grid_constant__ Params params);'

    def of(file, printed, *folders):
        starts = file, *INCLUDE.findall(printed)
        return set().union(*(reached(tree / start, *folders) for start in starts))

    def text():
        return emulator_backend._text(kernel, "sm_80", "host")

    made = [
        (lambda: native.compile_library("portable"), of("cpu/attention.cpp", native._components_header(), tree), True),
        (lambda: engine.library_path(), reached(host / "engine.cpp", host), False),
        (lambda: EmulatorModule(text(), mode="fast").path, of(kernel.source, kernel.prelude(), host, tree), False),
        (lambda: EmulatorModule(translated, mode="checked").path, reached(host / "ptx_isa.h", host), False),
        *((lambda k=k: compile.to_cubin(k, "sm_80"), of(k.source, k.prelude(), tree), True) for k in KERNELS.values()),
    ]
    before = [name() for name, _, _ in made]
    assert len(set(before)) == len(before)
    for path in (x for x in tree.rglob("*") if x.is_file() and x.suffix != ".md"):
        data = change_a_byte(path, rng)
        forget()
        for (name, needed, exact), was in zip(made, before, strict=True):
            if path in needed or (exact and rng.integers(4) == 0):
                assert (name() != was) == (path in needed), (path, was)
        path.write_bytes(data)
    forget()
    assert [name() for name, _, _ in made] == before


def test_every_define_names_another_cubin():
    """A type, a constant or a part, another value or another name of one, another kernel: no two have one file."""
    kernels = dict.fromkeys(all_specializations(named("sm_90a")))
    for k in KERNELS.values():
        for kind in ("types", "constants"):
            pairs = getattr(k, kind)
            for i, (name, value) in enumerate(pairs):
                for pair in ((name, value + (1 if kind == "constants" else "2")), (name + "2", value)):
                    kernels[replace(k, **{kind: (*pairs[:i], pair, *pairs[i + 1 :])})] = None
        for i, part in enumerate(k.parts):
            other = part._replace(type=part.type + "2")
            kernels[replace(k, parts=(*k.parts[:i], other, *k.parts[i + 1 :]))] = None
    names = {compile.to_cubin(k, "sm_80") for k in kernels}
    assert len(names) == len(kernels) > 300


def test_text_entry_architecture_options_and_version_name_a_cubin(monkeypatch):
    given = {"text": "text", "name": "k.cu", "entry": "k", "arch": "sm_80"}
    name = compile.text_to_cubin(**given)
    assert compile.text_to_cubin(**given | {"name": "other.cu"}) == name, "which stands for it in messages only"
    others = [compile.text_to_cubin(**given | {key: given[key] + "a"}) for key in ("text", "entry", "arch")]
    for i, option in enumerate(compile._OPTIONS):
        for put in ((), (option + "0",)):
            with monkeypatch.context() as patch:
                patch.setattr(compile, "_OPTIONS", (*compile._OPTIONS[:i], *put, *compile._OPTIONS[i + 1 :]))
                others.append(compile.text_to_cubin(**given))
    for version in ((13, 2), (12, 1), (131, 0), (1, 31)):
        monkeypatch.setattr(compile, "nvrtc_version", lambda version=version: version)
        others.append(compile.text_to_cubin(**given))
    assert len({name, *others}) == 1 + len(others)


def test_all_that_a_compiler_is_given_names_a_library(monkeypatch):
    given = {"source": "text", "name": "lib", "flags": ("-a", "-b"), "libraries": (Path("/x/one.so"),), "depends": "0"}
    changes = [
        *({key: given[key] + "1"} for key in ("source", "name", "depends")),
        *({"flags": flags} for flags in ((), ("-a",), ("-b", "-a"), ("-a", "-b", "-c"), ("-a-b",))),
        *({"libraries": tuple(map(Path, paths))} for paths in ((), ("/x/two.so",), ("/x/one.so", "/x/two.so"))),
        {"folder": "cpu"}, {"freestanding": True},
    ]  # fmt: skip
    names = [compile_shared(**given), *(compile_shared(**given | change) for change in changes)]
    assert compile_shared(**given | {"libraries": (Path("/y/one.so"),), "notice": "x"}) == names[0]
    assert str(names[0]).startswith("emulator/lib-") and str(names[-2]).startswith("cpu/lib-")
    for link in ((), ("-shared",), (*toolchain._LINK_FLAGS, "-x")):
        with monkeypatch.context() as patch:
            patch.setattr(toolchain, "_LINK_FLAGS", link)
            names.append(compile_shared(**given))
    free = compile_shared(**given, freestanding=True)
    for other in (replace(COMPILER, version="c++ 1.1"), replace(COMPILER, command=("c++",))):
        monkeypatch.setattr(toolchain, "find_compiler", lambda other=other: other)
        names.append(compile_shared(**given))
        assert compile_shared(**given, freestanding=True) == free, "any compiler's will do"
    assert len(set(names)) == len(names)
