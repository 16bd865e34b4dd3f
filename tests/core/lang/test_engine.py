"""Programs on an engine in process, whose model says the alphabet."""

import json
import re
from typing import Any

import pytest

import inferplane.lang as sgl
from inferplane import Engine
from inferplane.errors import ProgramError
from inferplane.lang.engine import EngineBackend
from tests.core.offline.tiny_model import ALPHABET
from tests.core.server.byte_model import EOS

PREFIX = "The letters follow each other, one after the other, without an end: "


@sgl.function
def letters(s: Any, start: str) -> None:
    s += PREFIX + start + sgl.gen("rest", max_tokens=3)


def test_a_gen_and_its_meta_info(engine: Engine) -> None:
    state = letters.run("abc", backend=engine, temperature=0)
    assert state["rest"] == "def"
    meta = state.get_meta_info("rest")
    assert meta["finish_reason"] == {"type": "length", "length": 3}
    assert (meta["prompt_tokens"], meta["completion_tokens"]) == (len(PREFIX) + 3, 3)
    ended = letters.run("y", backend=engine, temperature=0)
    assert ended["rest"] == "z"
    assert ended.get_meta_info("rest")["finish_reason"] == {"type": "stop", "matched": EOS}


def test_sampling_reaches_the_engine(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "a" + sgl.gen("x", stop=["f"]) + "-m" + sgl.gen("y", n=2, max_tokens=2)
        s += "x" + sgl.gen("z", max_tokens=4, ignore_eos=True, min_tokens=4)
        s += "a" + sgl.gen("stop", stop_token_ids=[ord("d")])

    state = program.run(backend=engine, temperature=0)
    assert (state["x"], state["y"]) == ("bcde", ["no", "no"])
    assert state["z"][:2] == "yz" and state.get_meta_info("z")["completion_tokens"] == 4
    assert state["stop"] == "bc"
    assert state.get_meta_info("y")[1]["completion_tokens"] == 2


def test_logprobs_are_in_sglangs_form(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += "abc" + sgl.gen(
            "x",
            max_tokens=2,
            return_logprob=True,
            logprob_start_len=1,
            top_logprobs_num=2,
            return_text_in_logprobs=True,
        )

    state = program.run(backend=engine, temperature=0)
    meta = state.get_meta_info("x")
    assert [entry[1:] for entry in meta["output_token_logprobs"]] == [
        [ord("d"), "d"],
        [ord("e"), "e"],
    ]
    first, second = meta["input_token_logprobs"]
    assert first == [None, ord("b"), "b"]
    assert second[1:] == [ord("c"), "c"] and -0.01 < second[0] <= 0
    assert len(meta["output_top_logprobs"][0]) == 2


def test_a_stream(engine: Engine) -> None:
    state = letters.run("a", backend=engine, temperature=0, stream=True)
    assert list(state.text_iter("rest")) == ["b", "c", "d"]
    assert state.get_meta_info("rest")["completion_tokens"] == 3
    assert state.text() == PREFIX + "abcd"


def test_roles_use_the_models_template(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("hi") + sgl.user("x")
        s += sgl.assistant("say a" + sgl.gen("more", max_tokens=2))
        with s.user():
            s += "k" + sgl.gen("asked", max_tokens=1)

    state = program.run(backend=engine, temperature=0)
    assert state["more"] == "bc" and state["asked"] == "l"
    assert state.text() == "<bos>system: hi\nuser: x\nassistant: say abc\nuser: kl\n"
    assert state.get_meta_info("more")["prompt_tokens"] == len(
        "?system: hi\nuser: x\nassistant:say a"
    )


@pytest.mark.parametrize(
    "method",
    [
        sgl.token_length_normalized,
        sgl.greedy_token_selection,
        sgl.unconditional_likelihood_normalized,
    ],
)
def test_select_finds_what_the_model_would_say(engine: Engine, method: Any) -> None:
    @sgl.function
    def program(s: Any, start: str) -> None:
        s += PREFIX + start + sgl.select("x", ["xyx", "cde", "cdz"], choices_method=method)

    state = program.run("ab", backend=engine)
    assert state["x"] == "cde"
    assert state.text() == PREFIX + "abcde"
    meta = state.get_meta_info("x")
    assert [entry[1] for entry in meta["input_token_logprobs"][0]] == [*b"xyx"]
    assert ("unconditional_token_logprobs" in meta) == method.unconditional


def test_select_scores_from_where_the_choices_differ_from_the_prompt(engine: Engine) -> None:
    backend = EngineBackend(engine)

    @sgl.function
    def program(s: Any) -> None:
        s += PREFIX + "a" + sgl.select("x", ["bc", "bx"])

    engine.flush_cache()
    meta = program.run(backend=backend).get_meta_info("x")
    page = engine.config.page_size
    assert page is not None
    before = len(PREFIX) // page * page  # of len(PREFIX) + 1 tokens all but the last
    assert meta["cached_tokens"] == 2 * before > 0
    assert backend.token_usage.cached_tokens == 2 * before


def test_select_needs_something_before_it(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.select("x", ["a", "b"])

    with pytest.raises(ProgramError, match=r"select\(x\) failed: select needs text before it"):
        program.run(backend=engine)


def test_forks_share_their_prefix(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PREFIX
        forks = s.fork(3)
        forks += lambda i: "ahq"[i] + sgl.gen("x", max_tokens=2)
        forks.join()

    engine.flush_cache()
    state = program.run(backend=engine, temperature=0)
    assert state["x"] == ["bc", "ij", "rs"]
    page = engine.config.page_size or 1
    shared = len(PREFIX) // page * page
    assert [m["cached_tokens"] for m in state.get_meta_info("x")] == [shared] * 3


def test_a_batch_computes_its_beginning_once(engine: Engine) -> None:
    backend = EngineBackend(engine)
    engine.flush_cache()
    states = letters.run_batch([[c] for c in ALPHABET[:4]], backend=backend, temperature=0)
    assert [s["rest"] for s in states] == ["bcd", "cde", "def", "efg"]
    page = engine.config.page_size or 1
    assert backend.token_usage.cached_tokens == 4 * (len(PREFIX) // page * page)
    assert backend.token_usage.prompt_tokens == len(PREFIX) + 4 * (len(PREFIX) + 1)
    assert backend.token_usage.completion_tokens == 4 * 3
    backend.token_usage.reset()
    assert backend.token_usage.cached_tokens == 0


def test_constraints(engine: Engine) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 1}}}
    schema |= {"required": ["a"], "additionalProperties": False}

    @sgl.function
    def program(s: Any) -> None:
        s += "abc" + sgl.gen("digits", regex="[0-9]{3}") + sgl.gen_int("number", max_tokens=5)
        s += sgl.gen("truth", dtype=bool)
        s += sgl.gen("object", json_schema=json.dumps(schema))

    state = program.run(backend=engine, temperature=0)
    assert re.fullmatch("[0-9]{3}", state["digits"])
    assert isinstance(int(state["number"]), int)
    assert state["truth"] in ("True", "False")
    assert json.loads(state["object"]) == {"a": 1}


def test_images_need_another_backend(engine: Engine) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(sgl.image(b"\x89PNG") + "?") + sgl.assistant(sgl.gen("x"))

    with pytest.raises(ProgramError, match=r"gen\(x\) failed: this backend takes no images"):
        program.run(backend=engine)


def test_what_the_engine_refuses_names_the_variable(engine: Engine) -> None:
    with pytest.raises(ProgramError, match=r"gen\(rest\) failed: top_p is 7.0"):
        letters.run("a", backend=engine, top_p=7.0)


def test_what_the_backend_tells(engine: Engine) -> None:
    assert sgl.get_server_info(engine)["vocab_size"] == 259
    sgl.flush_cache(engine)
    with pytest.raises(ProgramError, match="there is no backend"):
        sgl.flush_cache()
