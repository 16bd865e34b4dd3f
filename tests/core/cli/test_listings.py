"""`inferplane devices` and `inferplane plugins`."""

import json
from pathlib import Path
from typing import Any

import pytest

from inferplane.cli import devices, plugins
from inferplane.cli.main import main
from inferplane.cli.table import size, table
from inferplane.hw import impl
from inferplane.plugins import BACKENDS, OPS, Plugins


def json_of(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main([command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    return {entry.get("backend") or entry["name"]: entry for entry in found}


def test_devices(backends: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("devices", capsys)
    plain, absent, broken = found["plain"], found["absent"], found["broken"]
    assert (plain["status"], plain["package"], plain["version"]) == (
        "available",
        "plain-backend 1.0",
        "1.5",
    )
    (device,) = plain["devices"]
    assert (device["name"], device["torch_device"]) == ("Plain One", "cpu")
    assert device["diagnostics"] == {"colour": "grey"}
    assert (absent["status"], absent["code"]) == ("unavailable", "no_hardware")
    assert (absent["reason"], absent["fix"]) == ("no such card", "plug one in")
    assert broken["status"] == "failed"
    assert "a_package_that_nobody_has" in broken["failure"]
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "plain 1.5  available\n  --device plain:0  Plain One\n    colour: grey" in shown
    assert "reason [no_hardware]: no such card\n  fix: plug one in" in shown
    assert "broken (broken)  failed\n  failed: " in shown


def test_a_device_that_cannot_be_opened_is_listed(backends: Path) -> None:
    import plain_backend  # type: ignore[import-not-found]

    loaded = Plugins()
    module = type("Module", (), dict(vars(plain_backend)))

    def fail(info: object, options: object) -> None:
        raise RuntimeError("it is on fire")

    module.create_device = staticmethod(impl(fail))  # type: ignore[attr-defined]
    loaded.register("plain", module)
    entry = next(e for e in devices.listing(loaded) if e["backend"] == "plain")
    assert entry["devices"][0]["failure"] == "RuntimeError: it is on fire"
    assert "failed: RuntimeError: it is on fire" in devices.render([entry])


def test_plugins(backends: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of("plugins", capsys)
    assert found["plain"]["brings"] == ["--device plain", "--device simple"]
    assert found["plain"]["package"] == "plain-backend 1.0"
    assert "a_package_that_nobody_has" in found["broken"]["failure"]
    models = [e for e in found.values() if e["kind"] == "models"]
    assert any("llama" in e["brings"] for e in models)
    assert main(["plugins"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["KIND", "NAME", "PACKAGE", "BRINGS"]
    assert any(x.startswith("backend  plain") and x.endswith("--device simple") for x in shown)
    assert any("FAILED plugin broken: ModuleNotFoundError" in x for x in shown)


def test_op_packs_are_listed() -> None:
    pack = type("Pack", (), {"op_impls": staticmethod(impl(lambda device: ()))})
    loaded = Plugins()
    loaded.register("fast", pack, OPS, "fast-ops 3.1")
    entry = next(e for e in plugins.listing(loaded) if e["name"] == "fast")
    assert (entry["kind"], entry["package"]) == ("ops", "fast-ops 3.1")


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Plugins()
    monkeypatch.setattr(loaded, "names", lambda group: [])
    assert devices.listing(loaded) == []
    assert "pip install 'inferplane[BACKEND]'" in devices.render([])
    assert loaded.load_all(BACKENDS) == []


def test_tables_align() -> None:
    rows = [["name", "count"], ["a", "1,000"], ["long name", "2.5"]]
    assert table(rows, "  ").splitlines() == [
        "  name       count",
        "  a          1,000",
        "  long name    2.5",
    ]


def test_sizes() -> None:
    assert [size(n) for n in (5, 2048, 3 * 2**20, 5 * 2**29, 2**41)] == [
        "5 B",
        "2 KiB",
        "3 MiB",
        "2.50 GiB",
        "2048.00 GiB",
    ]
