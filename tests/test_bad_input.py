"""docs/bad_input.md: what it names is there, and all that the project reads is in it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "bad_input.md").read_text(encoding="utf-8")
ROWS = [line for line in TEXT.splitlines() if re.match(r"\|(?! input |--)", line)]
NAMES = sorted(set(re.findall(r"`([\w/]+\.py)::(\w+)`", TEXT)))


@pytest.mark.parametrize(("file", "name"), NAMES)
def test_what_a_row_names_is_a_test(file, name):
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    assert name.startswith("test_") and name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_names_a_test():
    assert len(ROWS) > 50
    assert [row for row in ROWS if not re.search(r"\.py::test_\w+`(, `[\w/]+\.py::\w+`)* \|$", row)] == []


def test_every_script_and_every_kind_of_input_has_a_row():
    no_input = ("venv.sh", "sanitize.sh")  # which others source, and which gives pytest its arguments
    scripts = [path.name for path in (ROOT / "scripts").glob("[!_]*.*") if path.name not in no_input]
    table = "\n".join(ROWS)
    assert [name for name in scripts if f"`{name}`" not in table] == []
    assert "(docs/bad_input.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
