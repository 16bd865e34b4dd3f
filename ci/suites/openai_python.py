"""Runs openai-python's own tests of the API resources against a server over a fake engine.

    python ci/suites/openai_python.py [--sdist FOLDER] [--write]

The tests come from the source distribution on the package index and run in an environment of their
own, which is kept in ~/.cache. They were written for a mock server that answers anything, so some
ask for what a real server cannot have. Each test that does not pass must fail for one of the
REASONS; the counts are in openai_python.ratchet.json beside this file, and passes may only grow.
--write writes that file anew.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import venv
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

REPO = Path(__file__).parents[2]
sys.path[:0] = [str(REPO), str(REPO / "core"), str(REPO / "models")]

from inferplane.server.responses.store import ResponseStore, Stored  # noqa: E402
from tests.core.server import live_server  # noqa: E402

VERSION = "3.54.0"
COUNTS = Path(__file__).with_suffix(".ratchet.json")
CACHE = Path.home() / ".cache/inferplane/openai-python"
NEEDS = ["pytest", "pytest-asyncio", "pytest-xdist", "rich", "inline-snapshot", "aiohttp"]
NEEDS += ["httpx-aiohttp", "httpx2", "httpx"]
MODULES = [
    "tests/api_resources/chat",
    "tests/api_resources/test_completions.py",
    "tests/api_resources/test_models.py",
    "tests/api_resources/test_embeddings.py",
    "tests/api_resources/test_responses.py",
    "tests/api_resources/responses",
]
NAMES = ("gpt-6-astra", "gpt-3.5-turbo-instruct")
"""the models that the tests ask for"""
REASONS = {
    "does not take this HTTP method": "lists and changes what OpenAI keeps of chat completions, or "
    "deletes a model: not offered",
    "No such endpoint": "an endpoint that is not offered: stored chat completions, compaction",
    "'text-embedding-3-small' does not exist": "the model served gives no embeddings",
    "'input' is missing": "a response without input; OpenAI takes one with a stored prompt alone",
    "is not supported by this server": "a call with every parameter there is; ours says which is "
    "not supported",
    "stream_options is only allowed when stream is true": "stream_options without a stream, which "
    "OpenAI refuses too",
    "exclude each other": "max_tokens beside max_completion_tokens, or tools beside functions",
    "excludes 'functions'": "tools beside functions, their older form",
    "can be cancelled": "cancels a response that does not run in the background",
    "best_of is": "best_of other than n",
    "is not the id of an item": "pages after an item that is not there",
    "'limit' must be": "a page of no items",
    "Invalid value for 'truncation'": "a call with every parameter there is, and truncation: auto, "
    "which is not offered",
    "has no place for tools": "tools, which the fake model has no template for",
}


class AnyResponse(ResponseStore):
    """The tests retrieve responses that nobody has made: every id stands for one."""

    def __init__(self, made: Stored) -> None:
        super().__init__()
        self._made = made

    def get(self, tenant: str, identity: str, param: str) -> Stored:
        if self.has(tenant, identity):
            return super().get(tenant, identity, param)
        return Stored(self._made.resource | {"id": identity}, self._made.items, self._made.messages)


def clean() -> dict[str, str]:
    """The environment, without the packages of whoever runs this."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def environment() -> Path:
    """A Python with openai and the tools of its tests."""
    python = CACHE / f"venv-{VERSION}/bin/python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
        install = [python, "-m", "pip", "install", "-q", f"openai=={VERSION}", *NEEDS]
        subprocess.run(install, env=clean(), check=True)
    return python


def source(python: Path, folder: Path | None) -> Path:
    """The unpacked source distribution."""
    target = CACHE / f"openai-{VERSION}"
    if not target.exists():
        if folder is None:
            folder = CACHE
            wanted = [f"openai=={VERSION}", "--no-binary", ":all:", "--no-deps", "-d", folder]
            subprocess.run(
                [python, "-m", "pip", "download", "-q", *wanted], env=clean(), check=True
            )
        with tarfile.open(folder / f"openai-{VERSION}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return target


def run_tests(python: Path, folder: Path, url: str, report: Path) -> None:
    command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--tb=line", "--show-capture=no", f"--junitxml={report}", *MODULES]
    variables = clean() | {"TEST_API_BASE_URL": f"{url}/v1"}
    subprocess.run(command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, check=False)


def against_a_server(python: Path, folder: Path, report: Path) -> None:
    live_server.NAME, live_server.MODEL = NAMES
    behaviour = live_server.scripted(max_model_len=4096)
    with live_server.live_server(behaviour) as live:
        made = live.http.post("/v1/responses", json={"input": "count"}).json()
        stored = live.service.responses.get("", made["id"], "id")
        object.__setattr__(live.service, "responses", AnyResponse(stored))
        run_tests(python, folder, live.url, report)


def reason_of(message: str) -> str:
    found = [why for text, why in REASONS.items() if text in message]
    return found[0] if found else f"UNEXPLAINED: {message[:200]}"


def results(report: Path) -> tuple[int, int, Counter[str]]:
    """(passed, skipped, how many failed for each reason)"""
    passed = skipped = 0
    failed: Counter[str] = Counter()
    for case in ET.parse(report).iter("testcase"):
        failure = case.find("failure")
        if failure is None:
            failure = case.find("error")
        if failure is not None:
            failed[reason_of(failure.get("message", "") + (failure.text or ""))] += 1
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return passed, skipped, failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sdist", type=Path, help="folder that has the source distribution")
    parser.add_argument("--write", action="store_true", help="write the counts anew")
    arguments = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    python = environment()
    report = CACHE / "report.xml"
    against_a_server(python, source(python, arguments.sdist), report)
    passed, skipped, failed = results(report)
    found = {
        "openai": VERSION,
        "passed": passed,
        "skipped": skipped,
        "failed": dict(sorted(failed.items())),
    }
    print(json.dumps(found, indent=2))
    if arguments.write:
        COUNTS.write_text(json.dumps(found, indent=2) + "\n")
    before = json.loads(COUNTS.read_text())
    unexplained = [reason for reason in failed if reason.startswith("UNEXPLAINED")]
    if passed < before["passed"]:
        print(f"{passed} tests pass, {before['passed']} did", file=sys.stderr)
    return int(bool(unexplained) or passed < before["passed"])


if __name__ == "__main__":
    sys.exit(main())
