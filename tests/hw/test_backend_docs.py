"""docs/backends.md names everything of the contract that a backend's author meets."""

import inspect
from dataclasses import fields

import pytest

from inferplane.hw import CONTRACT, Device, Reject, Support, Traits
from inferplane.hw.ops import TABLE
from tests.hw.backends import REPO

PAGE = (REPO / "docs/backends.md").read_text()


def names() -> dict[str, list[str]]:
    methods = [n for n, f in inspect.getmembers(Device, inspect.isfunction) if n[0] != "_"]
    codes = (Reject.__doc__ or "").split("Codes:")[1].replace(".", ",").split(",")[:7]
    return {
        "ops": list(TABLE),
        "specs": sorted({op.spec.__name__ for op in TABLE.values()}),
        "traits": [f.name for f in fields(Traits)],
        "support": [f.name for f in fields(Support)],
        "device": methods,
        "reject": [code.strip() for code in codes],
    }


@pytest.mark.parametrize("kind", names())
def test_everything_is_named(kind: str) -> None:
    wanted = names()[kind]
    assert len(wanted) > 3
    assert [name for name in wanted if f"`{name}`" not in PAGE] == []


def test_the_contract_version_is_the_code_s() -> None:
    assert f"version {CONTRACT[0]}.{CONTRACT[1]}." in PAGE
