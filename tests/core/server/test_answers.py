"""What good requests get, streamed or not, on all three generating endpoints."""

from itertools import pairwise
from typing import Any

import pytest

from tests.core.server.byte_model import EOS
from tests.core.server.live_server import (
    CHAT,
    SCRIPT,
    LiveServer,
    events,
    live_server,
    scripted,
)


class TestChat:
    @pytest.mark.parametrize("prompt", SCRIPT)
    @pytest.mark.parametrize("burst", [1, 3, 100])
    def test_streamed_text_is_the_whole_text(self, prompt: str, burst: int) -> None:
        with live_server(scripted(burst=burst)) as live:
            whole = live.chat(prompt).json()["choices"][0]
            assert whole["message"]["content"] == SCRIPT[prompt]
            assert whole["message"]["role"] == "assistant"
            assert whole["finish_reason"] == "stop"
            chunks = events(live.chat(prompt, stream=True))
        deltas = [chunk["choices"][0] for chunk in chunks]
        assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
        text = "".join(delta["delta"].get("content", "") for delta in deltas)
        assert text == SCRIPT[prompt]
        assert "\ufffd" not in text
        reasons = [delta["finish_reason"] for delta in deltas]
        assert reasons == [None] * (len(deltas) - 1) + ["stop"]
        assert len({(chunk["id"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1

    def test_the_template_gets_no_second_bos(self, live: LiveServer) -> None:
        live.chat("count")
        prompt = live.core.submitted[-1].prompt
        tokenizer = live.service.generator.tokenizer
        assert prompt == tokenizer.encode(CHAT.format("count"))
        assert prompt.count(256) == 1

    def test_usage(self, live: LiveServer) -> None:
        for fields in ({}, {"stream": True, "stream_options": {"include_usage": True}}):
            response = live.chat("count", n=3, **fields)
            if fields:
                *chunks, last = events(response)
                assert last["choices"] == [] and all(c["usage"] is None for c in chunks)
                usage = last["usage"]
            else:
                usage = response.json()["usage"]
            prompt = len(CHAT.format("count")) - len("<bos>") + 1
            output = 3 * (len(SCRIPT["count"]) + 1)
            assert usage["prompt_tokens"] == prompt
            assert usage["completion_tokens"] == output
            assert usage["total_tokens"] == prompt + output
            assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] < prompt

    def test_no_usage_unless_asked(self, live: LiveServer) -> None:
        assert all("usage" not in chunk for chunk in events(live.chat("count", stream=True)))

    def test_logprobs(self, live: LiveServer) -> None:
        whole = live.chat("emoji", logprobs=True, top_logprobs=2).json()["choices"][0]
        content = whole["logprobs"]["content"]
        data = b"".join(bytes(entry["bytes"]) for entry in content[:-1])
        assert data.decode() == SCRIPT["emoji"]
        assert bytes(content[-1]["bytes"]) == b"<eos>"
        assert {len(entry["top_logprobs"]) for entry in content} == {2}
        assert {entry["logprob"] for entry in content} == {-0.25}
        chunks = events(live.chat("emoji", logprobs=True, top_logprobs=2, stream=True))
        streamed = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
        assert [entry for logprobs in streamed for entry in logprobs["content"]] == content
        plain = live.chat("emoji").json()["choices"][0]
        assert plain["logprobs"] is None

    def test_chosen_token_alone(self, live: LiveServer) -> None:
        content = live.chat("count", logprobs=True).json()["choices"][0]["logprobs"]["content"]
        assert [entry["top_logprobs"] for entry in content] == [[]] * 19

    def test_samples_differ_and_keep_their_index(self, live: LiveServer) -> None:
        whole = live.chat("anything", n=4, max_tokens=8, seed=3).json()["choices"]
        texts = [choice["message"]["content"] for choice in whole]
        assert len(set(texts)) == 4
        assert [choice["index"] for choice in whole] == [0, 1, 2, 3]
        streamed = [""] * 4
        for chunk in events(live.chat("anything", n=4, max_tokens=8, seed=3, stream=True)):
            choice = chunk["choices"][0]
            streamed[choice["index"]] += choice["delta"].get("content", "")
        assert streamed == texts

    def test_length(self, live: LiveServer) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            choice = live.chat("count", **{name: 3}).json()["choices"][0]
            assert choice["message"]["content"] == "one" and choice["finish_reason"] == "length"

    def test_max_tokens_default_is_the_room_left(self, live: LiveServer) -> None:
        live.chat("count")
        submit = live.core.submitted[-1]
        assert submit.max_tokens == 512 - len(submit.prompt)

    def test_text_parts_and_developer(self, live: LiveServer) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        messages = [{"role": "developer", "content": "d"}, {"role": "user", "content": parts}]
        body = {"messages": messages, "chat_template_kwargs": {"enable_thinking": True}}
        response = live.http.post("/v1/chat/completions", json={**body, "max_tokens": 1})
        assert response.status_code == 200
        prompt = live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)
        assert prompt == "system: d\nuser: a\nb\nassistant: <think>"

    def test_no_generation_prompt(self, live: LiveServer) -> None:
        live.chat("x", add_generation_prompt=False, max_tokens=1)
        prompt = live.service.generator.tokenizer.decode(live.core.submitted[-1].prompt)
        assert prompt == "user: x\n"

    def test_an_answer_can_be_sent_back(self, live: LiveServer) -> None:
        message = live.chat("count").json()["choices"][0]["message"]
        messages = [{"role": "user", "content": "count"}, message, {"role": "user", "content": "?"}]
        body = {"messages": messages, "max_tokens": 1}
        assert live.http.post("/v1/chat/completions", json=body).status_code == 200

    def test_fields_without_effect(self, live: LiveServer) -> None:
        response = live.chat(
            "count",
            user="u",
            metadata={"a": "b"},
            store=False,
            service_tier="auto",
            parallel_tool_calls=True,
            response_format={"type": "text"},
            modalities=["text"],
            tool_choice="none",
            tools=[],
            stream=False,
            temperature=None,
            stop=None,
            n=None,
            logit_bias={},
        )
        assert response.json()["choices"][0]["message"]["content"] == SCRIPT["count"]

    def test_sglangs_fields(self, live: LiveServer) -> None:
        for ask in (live.chat, live.complete):
            fields = {"stop": "tw", "return_hidden_states": False, "rid": "r", "extra_key": "k"}
            choice = ask("count", **fields, no_stop_trim=True).json()["choices"][0]
            assert choice.get("text", choice.get("message", {}).get("content")) == "one tw"
            assert choice["matched_stop"] == "tw"
            last = events(ask("count", **fields, stream=True))[-1]["choices"][0]
            assert last["matched_stop"] == "tw"
            assert live.core.submitted[-1].namespace != ""

    def test_prompt_logprobs(self, live: LiveServer) -> None:
        scored = live.chat("count", prompt_logprobs=1).json()["prompt_logprobs"]
        assert scored[0] is None and len(scored) == 23
        assert scored[1][str(ord("u"))] == {"logprob": -0.25, "rank": 1, "decoded_token": "u"}

    def test_no_template(self, live: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(live.service.generator.tokenizer, "_chat_template", None)
        response = live.chat("count")
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "no_chat_template"


class TestCompletions:
    PROMPTS = ("count", [*b"count"], ["count", "stop"], [[*b"count"], [*b"stop"]])

    @pytest.mark.parametrize("prompt", PROMPTS, ids=["text", "ids", "texts", "lists of ids"])
    @pytest.mark.parametrize("echo", [False, True])
    def test_kinds_of_prompts(self, live: LiveServer, prompt: Any, echo: bool) -> None:
        names = ["count", "stop"] if len(prompt) == 2 else ["count"]
        expected = [(name if echo else "") + SCRIPT[name] for name in names]
        whole = live.complete(prompt, echo=echo).json()
        assert [choice["text"] for choice in whole["choices"]] == expected
        assert whole["usage"]["prompt_tokens"] == sum(map(len, names))
        texts = [""] * len(expected)
        for chunk in events(live.complete(prompt, echo=echo, stream=True)):
            texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
        assert texts == expected

    def test_order_with_samples(self, live: LiveServer) -> None:
        choices = live.complete(["ab", "cd"], n=2, echo=True, max_tokens=2).json()["choices"]
        assert [choice["text"][:2] for choice in choices] == ["ab", "ab", "cd", "cd"]
        assert [choice["index"] for choice in choices] == [0, 1, 2, 3]

    def test_logprobs(self, live: LiveServer) -> None:
        fields = {"logprobs": 2, "echo": True}
        choice = live.complete("emoji", **fields).json()["choices"][0]
        logprobs = choice["logprobs"]
        text = choice["text"]
        assert logprobs["tokens"][:6] == ["e", "m", "o", "j", "i", "I"]
        assert logprobs["tokens"][7] == "bytes:\\xe2"
        assert logprobs["token_logprobs"] == [None] + [-0.25] * (len(logprobs["tokens"]) - 1)
        assert logprobs["top_logprobs"][0] is None
        assert logprobs["top_logprobs"][1] == {"m": -0.25, "n": -1.25}
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets) and offsets[-1] == len(text)
        for token, offset in zip(logprobs["tokens"], offsets, strict=True):
            if not token.startswith(("bytes:", "<eos>")):
                assert text[offset:].startswith(token)
        streamed: dict[str, list[Any]] = {name: [] for name in logprobs}
        for chunk in events(live.complete("emoji", stream=True, **fields)):
            for name, values in chunk["choices"][0]["logprobs"].items():
                streamed[name] += values
        assert streamed == logprobs

    def test_offsets_skip_what_the_text_does_not_show(self, live: LiveServer) -> None:
        fields = {"logprobs": 0, "echo": True, "max_tokens": 1}
        choice = live.complete([256, *b"ab"], **fields).json()["choices"][0]
        assert choice["text"][:2] == "ab" and choice["logprobs"]["text_offset"] == [0, 0, 1, 2]
        fields["skip_special_tokens"] = False
        choice = live.complete([256, *b"ab"], **fields).json()["choices"][0]
        assert choice["text"].startswith("<bos>ab")
        assert choice["logprobs"]["text_offset"] == [0, 5, 6, 7]

    def test_scoring_a_prompt(self, live: LiveServer) -> None:
        body = live.complete("count", echo=True, logprobs=1, max_tokens=0).json()
        assert body["choices"][0]["text"] == "count"
        assert body["choices"][0]["logprobs"]["tokens"] == [*"count"]
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 0

    def test_best_of_equal_to_n(self, live: LiveServer) -> None:
        assert live.complete("count", n=2, best_of=2).status_code == 200


class TestNative:
    def test_one(self, live: LiveServer) -> None:
        body = live.generate("count").json()
        assert body["text"] == SCRIPT["count"]
        assert body["output_ids"] == [*SCRIPT["count"].encode(), EOS]
        meta = body["meta_info"]
        assert meta["finish_reason"] == {"type": "stop", "matched": EOS}
        assert (meta["prompt_tokens"], meta["completion_tokens"]) == (5, 19)
        assert 0 <= meta["cached_tokens"] < 5
        same = live.http.post("/generate", json={"input_ids": [*b"count"], "rid": "me"}).json()
        assert same["text"] == body["text"] and same["meta_info"]["id"] == "me"

    def test_default_length(self, live: LiveServer) -> None:
        meta = live.generate("anything").json()["meta_info"]
        assert meta["finish_reason"] == {"type": "length", "length": 128}

    def test_cumulative_stream(self, live: LiveServer) -> None:
        chunks = events(live.generate("emoji", stream=True))
        texts = [chunk["text"] for chunk in chunks]
        assert all(b.startswith(a) for a, b in pairwise(texts))
        assert texts[-1] == SCRIPT["emoji"] and "\ufffd" not in "".join(texts)
        reasons = [chunk["meta_info"]["finish_reason"] for chunk in chunks]
        assert reasons[:-1] == [None] * (len(chunks) - 1) and reasons[-1]["type"] == "stop"
        assert len({chunk["meta_info"]["id"] for chunk in chunks}) == 1

    def test_batch(self, live: LiveServer) -> None:
        sampling = [{"max_new_tokens": 3}, {"stop": "STOP"}]
        bodies = live.generate(["count", "stop"], sampling_params=sampling).json()
        assert [body["text"] for body in bodies] == ["one", "alpha "]
        assert bodies[1]["meta_info"]["finish_reason"] == {"type": "stop", "matched": "STOP"}
        final = {}
        for chunk in events(
            live.generate(["count", "stop"], sampling_params=sampling, stream=True)
        ):
            final[chunk["index"]] = chunk["text"]
        assert final == {0: "one", 1: "alpha "}

    def test_samples(self, live: LiveServer) -> None:
        bodies = live.generate("count", sampling_params={"n": 3}).json()
        assert [body["text"] for body in bodies] == [SCRIPT["count"]] * 3

    def test_logprobs(self, live: LiveServer) -> None:
        fields = {"return_logprob": True, "top_logprobs_num": 2, "return_text_in_logprobs": True}
        sampling = {"max_new_tokens": 2}
        meta = live.generate("count", sampling_params=sampling, **fields).json()["meta_info"]
        assert meta["input_token_logprobs"] == []
        assert meta["output_token_logprobs"] == [[-0.25, 111, "o"], [-0.25, 110, "n"]]
        assert meta["output_top_logprobs"][0] == [[-0.25, 111, "o"], [-1.25, 112, "p"]]
        fields["logprob_start_len"] = 2
        meta = live.generate("count", sampling_params=sampling, **fields).json()["meta_info"]
        assert meta["input_token_logprobs"] == [
            [None, 117, "u"],
            [-0.25, 110, "n"],
            [-0.25, 116, "t"],
        ]
        assert [entry is None for entry in meta["input_top_logprobs"]] == [True, False, False]

    def test_prompt_alone(self, live: LiveServer) -> None:
        sampling = {"max_new_tokens": 0}
        fields = {"return_logprob": True, "logprob_start_len": 0}
        body = live.generate("count", sampling_params=sampling, **fields).json()
        assert body["text"] == "" and body["output_ids"] == []
        assert [entry[1] for entry in body["meta_info"]["input_token_logprobs"]] == [*b"count"]
