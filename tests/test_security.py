"""What docs/security.md says is shown by tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"


def named(text: str) -> list[str]:
    """Find what is named as `tests/ROOM/test_X.py::test_y`."""
    return re.findall(r"`(tests/[\w/]+\.py::\w+)`", text)


def test_every_test_that_the_page_names_exists() -> None:
    found = named(PAGE.read_text())
    assert found
    missing = []
    for name in found:
        path, _, function = name.partition("::")
        if not (ROOT / path).is_file() or not re.search(rf"^def {function}\(", (ROOT / path).read_text(), re.MULTILINE):
            missing.append(name)
    assert not missing


def test_every_row_of_a_table_names_its_test_but_for_what_is_not_protected() -> None:
    protected, _, rest = PAGE.read_text().partition("\n## What is not protected\n")
    assert rest
    tables = re.findall(r"^\|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", protected, re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert rows
    assert not [row for row in rows if not named(row)]


def test_problems_are_reported_where_the_package_says() -> None:
    (address,) = re.findall(r'^Issues = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert address in PAGE.read_text()


def test_no_module_imports_what_unpickles() -> None:
    unpickles = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "torch"}
    imported: set[str] = set()
    for path in (ROOT / "crystalline_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.keyword):
                assert node.arg != "allow_pickle", path
    assert {"numpy", "safetensors", "yaml"} <= imported
    assert not imported & unpickles
