"""Serves language models on any hardware. The public names; each is imported when first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferplane.offline import Engine
    from inferplane.sampling_params import SamplingParams

__all__ = ["Engine", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        from inferplane.offline import Engine

        return Engine
    if name == "SamplingParams":
        from inferplane.sampling_params import SamplingParams

        return SamplingParams
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("inferplane")
        except PackageNotFoundError:
            return "0+checkout"  # on the path without being installed
    raise AttributeError(f"module 'inferplane' has no attribute {name!r}")
