"""Notebooks are stored with their outputs: each is executed again, and shows the same.

`python tests/test_notebooks.py` stores what they show now.
"""

import base64
import io
import math
import os
import re
import tempfile
from pathlib import Path

import nbformat
import pytest
from matplotlib.image import imread, imsave
from nbclient import NotebookClient
from nbformat.v4 import new_output

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")
KERNEL_LINE = re.compile(r"(\.cuh?):\d+")
ABSOLUTE_PATH = re.compile(r"(?<![\w.<])/\w+/|[A-Z]:\\")
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


def read(path):
    return nbformat.read(path, as_version=4)


def execute(path):
    """The notebook with what this interpreter, in the checkout, makes of it.

    Without what goes to stderr: where nothing is compiled yet, that it is being compiled.
    """
    notebook = read(path)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        coalesce_streams=True,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.create_kernel_manager().kernel_spec_manager.kernel_dirs = []  # nobody's own "python3"
    with tempfile.TemporaryDirectory() as profile:  # nor their settings of IPython
        client.execute(env=os.environ | {"IPYTHONDIR": profile, "MPLBACKEND": ""})
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = METADATA
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(outputs):
    """Kinds, and what is shown of each."""
    return [
        (kind, content)
        for output in outputs
        for kind, content in sorted(output.get("data", {output.get("name"): output.get("text")}).items())
    ]


def same_text(stored, new):
    """Whether texts differ in roundoff at most, or by lines of the kernels, which move with any change.

    Integers are counts, and equal. Other numbers agree to a millionth, or to 1e-5: that bounds errors of float32,
    of which each CPU has its own.
    """
    stored, new = (KERNEL_LINE.sub(r"\1", text) for text in (stored, new))
    return NUMBER.sub("0", stored) == NUMBER.sub("0", new) and all(
        a == b if a.isdecimal() or b.isdecimal() else math.isclose(float(a), float(b), rel_tol=1e-6, abs_tol=1e-5)
        for a, b in zip(NUMBER.findall(stored), NUMBER.findall(new), strict=True)
    )


def same_size(stored, new):
    """Whether images are as large, but for the margins of another version of matplotlib."""
    sizes = (imread(io.BytesIO(base64.b64decode(png)), format="png").shape[:2] for png in (stored, new))
    return all(math.isclose(a, b, rel_tol=0.05) for a, b in zip(*sizes, strict=True))


def same_outputs(stored, new):
    """Whether a cell shows the same."""
    stored, new = shown(stored), shown(new)
    return [kind for kind, _ in stored] == [kind for kind, _ in new] and all(
        (same_size if kind == "image/png" else same_text)(a, b) for (kind, a), (_, b) in zip(stored, new, strict=True)
    )


@each_notebook
def test_notebooks_show_what_is_stored(path):
    for stored, new in zip(code_cells(read(path)), code_cells(execute(path)), strict=True):
        if not same_outputs(stored.outputs, new.outputs):
            before, now = (
                "\n".join(f"{kind}: {content[:3000]}" for kind, content in shown(cell.outputs))
                for cell in (stored, new)
            )
            pytest.fail(
                f"{path.name} shows other outputs than stored; `python tests/test_notebooks.py` stores them.\n\n"
                f"{stored.source}\n\nstored:\n{before}\n\nnow:\n{now}",
                pytrace=False,
            )


@each_notebook
def test_notebooks_are_stored_as_executed_from_the_first_cell_to_the_last(path):
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.metadata == METADATA
    assert path.stat().st_size < 150_000
    for number, cell in enumerate(code_cells(notebook), 1):
        assert cell.outputs and cell.execution_count == number and not cell.metadata
        assert all(output.output_type != "error" and output.get("name") != "stderr" for output in cell.outputs)
        texts = [content for kind, content in shown(cell.outputs) if kind != "image/png"]
        assert not [text for text in texts if ABSOLUTE_PATH.search(text) or " at 0x" in text]


def printed(text):
    return new_output("stream", name="stdout", text=text)


def displayed(**data):
    return new_output("display_data", data={kind.replace("_", "/"): content for kind, content in data.items()})


def png(width, height):
    file = io.BytesIO()
    imsave(file, [[0.0] * width] * height, format="png")
    return base64.b64encode(file.getvalue()).decode()


STORED = [
    printed("error 6e-07, derivative -62.282798, 0.788 MB, 131,072 bytes\n"),
    displayed(text_html="<td>512</td><td>simt/tile.cuh:47</td>", text_plain="512  simt/tile.cuh:47"),
    displayed(image_png=png(70, 40)),
]


@pytest.mark.parametrize(
    ("place", "output"),
    [
        (0, printed("error 2e-06, derivative -62.282799, 0.788 MB, 131,072 bytes\n")),
        (1, displayed(text_html="<td>512</td><td>simt/tile.cuh:52</td>", text_plain="512  simt/tile.cuh:52")),
        (2, displayed(image_png=png(71, 39))),
    ],
    ids=["roundoff", "a line of a kernel", "margins"],
)
def test_the_comparison_allows(place, output):
    assert same_outputs(STORED, [*STORED[:place], output, *STORED[place + 1 :]])


@pytest.mark.parametrize(
    "new",
    [
        [printed("error 2e-05, derivative -62.282798, 0.788 MB, 131,072 bytes\n"), *STORED[1:]],
        [printed("error 6e-07, derivative -62.283798, 0.788 MB, 131,072 bytes\n"), *STORED[1:]],
        [printed("error 6e-07, derivative 62.282798, 0.788 MB, 131,072 bytes\n"), *STORED[1:]],
        [printed("error 6e-07, derivative -62.282798, 0.789 MB, 131,072 bytes\n"), *STORED[1:]],
        [printed("error 6e-07, derivative -62.282798, 0.788 MB, 131,073 bytes\n"), *STORED[1:]],
        [printed("error 6e-07, derivative -62.282798, 0.788 kB, 131,072 bytes\n"), *STORED[1:]],
        [STORED[0], displayed(text_html="<td>513</td><td>simt/tile.cuh:47</td>", text_plain=""), STORED[2]],
        [STORED[0], displayed(text_plain="512  simt/tile.cuh:47"), STORED[2]],
        [*STORED[:2], displayed(image_png=png(35, 40))],
        STORED[:2],
        STORED[1:],
        [*STORED, printed("\n")],
    ],
    ids=[
        "a large error",
        "a result",
        "a sign",
        "a decimal",
        "a count",
        "a word",
        "a count in a table",
        "no table",
        "another image",
        "no image",
        "no text",
        "more text",
    ],
)
def test_the_comparison_notices(new):
    assert not same_outputs(STORED, new)


if __name__ == "__main__":
    for path in NOTEBOOKS:
        nbformat.write(execute(path), path)
