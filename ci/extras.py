"""Metadata hook of hatchling: the extras of the distribution `inferplane`.

In a checkout the extra of a backend points at its folder; in a release (INFERPLANE_RELEASE=1, and
wheels built from its source archive) it names the distribution of the same version.
"""

import os
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

BACKENDS = {
    "ascend": ("ascend",),
    "cuda": ("cuda", "triton"),
    "rocm": ("rocm", "triton"),
    "tpu": ("tpu",),
    "xeon": ("xeon",),
}
"""extra -> the distributions it installs, without their prefix"""


def requirement(root: Path, name: str, version: str, release: bool) -> str:
    folder = root / "backends" / name
    if release or not folder.is_dir():
        return f"inferplane-{name}=={version}"
    return f"inferplane-{name} @ {folder.resolve().as_uri()}"


class ExtrasHook(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        root, version = Path(self.root), metadata["version"]
        release = os.environ.get("INFERPLANE_RELEASE") == "1"
        extras = {extra: list(names) for extra, names in self.config["extras"].items()}
        for extra, names in BACKENDS.items():
            extras[extra] = [requirement(root, name, version, release) for name in names]
        metadata["optional-dependencies"] = extras
