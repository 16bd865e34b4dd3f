"""Programs on Anthropic's Messages API, as its documentation shows it."""

from collections.abc import Iterator
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane.errors import ProgramError
from tests.core.lang.scripted_server import Script, event, scripted_server

PATH = "/v1/messages"
ANSWER = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "Blue."}],
    "stop_reason": "stop_sequence",
    "stop_sequence": "!",
    "usage": {"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 4},
}
EVENTS = [
    event(
        {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}},
        "message_start",
    ),
    event({"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}),
    ": a sign of life\n\n",
    event({"type": "ping"}, "ping"),
    event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Bl"}}),
    event({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "ue."}}),
    event({"type": "content_block_stop", "index": 0}),
    event(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn"},
            "usage": {"output_tokens": 2},
        }
    ),
    event({"type": "message_stop"}, "message_stop"),
]


@pytest.fixture
def server() -> Iterator[Script]:
    with scripted_server({PATH: ANSWER}) as script:
        yield script


@pytest.fixture
def backend(server: Script) -> Iterator[sgl.Anthropic]:
    backend = sgl.Anthropic("claude", base_url=server.url, api_key="secret")
    yield backend
    backend.close()


@sgl.function
def sky(s: Any) -> None:
    s += sgl.system("Be brief.") + sgl.user("Which colour is the sky?")
    s += sgl.assistant("It is" + sgl.gen("x", stop="!"))


def test_a_conversation(backend: sgl.Anthropic, server: Script) -> None:
    state = sky.run(backend=backend, max_new_tokens=9, temperature=0.5)
    assert state["x"] == "Blue."
    path, headers, body = server.asked[0]
    assert (path, headers["x-api-key"]) == (PATH, "secret")
    assert headers["anthropic-version"] == "2023-06-01"
    assert "Authorization" not in headers
    assert body == {
        "model": "claude",
        "system": "Be brief.",
        "max_tokens": 9,
        "temperature": 0.5,
        "stop_sequences": ["!"],
        "messages": [
            {"role": "user", "content": "Which colour is the sky?"},
            {"role": "assistant", "content": "It is"},
        ],
    }
    meta = state.get_meta_info("x")
    assert meta["finish_reason"] == {"type": "stop", "matched": "!"}
    assert (meta["prompt_tokens"], meta["cached_tokens"], meta["completion_tokens"]) == (14, 4, 2)
    assert backend.token_usage.prompt_tokens == 14


def test_a_stream(backend: sgl.Anthropic, server: Script) -> None:
    server.answers[PATH] = EVENTS
    state = sky.run(backend=backend, stream=True)
    assert list(state.text_iter("x")) == ["Bl", "ue."]
    assert state.get_meta_info("x")["completion_tokens"] == 2
    assert server.bodies[0]["stream"] is True


def test_an_error_in_a_stream(backend: sgl.Anthropic, server: Script) -> None:
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    server.answers[PATH] = [*EVENTS[:5], event(error, "error")]
    state = sky.run(backend=backend, stream=True)
    with pytest.raises(ProgramError, match=r"gen\(x\) failed: .*Overloaded"):
        list(state.text_iter("x"))
    server.answers[PATH] = EVENTS[:5]  # and then nothing
    with pytest.raises(ProgramError, match="the answer broke off"):
        sky.run(backend=backend, stream=True).sync()


def test_images(backend: sgl.Anthropic, server: Script) -> None:
    @sgl.function
    def look(s: Any) -> None:
        s += sgl.user(sgl.image(b"\x89PNG") + sgl.image("https://x/a.png") + "What?")
        s += sgl.assistant(sgl.gen("x"))

    look.run(backend=backend)
    assert server.bodies[0]["messages"][0]["content"] == [
        {
            "type": "image",
            "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw=="},
        },
        {"type": "image", "source": {"type": "url", "url": "https://x/a.png"}},
        {"type": "text", "text": "What?"},
    ]


def test_an_image_that_is_not_there(backend: sgl.Anthropic) -> None:
    @sgl.function
    def look(s: Any) -> None:
        s += sgl.user(sgl.image("nowhere.png")) + sgl.assistant(sgl.gen("x"))

    with pytest.raises(ProgramError, match=r"gen\(x\) failed: image 'nowhere.png' cannot be read"):
        look.run(backend=backend)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (sgl.gen("x", n=2), "n is 2, which Anthropic's API does not support"),
        (sgl.gen("x", regex="a"), "regex is 'a'"),
        (sgl.gen("x", return_logprob=True), "return_logprob is True"),
        (sgl.select("x", ["a", "b"]), "which Anthropic's API does not tell"),
    ],
)
def test_what_the_api_cannot_do_is_refused(
    part: Any, message: str, backend: sgl.Anthropic, server: Script
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("a") + sgl.assistant(part)

    with pytest.raises(ProgramError, match=message):
        program.run(backend=backend)
    assert server.asked == []


def test_the_cache_is_the_servers_own(backend: sgl.Anthropic) -> None:
    with pytest.raises(ProgramError, match="cannot empty a server's cache"):
        sgl.flush_cache(backend)
