"""What a probe can learn about this machine without torch, a vendor library or a device context.

For the `probe` hook of backends. It reads files only; paths are relative to `root`, so that tests
describe a machine as a folder.
"""

import ast
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from inferplane import env

ROOT = Path("/")


@dataclass(frozen=True, slots=True)
class PciDevice:
    """One function on the PCI bus."""

    address: str
    vendor: int
    device: int
    kind: int
    """class and subclass, e.g. 0x0302 for a 3D controller"""


def pci_devices(vendor: int, root: Path = ROOT) -> list[PciDevice]:
    """The functions of one vendor, in bus order. Present whether or not a driver is loaded."""
    found = []
    for folder in sorted((root / "sys/bus/pci/devices").glob("*")):
        try:
            values = [int((folder / f).read_text(), 16) for f in ("vendor", "device", "class")]
        except (OSError, ValueError):
            continue
        if values[0] == vendor:
            found.append(PciDevice(folder.name, values[0], values[1], values[2] >> 8))
    return found


def torch_build() -> dict[str, str | None]:
    """What the installed torch was built for: the constants of its version.py, such as
    `__version__` and one per kind of device; empty if torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        tree = ast.parse(Path(spec.origin).with_name("version.py").read_text())
    except (OSError, SyntaxError):
        return {}
    constants: dict[str, str | None] = {}
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        if isinstance(node, ast.AnnAssign):
            target = node.target
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
            constants[target.id] = None if value.value is None else str(value.value)
    return constants


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def visible(count: int, *variables: str, ids: Sequence[str] = ()) -> list[int]:
    """Which of `count` devices the process may use: the first of the environment variables that
    is set lists them by number or unique id. As the vendors do it, the first invalid entry ends
    the list, so that an empty variable hides all."""
    environment = env.snapshot()
    chosen = next((environment[v] for v in variables if v in environment), None)
    if chosen is None:
        return list(range(count))
    numbers = []
    for entry in (e.strip() for e in chosen.split(",")):
        if entry.isdecimal() and int(entry) < count:
            numbers.append(int(entry))
        elif entry in ids:
            numbers.append(ids.index(entry))
        else:
            break
    return numbers


def usable(path: Path) -> bool:
    """Whether this user may open a device file for reading and writing."""
    return os.access(path, os.R_OK | os.W_OK)
