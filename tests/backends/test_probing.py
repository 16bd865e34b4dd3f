"""What inferplane.hw.probing reads from a machine described as a folder."""

import sys
from pathlib import Path

import pytest

from inferplane.hw import probing
from tests.backends.machines import pci, write


def test_pci_devices_are_those_of_one_vendor(tmp_path: Path) -> None:
    write(tmp_path, pci(0x1234, 0x42, 0x0302))
    other = {k.replace(":01:", ":02:"): v for k, v in pci(0x4321, 0x43, 0x0302).items()}
    write(tmp_path, other | {"sys/bus/pci/devices/0000:03:00.0/vendor": "0x1234\n"})
    expected = probing.PciDevice("0000:01:00.0", 0x1234, 0x42, 0x0302)
    assert probing.pci_devices(0x1234, tmp_path) == [expected]
    assert probing.pci_devices(0x9999, tmp_path) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, [0, 1, 2]),
        ("2,0", [2, 0]),
        (" 1 , b", [1, 1]),
        ("0,3,1", [0]),
        ("0,-1,1", [0]),
        ("c,unknown,a", [2]),
        ("", []),
    ],
)
def test_visible_reads_the_variable_as_vendors_do(
    value: str | None, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIRST", raising=False)
    monkeypatch.setenv("SECOND", "0")
    if value is not None:
        monkeypatch.setenv("FIRST", value)
        assert probing.visible(3, "FIRST", "SECOND", ids=("a", "b", "c")) == expected
    else:
        assert probing.visible(3, "FIRST", "SECOND") == [0]
        assert probing.visible(3, "FIRST") == expected


def test_torch_build_reads_constants_without_importing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "from typing import Optional\n__version__ = '9.1+acme'\nacme: Optional[str] = '3'\n"
    write(tmp_path / "torch", {"version.py": text + "other = None\nnone = f()\n"})
    write(tmp_path / "torch", {"__init__.py": "raise RuntimeError('imported')"})
    loaded = {k: v for k, v in sys.modules.items() if k == "torch" or k.startswith("torch.")}
    for name in loaded:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert probing.torch_build() == {"__version__": "9.1+acme", "acme": "3", "other": None}
    monkeypatch.setattr(sys, "path", [])
    assert probing.torch_build() == {}
