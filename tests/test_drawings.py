"""The drawing that README shows is what its script draws."""

import re

import processes

DOCS = processes.ROOT / "docs"


def words(svg):
    return re.findall(r"<!-- (.*?) -->", svg.read_text(encoding="utf-8"))


def test_the_drawing_is_the_scripts(tmp_path):
    again = tmp_path / "tiling.svg"
    processes.script(DOCS / "tiling.py", "--output", again)
    assert words(again) == words(DOCS / "tiling.svg") and "$S = QK^T$" in words(again)
    assert "docs/tiling.svg" in (processes.ROOT / "README.md").read_text(encoding="utf-8")
