"""Probes must see the machine that the test describes, not the environment of this one."""

import os

import pytest


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if "VISIBLE_DEVICES" in name or name.startswith("ASCEND_") or name == "LD_LIBRARY_PATH":
            monkeypatch.delenv(name)
