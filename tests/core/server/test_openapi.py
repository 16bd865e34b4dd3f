"""The server's description of itself."""

import json
import re
from typing import Any

import pytest

from inferplane.server.endpoints import ENDPOINTS
from tests.core.server.live_server import MODEL, NAME, LiveServer


@pytest.fixture(scope="module")
def described(live: LiveServer) -> Any:
    return live.http.get("/openapi.json").json()


def test_every_endpoint_is_described(described: Any) -> None:
    expected = {(e.path.replace(":path", ""), e.method.lower()) for e in ENDPOINTS}
    found = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert found == expected
    assert described["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(described: Any) -> None:
    names = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))
    assert names == set(described["components"]["schemas"])


def test_every_field_and_no_other(described: Any) -> None:
    schema = described["components"]["schemas"]["server_ChatRequest"]
    assert schema["additionalProperties"] is False
    assert {"messages", "temperature", "top_k", "rid"} <= set(schema["properties"])
    assert schema["properties"]["model"]["anyOf"][0]["enum"] == [NAME, MODEL, "default"]
    sampling = described["components"]["schemas"]["server_NativeSampling"]
    assert "max_new_tokens" in sampling["properties"]


def test_open_paths_need_no_key(described: Any) -> None:
    open_paths = {
        path
        for path, methods in described["paths"].items()
        for operation in methods.values()
        if operation["security"] == []
    }
    assert open_paths == {"/health/live"}
