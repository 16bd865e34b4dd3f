"""Fresh virtual environments that need no network: what this one has installed, less inferplane."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

REPO = Path(__file__).parents[2]
LEFT_OUT = {".git", ".venv", "build", "dist", "__pycache__"}


def clean_environment(**more: str) -> dict[str, str]:
    """No index, no settings of pip from outside, none of the test run's own paths."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"} | more


def run(*command: str | Path, cwd: Path | None = None, **environment: str) -> str:
    """What the command printed; a failure shows all of it."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stdout)
    return done.stdout


def copy_checkout(target: Path) -> Path:
    """The working tree without what is built, so that builds can leave no litter in it."""

    def unwanted(folder: str, names: list[str]) -> set[str]:
        return {n for n in names if n in LEFT_OUT or n.startswith(".") or n.endswith(".so")}

    shutil.copytree(REPO, target, ignore=unwanted)
    return target


def neighbours(folder: Path) -> Path:
    """A folder with links to all that is installed here but inferplane."""
    folder.mkdir()
    for site in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(site).iterdir():
            ours = "inferplane" in entry.name
            if not ours and entry.suffix != ".pth" and entry.name != "__pycache__":
                (folder / entry.name).symlink_to(entry)
    return folder


class Environment:
    """A virtual environment that sees `packages` as if they were installed in it."""

    def __init__(self, folder: Path, packages: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        self.bin = folder / "bin"
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        (folder / "lib" / version / "site-packages/neighbours.pth").write_text(f"{packages}\n")

    def python(self, *arguments: str | Path, **environment: str) -> str:
        return run(self.bin / "python", *arguments, cwd=self.bin, **environment)

    def install(self, *arguments: str | Path, cwd: Path | None = None, **more: str) -> str:
        """pip, with the build tools of the neighbours unless `more` has another PATH, and with no
        index to fetch from."""
        pip = (self.bin / "python", "-m", "pip", "install", "--no-build-isolation")
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return run(*pip, *arguments, cwd=cwd or self.bin, **{"PATH": path} | more)

    def plugins(self) -> dict[str, str]:
        """Backends that this environment finds -> the file that each was loaded from."""
        code = """
from inferplane.plugins import BACKENDS, Plugins
for loaded in Plugins().load_all(BACKENDS):
    print(loaded.name, loaded.failure or loaded.module.__file__)
"""
        return dict(line.split(" ", 1) for line in self.python("-c", code).splitlines())
