"""Structured output through the offline engine, whose model knows nothing."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from inferplane import Engine, SamplingParams
from inferplane.errors import ConfigError, RequestError
from inferplane.sampling_params import Tag, structural_tag_constraint

SCHEMA = {
    "type": "object",
    "properties": {
        "name_of_the_colour": {"enum": ["red", "green"]},
        "is_it_light": {"type": "boolean"},
        "words": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 2, "maxItems": 2},
    },
    "required": ["name_of_the_colour", "is_it_light", "words"],
    "additionalProperties": False,
}
TEXT = json.dumps(SCHEMA)
COMMON = {"json_schema": TEXT, "max_tokens": 200, "temperature": 9.0}


def fits(text: str) -> bool:
    value = json.loads(text)
    colour, light, words = value.values()
    return (
        list(value) == SCHEMA["required"]
        and colour in ("red", "green")
        and light in (True, False)
        and len(words) == 2
        and set(words) <= {"a", "b"}
    )


def test_json(engine: Engine) -> None:
    results = engine.generate(["one", "two"], {**COMMON, "n": 4, "seed": 5})
    assert len(results) == 8
    assert all(fits(result.text) for result in results)
    assert {result.finish_reason for result in results} == {"stop"}
    assert len({result.text for result in results}) > 1


def test_a_stream_is_the_same_text(engine: Engine) -> None:
    params = {"json_schema": TEXT, "seed": 3, "max_tokens": 200}
    (whole,) = engine.generate("one", params)
    deltas = list(engine.generate("one", params, stream=True))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [t for delta in deltas for t in delta.tokens] == whole.token_ids
    assert max(len(delta.tokens) for delta in deltas) > 5  # forced text comes at once


def test_regex_and_choices(engine: Engine) -> None:
    pattern = "[0-9]{3}-(?:yes|no)"
    for result in engine.generate("x", {"regex": pattern, "n": 5}):
        assert re.fullmatch(pattern, result.text)


def test_a_stop_string_within_forced_text(engine: Engine) -> None:
    (result,) = engine.generate("x", {"json_schema": TEXT, "stop": ["_the_"]})
    assert (result.text, result.matched) == ('{"name_of', "_the_")
    assert engine.tokenizer.decode(result.token_ids).startswith('{"name_of_the_')


def test_limits_hold_within_forced_text(engine: Engine) -> None:
    for count in range(1, 9):
        (result,) = engine.generate("x", {"json_schema": TEXT, "max_tokens": count})
        assert len(result.token_ids) == count and result.finish_reason == "length"
        assert '{"name_of_the_colour":"'.startswith(result.text[:23])


def test_logprobs_of_every_token(engine: Engine) -> None:
    (result,) = engine.generate("x", {"json_schema": TEXT, "logprobs": 1, "max_tokens": 200})
    assert fits(result.text)
    assert [item.token for item in result.logprobs] == result.token_ids


def test_prompt_scores_need_no_grammar(engine: Engine) -> None:
    (result,) = engine.generate("x", SamplingParams(regex="a", max_tokens=0, prompt_logprobs=1))
    assert result.text == "" and result.prompt_logprobs is not None


def test_ignoring_the_end_does_not_pass_it(engine: Engine) -> None:
    (result,) = engine.generate("x", {"regex": "ab{2,4}", "ignore_eos": True, "max_tokens": 50})
    assert re.fullmatch("ab{2,4}", result.text) and result.finish_reason == "stop"


def test_tagged_parts(engine: Engine) -> None:
    tags = [Tag("<t>", SCHEMA, "</t>")]
    tag = structural_tag_constraint(tags, ["<t>"], required=True, many=False)
    (result,) = engine.generate("x", {"structural_tag": tag.text, "max_tokens": 200})
    assert result.text.startswith("<t>") and result.text.endswith("</t>")
    assert fits(result.text[3:-4])


def test_refusals(engine: Engine) -> None:
    with pytest.raises(RequestError, match="'contains' at /contains"):
        engine.generate("x", {"json_schema": '{"contains": {}}'})
    with pytest.raises(RequestError, match="exclude each other"):
        engine.generate("x", {"json_schema": "{}", "regex": "a"})
    with pytest.raises(RequestError, match="constrain_after"):
        engine.generate("x", {"constrain_after": "</think>"})
    with pytest.raises(RequestError, match="at most 262144"):
        engine.generate("x", {"regex": "a" * 300_000})


def test_the_backend_can_be_chosen(tiny_folder: Path, backends: Path) -> None:
    settings: dict[str, Any] = {
        "device": "plain",
        "kv_cache_tokens": 4096,
        "grammar_backend": "xgrammar",
    }
    if importlib.util.find_spec("xgrammar") is None:
        with pytest.raises(ConfigError, match="not installed: pip install"):
            Engine(str(tiny_folder), **settings)
        return
    with Engine(str(tiny_folder), **settings) as other:
        (result,) = other.generate("x", {"regex": "[0-9]{3}-(?:yes|no)"})
        assert re.fullmatch("[0-9]{3}-(?:yes|no)", result.text)


def test_a_grammar_that_becomes_too_complex_ends_its_request(engine: Engine) -> None:
    """Its trial meets the limits of a step, or has no time left on a busy machine."""
    pattern = "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"
    with pytest.raises(RequestError, match=r"too complex|simplify it") as caught:
        engine.generate("x", {"regex": pattern, "max_tokens": 100})
    assert (caught.value.status, caught.value.param) == (400, "regex")
    assert engine.generate("x", {"regex": "a+", "max_tokens": 3})[0].text == "aaa"
