"""Where CANN, the vendor's runtime, is and whether the dynamic loader would find it.

torch-npu links against it, so that importing torch-npu without it fails. Files are looked at, not
loaded: loading takes a second and starts threads.
"""

import os
from pathlib import Path

from inferplane.hw.device import Unavailable

LIBRARY = "libascendcl.so"
HOMES = ("usr/local/Ascend/ascend-toolkit/latest", "usr/local/Ascend/latest")


def library_problem(root: Path) -> Unavailable | None:
    """None if the dynamic loader would find the library."""
    if any((folder / LIBRARY).exists() for folder in _loader_folders(root)):
        return None
    for home in _homes(root):
        if (home / "lib64" / LIBRARY).exists():
            script = home / "set_env.sh"
            if not script.exists():
                script = home.parent / "set_env.sh"
            return Unavailable(
                "no_library",
                f"CANN is installed in {home}, but the loader does not find {LIBRARY}",
                f"source {script}",
            )
    return Unavailable(
        "no_library",
        f"CANN is not installed: {LIBRARY} not found",
        "install the CANN toolkit and source its set_env.sh",
    )


def _loader_folders(root: Path) -> list[Path]:
    """The search path of the loader, near enough: its cache is built from these files."""
    chosen = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    folders = [Path(folder) for folder in chosen if folder]
    for conf in sorted((root / "etc/ld.so.conf.d").glob("*.conf")):
        lines = (line.strip() for line in conf.read_text().splitlines())
        folders += [root / line.lstrip("/") for line in lines if line.startswith("/")]
    return [*folders, *(root / d for d in ("lib", "lib64", "usr/lib", "usr/lib64"))]


def _homes(root: Path) -> list[Path]:
    named = (os.environ.get(v) for v in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"))
    return [Path(home) for home in named if home] + [root / home for home in HOMES]
