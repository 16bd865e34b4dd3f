"""Which backend runs a program."""

from typing import Any

from inferplane.errors import ProgramError
from inferplane.lang.backend import Backend
from inferplane.lang.engine import EngineBackend

_default: list[Backend] = []


def set_default_backend(backend: Any) -> None:
    """For programs that are run without one: a backend, or an inferplane.Engine. None: no more."""
    _default[:] = [] if backend is None else [as_backend(backend)]


def as_backend(backend: Any = None) -> Backend:
    """A backend from what a caller gave: an inferplane.Engine, a backend, or None."""
    if backend is None:
        if not _default:
            raise ProgramError("there is no backend: pass backend=..., or call set_default_backend")
        return _default[0]
    if hasattr(backend, "generator") and hasattr(backend, "tokenizer"):
        made: Backend = EngineBackend(backend)
        return made
    if not hasattr(backend, "prefill"):
        raise ProgramError(
            f"{type(backend).__name__} is no backend: use an inferplane.Engine, RuntimeEndpoint,"
            " OpenAI or Anthropic"
        )
    given: Backend = backend
    return given


def flush_cache(backend: Any = None) -> None:
    """Empty the prefix cache of a backend."""
    as_backend(backend).flush_cache()


def get_server_info(backend: Any = None) -> dict[str, Any]:
    return as_backend(backend).get_server_info()
