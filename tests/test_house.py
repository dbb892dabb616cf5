"""Who may know whom, read from the imports and the includes themselves."""

import ast
import inspect
import pkgutil
import re
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import processes
import pytest
from cases import filled, in_effect

import cupy_flash
from cupy_flash._src.api import Vjp
from cupy_flash._src.components import CAPTURED, COMPONENTS, INPUTS, KEYWORDS
from cupy_flash._src.specialization import CONCEPTS, Variant

ROOT = Path(__file__).parents[1]
PUBLIC = ROOT / "cupy_flash"
PACKAGE = PUBLIC / "_src"
CUDA = ROOT / "cuda_src"

# By several components; and what a call's functions have in common.
SHARED = {f"components.{x}" for x in ("component", "floats", "lengths", "positions", "mods", "block_mask")}
COMPONENT_MODULES = {x.__module__.removeprefix("cupy_flash._src.") for x in COMPONENTS}
# What the modules on the way from the call to the kernel may import from the package.
MAY_IMPORT = {
    "options": set(),
    "names": set(),
    "arrays": set(),
    "components": {"components", "options"}
    | {f"components.{x}" for x in ("component", "positions", "mods")}
    | COMPONENT_MODULES,
    "expressions": set(),
    "problem": {"arrays", "components", "components.component", "components.mods"},
    "guards": {"problem", "expressions.blocks", "expressions.graph"}
    | {f"components.{x}" for x in ("block_mask", "component", "mods")},
    "operands": set(),
    "device": set(),
    "structs": set(),
    "params": {"source", "specialization", "structs"},
    "notice": set(),
    "temporary": set(),
    "forks": set(),
    "workers": set(),
    "programs": {"forks"},
    "source": {"forks", "temporary"},
    "cache": {"cache.files", "cache.places", "cache.room", "cache.trust"},
    "toolchain": {"cache", "forks", "notice", "programs", "temporary"},
    "tiles": {"device", "problem"},
    "specialization": {"components", "components.component"},
    "tuning": {"cache", "notice", "tiles"},
    "kernels": {"device", "expressions.cxx", "problem", "specialization", "tiles", "tuning"},
    "plan": {"components", "device", "kernels", "params", "problem", "specialization", "tiles"}
    | {f"components.{x}" for x in ("block_mask", "component", "mods")},
    "compile": {"cache", "device", "forks", "notice", "source", "specialization", "workers"},
    "packing": {"params", "plan", "problem"},
    "launch": {"device", "guards", "operands", "packing", "params", "plan", "problem", "tiles", "tuning"}
    | {f"components.{x}" for x in ("block_mask", "component", "mods")},
    "broadcast": set(),
    "reference": {"arrays", "broadcast", "components", "components.component", "names", "options", "problem"},
    "backends": {"arrays", "forks", "operands", "problem"}
    | {f"backends.{x}" for x in ("cpu", "cupy_", "dlpack", "emulator")},
    "block_mask": {"backends", "components", "names"}
    | {f"components.{x}" for x in ("block_mask", "component", "mods")},
    "api": {"arrays", "backends", "broadcast", "components", "names", "operands", "options", "problem"},
    "startup": {"backends.cpu", "backends.cupy_", "backends.emulator", "notice"},
}
PLANNED_ON_ANY_MACHINE = [
    "api",
    "arrays",
    "components",
    "device",
    "kernels",
    "names",
    "operands",
    "options",
    "params",
    "plan",
    "problem",
    "reference",
    "source",
    "specialization",
    "structs",
    "tiles",
    "tuning",
    *sorted(COMPONENT_MODULES | SHARED),
]
ONLY_FOR_COMMANDS = {"matplotlib", "tqdm"}

FAMILIES = {"simt", "mma", "hopper"}
MAY_INCLUDE = {  # folder -> folders; "" is cuda_src itself
    "": {"", "ptx"},
    "ptx": {"", "ptx"},
    "attention": {"", "ptx", "attention"},
} | {own: {"", "ptx", "attention", own} for own in (*FAMILIES, *(f"attention/{x.lower()}" for x in CONCEPTS))}
# Hopper's primitives run on hardware only until the emulator learns of wgmma and the async proxy.
NOT_EMULATED = {"elect.cuh", "fence.cuh", "mbarrier.cuh", "setmaxnreg.cuh", "tma.cuh", "wgmma.cuh"}
GENERATED = {"specialization.cuh"}  # the prelude that Python prints
MAX_KERNEL_LINES = 400
MAX_LINE_LENGTH = int(re.search(r"line-length = (\d+)", (ROOT / "pyproject.toml").read_text())[1])


@dataclass(frozen=True)
class Module:
    """A syntax tree and the package that its relative imports start from."""

    tree: ast.AST
    package: str


def parse_package():
    """Inner modules by their name below `cupy_flash._src`, that package itself as "__init__"."""
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        package = ".".join(["cupy_flash._src", *parts[:-1]])
        modules[name or "__init__"] = Module(ast.parse(path.read_text(encoding="utf-8")), package)
    return modules


MODULES = parse_package()
KERNEL_FILES = sorted(
    path
    for path in CUDA.rglob("*.cu*")
    if path.suffix in {".cu", ".cuh"} and "emulator" not in path.relative_to(CUDA).parts
)


def imported_names(module):
    """Full names of what is imported anywhere in a module, members of ``from`` imports included."""
    names = set()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), module.package)
            names |= {f"{source}.{alias.name}" for alias in node.names}
    return names


def imported_modules(module):
    """Inner modules among the imports, named below `cupy_flash._src`."""
    found = set()
    for name in imported_names(module):
        outer, prefix, below = name.partition("cupy_flash._src.")
        if prefix and not outer:
            while below and below not in MODULES:
                below = below.rpartition(".")[0]
            found.add(below or "__init__")
    return found


def imported_packages(module):
    return {name.partition(".")[0] for name in imported_names(module)}


def code_of(text):
    """C++ without comments, line numbers kept."""
    return re.sub(r"/\*.*?\*/|//[^\n]*", lambda m: "\n" * m.group().count("\n"), text, flags=re.DOTALL)


def includes_of(text):
    return re.findall(r'^\s*#\s*include\s*["<]([^">]+)[">]', code_of(text), flags=re.MULTILINE)


def directives_of(text):
    return set(re.findall(r"^\s*#\s*(\w+)", code_of(text), flags=re.MULTILINE))


def functions_of(text):
    """Names of the device functions that a header defines."""
    return set(re.findall(r"__forceinline__\s+[\w:<>, &*]*?(\w+)\s*\(", code_of(text)))


def folder(path):
    return path.relative_to(CUDA).parent.as_posix().removeprefix(".")


def relative(path):
    return path.relative_to(CUDA).as_posix()


def test_the_readers_see_what_they_look_for():
    python = [
        "def f():",
        "    import cupy.cuda",
        "    from cupy_flash._src.problem import DTYPES",
        "from . import api",
    ]
    module = Module(ast.parse("\n".join(python)), "cupy_flash._src")
    assert imported_packages(module) == {"cupy", "cupy_flash"}
    assert imported_modules(module) == {"problem", "api"}
    text = '// asm\n#include "simt/x.cuh" /* #ifdef A\n */\n  # ifdef EMULATOR\nasm volatile("");\n'
    assert code_of(text).count("asm") == 1
    assert includes_of(text) == ["simt/x.cuh"]
    assert directives_of(text) == {"include", "ifdef"}
    assert functions_of("template <class T> __device__ __forceinline__ Vec<T, 2> f(T x) {}") == {"f"}


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_modules_import_only_what_they_may(name):
    assert imported_modules(MODULES[name]) <= MAY_IMPORT[name]


def test_every_module_has_its_place():
    core = {name for name in MODULES if "." not in name} - {"__init__", "analysis", "cli", "emulator"}
    assert core == set(MAY_IMPORT)


def test_a_component_knows_options_and_no_other():
    assert {name for name in MODULES if name.startswith("components.")} == COMPONENT_MODULES | SHARED
    assert not imported_modules(MODULES["components.component"])
    of_mods = {name for name in imported_modules(MODULES["components.mods"]) if "expressions" not in name}
    assert of_mods == {"arrays", "components.component"}
    assert imported_modules(MODULES["components.positions"]) == {"components.component"}
    assert imported_modules(MODULES["components.lengths"]) == {"arrays", "components.component", "options"}
    assert imported_modules(MODULES["components.floats"]) == {"arrays", "components.component"}
    for name in COMPONENT_MODULES:
        others = {x for x in imported_modules(MODULES[name]) if not x.startswith("expressions.")}
        assert others <= SHARED | {"arrays", "options"}, name


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("expressions.")])
def test_expressions_know_nothing_of_attention(name):
    assert all(x.startswith("expressions.") for x in imported_modules(MODULES[name]))


def test_components_are_known_by_the_registry_alone():
    """But for the scale, which every problem has, and what is imported for a docstring's name."""
    for name, module in MODULES.items():
        if name != "components":
            known = imported_modules(module) & COMPONENT_MODULES - {name}
            assert not known, name


def test_inner_modules_know_nothing_of_the_public_ones():
    for name, module in MODULES.items():
        if name.partition(".")[0] != "cli":  # commands call what users call
            ours = {x for x in imported_names(module) if x.startswith("cupy_flash.")}
            assert all(x.startswith("cupy_flash._src.") for x in ours), (name, ours)


def test_the_public_modules_are_few_and_told():
    listed = {module.name for module in pkgutil.iter_modules(cupy_flash.__path__)}
    assert listed == {"__main__", "_src", "emulator", "mods", "tuning"}
    processes.python("import cupy_flash; cupy_flash.emulator.settings, cupy_flash.tuning.tiles, cupy_flash.mods.causal")
    told = cupy_flash.__doc__
    assert set(cupy_flash.__all__) | {"emulator", "mods", "tuning"} <= set(re.findall(r"\w+", told)) & set(
        dir(cupy_flash)
    )
    variables = {x for path in PACKAGE.rglob("*.py") for x in re.findall(r"CUPY_FLASH_\w+", path.read_text("utf-8"))}
    assert variables == set(re.findall(r"CUPY_FLASH_\w+", told))
    with pytest.raises(AttributeError, match="no attribute 'flash_atention'"):
        cupy_flash.flash_atention  # noqa: B018


@pytest.mark.parametrize("name", PLANNED_ON_ANY_MACHINE)
def test_planning_never_imports_cupy(name):
    assert not imported_packages(MODULES[name]) & {"cupy", "cupy_backends", "cupyx"}


@pytest.mark.parametrize("name", MODULES)
def test_commands_and_their_packages_stay_at_the_edge(name):
    if name.partition(".")[0] != "cli":
        assert not {module for module in imported_modules(MODULES[name]) if module.startswith("cli")}
        assert not imported_packages(MODULES[name]) & ONLY_FOR_COMMANDS


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("backends.")])
def test_backends_do_not_know_each_other(name):
    others = {"backends.cpu", "backends.cupy_", "backends.emulator"} - {name}
    assert not imported_modules(MODULES[name]) & others


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] == "emulator"])
def test_the_emulator_knows_nothing_of_attention(name):
    others = {module for module in imported_modules(MODULES[name]) if module.partition(".")[0] != "emulator"}
    assert others <= {"source", "toolchain"}


@pytest.mark.parametrize("name", cupy_flash.__all__)
def test_public_functions_show_an_example(name):
    doc = getattr(cupy_flash, name).__doc__
    sections = ["Parameters", "Returns", "Raises", "Examples"]
    assert [s for s in sections if re.search(rf"^ *{s}\n *-+$", doc, flags=re.MULTILINE)] == sections
    assert ">>> " in doc


@pytest.mark.parametrize("path", KERNEL_FILES, ids=relative)
def test_cuda_includes_follow_the_layers(path):
    allowed = MAY_INCLUDE[folder(path)]
    for name in includes_of(path.read_text(encoding="utf-8")):
        assert name in GENERATED or (CUDA / name).is_file(), f"{name} does not exist"
        assert folder(CUDA / name) in allowed, f"{relative(path)} may not include {name}"


@pytest.mark.parametrize("path", KERNEL_FILES, ids=relative)
def test_what_a_cuda_file_may_contain(path):
    text = path.read_text(encoding="utf-8")
    code = code_of(text)
    if folder(path) != "ptx":
        assert not re.search(r"\basm\b", code), "inline PTX belongs to ptx/"
        assert directives_of(text) <= {"include", "pragma"}, "conditional compilation belongs to ptx/"
    if relative(path) != "platform.cuh":
        assert not re.search(r"\b__shared__\b", code), "shared memory comes from shared_storage<T>()"
    assert not re.search(r"emulat", code, flags=re.IGNORECASE), "the emulator substitutes headers, not code"
    assert ("#pragma once" in text) == (path.suffix == ".cuh")
    assert bool(re.search(r'extern "C" __global__', code)) == (path.suffix == ".cu")


def test_components_stand_in_the_registry_as_they_apply():
    """Both others ask for places, and a mask hides what the scores have become; the first is what every problem has."""
    kinds = [CONCEPTS.index(component.concept) for component in COMPONENTS]
    assert kinds == sorted(kinds) and set(kinds) == set(range(len(CONCEPTS)))
    assert next(x for x in COMPONENTS if x.concept == "Score").keyword == "scale"
    assert len({component.keyword for component in COMPONENTS}) == len(COMPONENTS)


def parts_with(component, value):
    return Variant.of("float16", 64, **filled(in_effect(component, value))).parts


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda x: x.keyword)
def test_a_component_has_headers_with_its_type_and_its_struct(component):
    for value in component.examples:
        (part,) = (x for x in parts_with(component, value) if x.component is component)
        code = code_of(part.text or (CUDA / "attention" / f"{component.header}.cuh").read_text(encoding="utf-8"))
        for name in (part.type, component.struct):
            assert re.search(rf"^(struct|using) {name}\b", code, flags=re.MULTILINE)
    assert component.struct == f"{component.__name__}Params"
    assert component.examples and component.default not in component.examples
    assert (CUDA / "cpu" / f"{component.header}.h").is_file()


def options_of(function):
    return {name: x.default for name, x in inspect.signature(function).parameters.items() if name in KEYWORDS}


def test_every_public_call_has_every_option_with_the_same_default():
    """What concerns gradients where there is a backward; none where an option means nothing."""
    options = {component.keyword: component.default for component in COMPONENTS} | dict.fromkeys(CAPTURED, ())
    learned = options | {"wrt": INPUTS}
    backward = learned | {"deterministic": False}
    assert {name: options_of(getattr(cupy_flash, name)) for name in cupy_flash.__all__} == {
        "attention_reference": options,
        "attention_reference_backward": learned,
        "block_mask": {"mask_mod": inspect.Parameter.empty, "mask_args": ()},
        "flash_attention": options,
        "flash_attention_backward": backward,
        "flash_attention_vjp": backward,
        "merge_attention": {},
    }
    assert options_of(Vjp.__call__) == {}
    for name in set(cupy_flash.__all__) - {"block_mask"}:
        function = getattr(cupy_flash, name)
        for option in options_of(function):
            assert inspect.signature(function).parameters[option].kind == inspect.Parameter.KEYWORD_ONLY
            assert re.search(rf"^ {{4}}(\w+, )*{option}\b(, \w+)*( : .*)?$", function.__doc__, flags=re.MULTILINE), name


# What kernels know are concepts; which components they are made of is in the prelude.
CONCEPTUAL = [path for path in KERNEL_FILES if folder(path) in (*FAMILIES, "attention")]
CONCEPTUAL += sorted((CUDA / "cpu").glob("*.*"))


@pytest.mark.parametrize("path", CONCEPTUAL, ids=relative)
def test_kernels_name_no_component(path):
    code = code_of(path.read_text(encoding="utf-8"))
    parts = [part for component in COMPONENTS for value in component.examples for part in parts_with(component, value)]
    assert not {name for part in parts for name in (part.type, part.component.struct)} & set(re.findall(r"\w+", code))
    assert not [name for name in includes_of(code) if re.match("(attention|cpu)/(mask|score|place)/", name)]


@pytest.mark.parametrize("path", sorted(CUDA.rglob("*.*")), ids=relative)
def test_cuda_files_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_KERNEL_LINES
    assert not [i for i, line in enumerate(lines, 1) if len(line) > MAX_LINE_LENGTH]


@pytest.mark.parametrize("path", sorted((CUDA / "ptx").glob("*.cuh")), ids=relative)
def test_every_primitive_has_a_host_version(path):
    if path.name in NOT_EMULATED:
        assert not (CUDA / "emulator" / "ptx" / path.name).exists()
        return
    host = code_of((CUDA / "emulator" / "ptx" / path.name).read_text(encoding="utf-8"))
    device = functions_of(path.read_text(encoding="utf-8"))
    assert device
    assert device <= set(re.findall(r"\w+", host))
