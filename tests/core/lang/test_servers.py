"""Programs on inferplane's own server, whose engine is fake, through its native and OpenAI APIs."""

from collections.abc import Iterator
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

import inferplane.lang as sgl
from inferplane.errors import ProgramError
from inferplane.messages import TokenLogprobs
from inferplane.testing import fake_engine
from inferplane.testing.fake_engine import Behaviour
from inferplane.text.tokenizer import Tokenizer
from tests.core.lang.scripted_server import scripted_server
from tests.core.server.byte_model import BOS, TEMPLATE, byte_tokenizer
from tests.core.server.live_server import CHAT, NAME, SCRIPT, LiveServer, live_server, scripted

KEY = "secret-of-the-server"


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    with live_server(scripted(), key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def endpoint(live: LiveServer) -> Iterator[sgl.RuntimeEndpoint]:
    backend = sgl.RuntimeEndpoint(live.url, api_key=KEY)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def completions(live: LiveServer) -> Iterator[sgl.OpenAI]:
    backend = sgl.OpenAI(NAME, base_url=live.url + "/v1", api_key=KEY, is_chat_model=False)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def chat(live: LiveServer) -> Iterator[sgl.OpenAI]:
    backend = sgl.OpenAI(NAME, base_url=live.url, api_key=KEY)
    yield backend
    backend.close()


@pytest.fixture
def alphabetical(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake engine finds a letter the likelier the earlier it is."""

    def logprobs(token: int, count: int, ids: object = ()) -> TokenLogprobs:
        return TokenLogprobs(token, -token / 10, 1, [])

    monkeypatch.setattr(fake_engine, "logprobs", logprobs)


@sgl.function
def plain(s: Any, prompt: str) -> None:
    s += prompt + sgl.gen("x")


@sgl.function
def talk(s: Any, prompt: str) -> None:
    s += sgl.user(prompt)
    s += sgl.assistant(sgl.gen("x"))


@sgl.function
def pick(s: Any) -> None:
    s += "It is " + sgl.select("x", ["zero", "one", "many"])


def both(backend: Any, program: Any, prompt: str, **sampling: Any) -> Any:
    """Run whole and streamed; both must say the same."""
    whole = program.run(prompt, backend=backend, **sampling)
    streamed = program.run(prompt, backend=backend, stream=True, **sampling)
    pieces = list(streamed.text_iter("x"))
    assert len(pieces) > 1
    assert "".join(pieces) == whole["x"] == streamed["x"]
    for name in ("prompt_tokens", "completion_tokens"):
        one, other = (state.get_meta_info("x")[name] for state in (whole, streamed))
        assert one == other
    return whole


def test_the_native_api(endpoint: sgl.RuntimeEndpoint) -> None:
    state = both(endpoint, plain, "emoji")
    assert state["x"] == SCRIPT["emoji"]
    assert state.get_meta_info("x")["prompt_tokens"] == len("emoji")


def test_the_native_api_passes_sampling_on(endpoint: sgl.RuntimeEndpoint, live: LiveServer) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "count" + sgl.gen(
            "x",
            max_tokens=30,
            n=2,
            stop=["five"],
            stop_token_ids=[1],
            min_p=0.1,
            regex="one.*",
            return_logprob=True,
            logprob_start_len=1,
            return_text_in_logprobs=True,
        )

    state = program.run(backend=endpoint, temperature=0.7)
    params = live.core.submitted[-1].params
    assert (params.temperature, params.min_p, params.max_tokens) == (0.7, 0.1, 30)
    assert (params.stop, params.stop_token_ids, params.top_k) == (["five"], [1], -1)
    assert params.regex == "one.*"
    assert state["x"] == [SCRIPT["count"]] * 2
    first = state.get_meta_info("x")[0]
    assert first["input_token_logprobs"][0] == [None, ord("o"), "o"]
    assert first["output_token_logprobs"][0] == [-0.25, ord("o"), "o"]


def test_the_native_api_with_roles(endpoint: sgl.RuntimeEndpoint, live: LiveServer) -> None:
    state = both(endpoint, talk, "count")
    assert state["x"] == SCRIPT["count"]
    assert live.core.submitted[-1].prompt[0] == 256  # BOS, and only one
    assert bytes(live.core.submitted[-1].prompt[1:]).decode() == CHAT.format("count")[5:]
    assert state.text() == f"<bos>user: count\nassistant: {SCRIPT['count']}\n"


def test_a_text_begins_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The template writes BOS, and so does the tokenizer of /generate."""

    def with_bos() -> Tokenizer:
        tokenizer = byte_tokenizer()
        tokenizer._backend.post_processor = TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", BOS)]
        )
        return tokenizer

    monkeypatch.setattr("tests.core.server.live_server.byte_tokenizer", with_bos)
    with live_server(Behaviour()) as live:
        backend = sgl.RuntimeEndpoint(live.url)
        state = talk.run("count", backend=backend, max_new_tokens=3)
        prompt = live.core.submitted[-1].prompt
        assert prompt == [BOS, *CHAT.format("count").removeprefix("<bos>").encode()]
        assert state.text().startswith("user: count\nassistant:")
        backend.close()


@pytest.mark.usefixtures("alphabetical")
@pytest.mark.parametrize(
    "method", [sgl.token_length_normalized, sgl.unconditional_likelihood_normalized]
)
def test_select_by_the_native_api(
    endpoint: sgl.RuntimeEndpoint, live: LiveServer, method: Any
) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "It is " + sgl.select("x", ["zero", "bad", "many"], choices_method=method)

    state = program.run(backend=endpoint)
    meta = state.get_meta_info("x")
    if method is sgl.token_length_normalized:
        assert state["x"] == "bad"
        assert live.core.submitted[-1].params.prompt_logprobs_start == len("It is ") - 3
    assert [entry[2] for entry in meta["input_token_logprobs"][0]] == [*"zero"]
    assert meta["prompt_tokens"] == len("It is ") and meta["cached_tokens"] >= 3 * len("It is ")


def test_forks_on_the_native_api(endpoint: sgl.RuntimeEndpoint) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "Letters: "
        forks = s.fork(2)
        forks += lambda i: "ab"[i] + sgl.gen("x", max_tokens=3)
        forks.join()

    endpoint.token_usage.reset()
    metas = program.run(backend=endpoint).get_meta_info("x")
    assert [meta["cached_tokens"] for meta in metas] == [len("Letters: ")] * 2
    assert endpoint.token_usage.cached_tokens >= 2 * len("Letters: ")


def test_completions(completions: sgl.OpenAI, live: LiveServer) -> None:
    state = both(completions, plain, "emoji", top_k=5, stop="never")
    assert state["x"] == SCRIPT["emoji"]
    assert state.get_meta_info("x")["finish_reason"] == {"type": "stop"}
    params = live.core.submitted[-1].params
    assert (params.top_k, params.stop, params.max_tokens) == (5, ["never"], 128)
    with pytest.raises(ProgramError, match="roles need a chat model"):
        talk.run("count", backend=completions)


@pytest.mark.usefixtures("alphabetical")
def test_select_by_completions(completions: sgl.OpenAI) -> None:
    state = pick.run(backend=completions)
    assert state["x"] == "one"
    entries = state.get_meta_info("x")["input_token_logprobs"]
    assert ["".join(entry[1] for entry in some) for some in entries] == ["zero", "one", "many"]
    with pytest.raises(ProgramError, match="needs text before it"):
        sgl.function(lambda s: s.__iadd__(sgl.select("x", ["a", "b"]))).run(backend=completions)


def test_chat(chat: sgl.OpenAI, live: LiveServer) -> None:
    state = both(chat, talk, "count", temperature=0.3, max_new_tokens=50)
    assert state["x"] == SCRIPT["count"]
    assert state.text() == f"user: count\nassistant: {SCRIPT['count']}\n"
    params = live.core.submitted[-1].params
    assert (params.temperature, params.max_tokens) == (0.3, 50)


def test_what_chat_cannot_do_is_refused(chat: sgl.OpenAI) -> None:
    @sgl.function
    def begun(s: Any) -> None:
        s += sgl.user("Hi") + sgl.assistant("Well, " + sgl.gen("x"))

    @sgl.function
    def as_user(s: Any) -> None:
        s += sgl.user(sgl.gen("x"))

    for program, message in (
        (plain.bind(prompt="count"), "'count' is outside of a role"),
        (begun, "'Well, ' comes before the answer"),
        (as_user, "gen is inside of user"),
        (pick, "which chat completions do not tell"),
    ):
        with pytest.raises(ProgramError, match=message):
            program.run(backend=chat)


def test_servers_errors_name_the_variable(chat: sgl.OpenAI, live: LiveServer) -> None:
    with pytest.raises(ProgramError, match=r"gen\(x\) failed: .*answered 400: top_p is 7.0"):
        talk.run("count", backend=chat, top_p=7.0)
    stranger = sgl.RuntimeEndpoint(live.url)
    with pytest.raises(ProgramError, match=r"gen\(x\) failed: .*answered 401"):
        plain.run("count", backend=stranger)
    stranger.close()


# Other servers, as far as they differ


def test_a_server_that_renders_no_chat_needs_a_template() -> None:
    answer = {"text": "yes", "meta_info": {"prompt_tokens": 9, "completion_tokens": 1}}
    with scripted_server({"/generate": answer, "/flush_cache": {}}) as server:
        backend = sgl.RuntimeEndpoint(server.url)
        with pytest.raises(ProgramError, match=r"does not render chat messages .*chat_template="):
            talk.run("count", backend=backend)
        backend.flush_cache()
        backend.close()
        backend = sgl.RuntimeEndpoint(server.url, chat_template=TEMPLATE)
        assert talk.run("count", backend=backend)["x"] == "yes"
        assert server.bodies[-1]["text"] == "user: count\nassistant:"
        assert server.bodies[-1]["sampling_params"]["max_new_tokens"] == 128
        backend.close()


def test_constraints_are_passed_on_and_checked_where_they_may_be_ignored() -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("How many?") + sgl.assistant(sgl.gen("x", regex="[0-9]+"))
        s += sgl.user("As JSON") + sgl.assistant(sgl.gen("y", json_schema='{"type": "object"}'))

    message = {"message": {"content": "12"}, "finish_reason": "stop"}
    with scripted_server({"/v1/chat/completions": {"choices": [message]}}) as server:
        backend = sgl.OpenAI("m", base_url=server.url)
        assert program.run(backend=backend)["x"] == "12"
        assert [body.get("regex") for body in server.bodies] == ["[0-9]+", None]
        schema = server.bodies[1]["response_format"]["json_schema"]
        assert schema["schema"] == {"type": "object"} and schema["strict"]
        message["message"] = {"content": "twelve"}
        with pytest.raises(ProgramError, match=r"'twelve', which regex .* may not support"):
            program.run(backend=backend)
        backend.close()
