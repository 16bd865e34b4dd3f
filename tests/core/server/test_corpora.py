"""Bodies and texts that others have collected because they break things."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.core.server.generated_requests import GOOD
from tests.core.server.live_server import LiveServer

DATA = Path(__file__).parents[4] / "shared/data"
JSON_SUITE, NAUGHTY = DATA / "json-test-suite.tar.xz", DATA / "naughty-strings.json"
HEADERS = {"content-type": "application/json"}
PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"]
TEXTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"max_tokens": 1},
    "/v1/completions": {"max_tokens": 1},
    "/v1/responses": {"max_output_tokens": 1, "store": False},
    "/v1/messages": {"model": "tiny", "max_tokens": 1},
    "/api/chat": {"model": "tiny", "stream": False, "options": {"num_predict": 1}},
    "/api/generate": {"model": "tiny", "stream": False, "options": {"num_predict": 1}},
    "/generate": {"sampling_params": {"max_new_tokens": 1}},
    "/tokenize": {},
}


def missing(path: Path) -> Any:
    return pytest.mark.skipif(not path.is_file(), reason=f"{path} is not there")


def bodies() -> Iterator[tuple[str, bytes]]:
    with tarfile.open(JSON_SUITE) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None and member.name.endswith(".json"):
                yield Path(member.name).name, file.read()


@missing(JSON_SUITE)
@pytest.mark.parametrize("path", PATHS)
def test_json_texts(live: LiveServer, path: str) -> None:
    count = 0
    for name, body in bodies():
        count += 1
        response = live.http.post(path, content=body, headers=HEADERS)
        assert response.status_code == 400, (name, response.text)
        if name.startswith("n_"):
            assert "not usable JSON" in response.text, (name, response.text)
    assert count > 300


@missing(NAUGHTY)
@pytest.mark.parametrize("path", TEXTS)
def test_texts(live: LiveServer, path: str) -> None:
    texts = [text for text in json.loads(NAUGHTY.read_text("utf-8")) if text]
    assert len(texts) > 500
    for text in texts:
        body = {**GOOD[path], **TEXTS[path]}
        for name in ("prompt", "input", "text"):
            if name in body:
                body[name] = text
        if "messages" in body:
            body["messages"] = [{"role": "user", "content": text}]
        response = live.http.post(path, json=body)
        too_long = len(text.encode()) > 400
        assert response.status_code == 200 or too_long, (text, response.text)
