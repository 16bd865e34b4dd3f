"""Engines for tiny models on each setting of the null device, and the answers of the first."""

from dataclasses import fields
from functools import cache
from typing import Any

from inferplane.engine import EngineCore
from inferplane.hw import StepPlan
from inferplane.plugins import Plugins
from inferplane.runner.runner import Pending
from inferplane.runner.tables import Tables
from inferplane.testing.null import SETTINGS, NullBackend, NullSettings, Sealed
from inferplane.testing.recording import RecordingGraphs
from inferplane.testing.workload import Answer, requests, serve, tiny_engine

MODELS = ("llama", "gemma3")


def open_null(
    model: str, settings: NullSettings, **config: Any
) -> tuple[EngineCore, RecordingGraphs]:
    """An engine on the null device; a functional one checks that nothing is written in place."""
    plugins = Plugins()
    backend = NullBackend(settings)
    plugins.register("null", backend)
    engine = tiny_engine(model, plugins, "null", **config)
    if settings.functional:
        seal(engine)
    return engine, backend.recorder


def seal(engine: EngineCore) -> None:
    """Check around every step that KV pages and tables are replaced, never written."""
    runner, launch = engine.loaded.runner, engine.loaded.runner.launch

    def checked(plan: StepPlan) -> Pending:
        tables: Tables = runner._tables
        kept = [getattr(tables, f.name) for f in fields(tables) if f.name not in ("pages", "vocab")]
        held = [x for x in kept if hasattr(x, "clone")]
        sealed = Sealed.of(
            [*held, *tables.pages, *(h.data for h in engine.loaded.handles.values())]
        )
        pending = launch(plan)
        sealed.verify()
        return pending

    runner.launch = checked  # type: ignore[method-assign]


@cache
def expected(model: str) -> dict[str, Answer]:
    """What the plain CPU answers to the workload."""
    engine, _ = open_null(model, SETTINGS["dynamic"])
    return serve(engine, requests())[0]
