"""The project's own Python files, parsed once, for the tests that hold the house rules."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPO = Path(__file__).parents[2]
PRODUCT = ("core", "models", "backends")


@dataclass(frozen=True)
class Source:
    """One file. `module` is its dotted name as installed, empty for scripts and tests."""

    path: str
    module: str
    text: str
    is_package: bool = False

    @property
    def tree(self) -> ast.Module:
        return _parse(self.text)

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


@cache
def _parse(text: str) -> ast.Module:
    return ast.parse(text)


@cache
def sources(*tops: str) -> tuple[Source, ...]:
    """Every Python file below the folders of the repository."""
    found = []
    for top in tops:
        for path in sorted((REPO / top).rglob("*.py")):
            parts = path.relative_to(REPO).parts
            if any(part.startswith(".") or part in ("build", "dist") for part in parts):
                continue
            found.append(_source(path, parts))
    return tuple(found)


def _source(path: Path, parts: tuple[str, ...]) -> Source:
    """core/a/b.py is module a.b; backends/x/inferplane_x/b.py is module inferplane_x.b."""
    depth = {"core": 1, "models": 1, "backends": 2}.get(parts[0])
    names = list(parts[depth:]) if depth and len(parts) > depth + 1 else []
    is_package = bool(names) and names[-1] == "__init__.py"
    if names:
        names[-1] = names[-1].removesuffix(".py")
    if is_package:
        names.pop()
    return Source(str(Path(*parts)), ".".join(names), path.read_text(), is_package)


@dataclass(frozen=True)
class Import:
    """`name` is what is imported: a module, or an attribute of one."""

    name: str
    line: int
    at_top: bool


def imports(tree: ast.Module) -> Iterator[Import]:
    """All absolute imports, wherever they stand; `at_top` if run when the module is imported.

    Blocks under `if TYPE_CHECKING` are imports, but do not run.
    """
    yield from _imports(tree.body, at_top=True)


def _imports(body: list[ast.stmt], at_top: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, at_top)
        runs = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _imports(node.body, False)
            yield from _imports(node.orelse, runs)
            continue
        for field in ("body", "orelse", "finalbody"):
            inner = getattr(node, field, None)
            if isinstance(inner, list):
                yield from _imports(inner, runs)
        for part in [*getattr(node, "handlers", []), *getattr(node, "cases", [])]:
            yield from _imports(part.body, runs)


def within(name: str, *prefixes: str) -> bool:
    """Whether a dotted name is one of the prefixes or below one."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def snippet(module: str, text: str, path: str = "") -> Source:
    """A file that does not exist, for the control of a rule."""
    return Source(path or "core/" + module.replace(".", "/") + ".py", module, text)
