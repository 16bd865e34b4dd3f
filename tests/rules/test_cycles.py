"""No import cycles, those for typing and those inside functions included."""

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter

from tests.rules.source import PRODUCT, Source, imports, snippet, sources


def cycle(files: Iterable[Source]) -> list[str]:
    """The modules of one cycle, or []."""
    modules = {source.module for source in files}
    graph: dict[str, set[str]] = {}
    for source in files:
        targets = graph.setdefault(source.module, set())
        for item in imports(source.tree):
            names = (item.name, item.name.rpartition(".")[0])
            target = next((name for name in names if name in modules), None)
            if target is not None:
                targets.add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_cycles() -> None:
    assert cycle([s for s in sources(*PRODUCT) if s.module]) == []


def test_control_cycles_are_found() -> None:
    a = snippet("p.a", "from p.b import B")
    typing = snippet("p.b", "if TYPE_CHECKING:\n    from p.a import A")
    inside = snippet("p.b", "def f():\n    import p.a")
    package = Source("p/__init__.py", "p", "from p.a import A", is_package=True)
    assert set(cycle([a, typing])) == {"p.a", "p.b"}
    assert set(cycle([a, inside])) == {"p.a", "p.b"}
    assert set(cycle([package, snippet("p.a", "from p import C")])) == {"p", "p.a"}
    assert cycle([package, a, snippet("p.b", "import torch")]) == []
