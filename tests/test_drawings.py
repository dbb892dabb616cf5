"""The drawing that README shows is what its script draws."""

import re

import processes

DOCS = processes.ROOT / "docs"


def words(svg):
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_the_drawing_is_the_scripts(tmp_path):
    again = tmp_path / "tiling.svg"
    run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    processes.python(run, DOCS / "tiling.py", "--output", again)
    assert words(again) == words(DOCS / "tiling.svg") and "$S = QK^T$" in words(again)
    assert "docs/tiling.svg" in (processes.ROOT / "README.md").read_text(encoding="utf-8")
