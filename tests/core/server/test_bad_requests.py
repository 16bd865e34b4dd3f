"""Every bad request gets a 4xx in OpenAI's format that names the field, and harms nobody else."""

import asyncio
import re

import httpx
import pytest

from tests.core.server.bad_requests import CASES, CHAT, Case
from tests.core.server.live_server import SCRIPT, LiveServer

LEAKS = re.compile(r"0x[0-9a-f]{6,}|Traceback| object at |/core/|\.py\b|site-packages|inferplane\.")
HEADERS = {"content-type": "application/json"}
GOOD = {"messages": [{"role": "user", "content": "count"}]}


def test_the_table_is_large() -> None:
    assert len(CASES) >= 300


def check(case: Case, response: httpx.Response) -> None:
    assert response.status_code == case.status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    named, expected = error["param"] or "", case.param or ""
    assert named == expected or re.match(re.escape(expected) + r"[.\[]", named), error
    assert error["type"] == "invalid_request_error"
    assert isinstance(error["code"], str) or error["code"] is None
    assert error["message"]
    assert len(response.text) < 600
    assert not LEAKS.search(response.text), response.text


def is_good(response: httpx.Response) -> bool:
    choices = response.json()["choices"]
    return bool(choices[0]["message"]["content"] == SCRIPT["count"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.route}-{case.name}"[:80])
def test_is_refused(live: LiveServer, case: Case) -> None:
    check(case, live.http.post(case.route, content=case.body, headers=HEADERS))
    assert is_good(live.http.post(CHAT, json=GOOD))


def test_good_requests_beside_bad_ones(live: LiveServer) -> None:
    """Every fourth bad request, each between two good ones, 32 at a time."""

    async def run() -> None:
        limit = asyncio.Semaphore(32)
        async with httpx.AsyncClient(base_url=live.url, timeout=60) as http:

            async def bad(case: Case) -> None:
                async with limit:
                    check(case, await http.post(case.route, content=case.body, headers=HEADERS))

            async def good() -> None:
                async with limit:
                    assert is_good(await http.post(CHAT, json=GOOD))

            await asyncio.gather(*[f for case in CASES[::4] for f in (bad(case), good())])

    asyncio.run(run())


def test_the_check_can_fail(live: LiveServer) -> None:
    fine = Case(CHAT, b"", None, "")
    with pytest.raises(AssertionError):
        check(fine, live.http.post(CHAT, json=GOOD))
