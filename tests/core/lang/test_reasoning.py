"""separate_reasoning: what a model thinks is a variable of its own, and no part of the text."""

from collections.abc import Iterator
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane import Engine
from inferplane.errors import ProgramError
from inferplane.testing.fake_engine import Behaviour
from tests.core.lang.fake import FakeBackend
from tests.core.server.byte_model import EOS, byte_tokenizer
from tests.core.server.live_server import CHAT, NAME, LiveServer, live_server

ANSWER = "<think>\nHm, <b>?\n</think>\n\nSo it is."


@sgl.function
def program(s: Any, question: str, model_type: str = "qwen3", samples: int = 1) -> None:
    s += sgl.user(question)
    s += sgl.assistant(sgl.separate_reasoning("" + sgl.gen("x", n=samples), model_type=model_type))
    s += sgl.user("And?")
    s += sgl.assistant(sgl.gen("y"))


def thinker(prompt: str) -> str:
    return ANSWER if "Why" in prompt and "And?" not in prompt else "Yes."


def test_a_variable_of_its_own() -> None:
    backend = FakeBackend(thinker)
    state = program.run("Why?", backend=backend)
    assert (state["x"], state["x_reasoning_content"]) == ("So it is.", "Hm, <b>?")
    assert state["y"] == "Yes." and "y_reasoning_content" not in state
    assert "Hm" not in backend.prompts[1] and "assistant: So it is." in backend.prompts[1]
    none = program.run("Who?", backend=backend)
    assert (none["x"], none["x_reasoning_content"]) == ("Yes.", "")


def test_several_samples() -> None:
    state = program.run("Why?", samples=2, backend=FakeBackend(thinker))
    assert state["x"] == ["So it is.", "So it is.!"]
    assert state["x_reasoning_content"] == ["Hm, <b>?"] * 2


def test_a_stream() -> None:
    state = program.run("Why?", backend=FakeBackend(thinker), stream=True)
    assert "".join(state.text_iter("x_reasoning_content")) == "Hm, <b>?"
    assert "".join(state.text_iter("x")) == "So it is."
    assert state["x_reasoning_content"] == "Hm, <b>?" and "Hm" not in state.text()
    assert "So it is." in "".join(state.text_iter())


def test_refusals() -> None:
    with pytest.raises(ProgramError, match="model_type is 'who', must be one of"):
        sgl.separate_reasoning(sgl.gen("x"), model_type="who")
    with pytest.raises(ProgramError, match="'auto', must name a format"):
        sgl.separate_reasoning(sgl.gen("x"), model_type="auto")
    with pytest.raises(ProgramError, match="there is no gen in it"):
        sgl.separate_reasoning("text", model_type="qwen3")


@pytest.mark.parametrize("stream", [False, True])
def test_an_engine_in_process(engine: Engine, stream: bool) -> None:
    """Whose model says the alphabet: letters are its tags, and the prompt opens the first."""

    @sgl.function
    def letters(s: Any) -> None:
        s += "ab" + sgl.separate_reasoning(
            sgl.gen("x", max_tokens=8, temperature=0), model_type="ab...ef"
        )

    state = letters.run(backend=engine, stream=stream)
    state.sync()
    assert (state["x"], state["x_reasoning_content"]) == ("ghij", "cd")
    assert state.text() == "abghij"


MARKS = ("[THINK]", "[/THINK]")


@pytest.fixture(scope="module")
def live() -> Iterator[LiveServer]:
    """A model whose marks are special tokens."""
    tokenizer = byte_tokenizer(special=MARKS)
    tokens = [*tokenizer.encode("[THINK]Hm.[/THINK]So."), EOS]
    script = [(tokenizer.encode(CHAT.format("Why?")), tokens)]
    behaviour = Behaviour(script=script, vocab_size=300)
    with live_server(behaviour, tokenizer=tokenizer, reasoning_parser="mistral") as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("api", ["native", "chat"])
def test_a_server(live: LiveServer, api: str, stream: bool) -> None:
    """The native API gives what the model wrote; the chat API has told reasoning apart itself."""

    @sgl.function
    def ask(s: Any) -> None:
        s += sgl.user("Why?")
        s += sgl.assistant(sgl.separate_reasoning(sgl.gen("x"), model_type="mistral"))

    native = sgl.RuntimeEndpoint(live.url)
    backend: Any = native if api == "native" else sgl.OpenAI(NAME, base_url=live.url)
    state = ask.run(backend=backend, stream=stream)
    state.sync()
    assert (state["x"], state["x_reasoning_content"]) == ("So.", "Hm.")
    backend.close()
