"""The example programs run, and ask what they should; what they save is measured by themselves."""

import importlib
import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest

from tests.core.lang.fake import FakeBackend
from tests.rules.source import REPO

FOLDER = REPO / "examples/lang"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "measure")


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def fill_in(prompt: str) -> str:
    return "1900" if prompt.endswith('"born": ') else '"A name"'


def load(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_all_are_here() -> None:
    assert len(NAMES) == 5
    page = Path(REPO / "docs/lang.md").read_text()
    assert [name for name in NAMES if f"`examples/lang/{name}.py`" not in page] == []


@pytest.mark.usefixtures("examples")
@pytest.mark.parametrize("name", NAMES)
def test_an_example_runs(name: str) -> None:
    fake = FakeBackend(fill_in)
    answer = load(name).run(fake)
    assert answer and len(fake.calls) >= 4
    assert fake.prefilled, "nothing is shared"
    for prompt in fake.prompts:
        assert any(prompt.startswith(prefix) for prefix in fake.prefilled)


def test_the_page_s_program_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As printed, but for the model."""
    page = Path(REPO / "docs/lang.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "page_of_lang.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("inferplane.lang.Engine", lambda model: nullcontext(FakeBackend()))
    importlib.import_module("page_of_lang")
    assert capsys.readouterr().out == " 12 words no\n"


@pytest.mark.usefixtures("examples")
def test_extracted_values_are_json() -> None:
    lines = load("json_extraction").run(FakeBackend(fill_in)).splitlines()
    assert [json.loads(line)["born"] for line in lines] == [1900] * 4
