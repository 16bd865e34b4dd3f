"""What a figure was measured on, and how benchmarks run `inferplane`."""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("inferplane", "torch", "transformers")
INFERPLANE = [sys.executable, "-m", "inferplane"]


def describe() -> dict[str, Any]:
    """The processor, the memory and the versions that matter for a figure."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    names = [x.split(":")[1].strip() for x in cpuinfo.splitlines() if x.startswith("model name")]
    flags = next(x.split(":")[1].split() for x in cpuinfo.splitlines() if x.startswith("flags"))
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": names[0],
        "cores": len(os.sched_getaffinity(0)),
        "isa": [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in flags],
        "memory_gib": round(memory / 2**30, 1),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_json(command: list[str]) -> Any:
    """Run a command that takes --json FILE, and read what it wrote. Its output stays visible."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        subprocess.run([*command, "--json", str(path)], check=True)
        return json.loads(path.read_text())


def append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file of results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as out:
        out.write(json.dumps(record) + "\n")
