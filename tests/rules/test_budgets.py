"""Files, functions and lines are short. Never met by code golf: split by meaning instead."""

import ast
from pathlib import Path

from tests.rules.source import REPO

FILE, KERNEL_FILE, FUNCTION, WIDTH = 400, 800, 60, 100
TOPS = ("core", "models", "backends", "tests", "ci", "examples")
SUFFIXES = {".py", ".c", ".cpp", ".h", ".hpp", ".cu", ".hip"}


def violations(path: str, text: str) -> list[str]:
    lines = text.splitlines()
    kernel = not path.endswith(".py") or "kernels" in Path(path).parts
    budget = KERNEL_FILE if kernel else FILE
    found = []
    if len(lines) > budget:
        found.append(f"{path}: {len(lines)} lines, budget {budget}")
    found += [
        f"{path}:{number}: {len(line)} columns, budget {WIDTH}"
        for number, line in enumerate(lines, 1)
        if len(line) > WIDTH
    ]
    if path.endswith(".py"):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION:
                    where = f"{path}:{node.lineno}: {node.name}"
                    found.append(f"{where} has {length} lines, budget {FUNCTION}")
    return found


def test_budgets() -> None:
    found = []
    for top in TOPS:
        for path in sorted((REPO / top).rglob("*")):
            parts = path.relative_to(REPO).parts
            if path.suffix in SUFFIXES and not {"build", "dist"} & set(parts):
                found += violations(str(Path(*parts)), path.read_text())
    assert found == []


def test_control_each_excess_is_found() -> None:
    long_function = "def f():\n" + "    x = 1\n" * 60
    assert violations("core/a.py", "x = 1\n" * 401) == ["core/a.py: 401 lines, budget 400"]
    assert violations("core/a.py", "x = 1\n" * 400) == []
    assert violations("backends/x/csrc/a.cpp", "int x;\n" * 401) == []
    assert len(violations("backends/x/csrc/a.cpp", "int x;\n" * 801)) == 1
    assert len(violations("core/a.py", long_function)) == 1
    assert violations("core/a.py", long_function[: -len("    x = 1\n")]) == []
    assert len(violations("core/a.py", f"x = '{'a' * 94}'\n")) == 0
    assert len(violations("core/a.py", f"x = '{'a' * 95}'\n")) == 1
