"""How tokens are asked for: defaults, seeds, stop strings and ids."""

import pytest

from tests.core.server.byte_model import EOS
from tests.core.server.live_server import (
    SCRIPT,
    LiveServer,
    events,
    live_server,
    scripted,
)


class TestSamplingParams:
    def test_defaults_come_from_the_model(self, live: LiveServer) -> None:
        live.complete("count")
        params = live.core.submitted[-1].params
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 7, 1.0)
        live.complete("count", temperature=0.9, top_k=0)
        params = live.core.submitted[-1].params
        assert (params.temperature, params.top_k) == (0.9, 0)

    def test_every_field_arrives(self, live: LiveServer) -> None:
        said = {
            "temperature": 0.25,
            "top_p": 0.5,
            "top_k": 3,
            "min_p": 0.125,
            "repetition_penalty": 1.5,
            "frequency_penalty": 0.5,
            "presence_penalty": -0.5,
            "min_tokens": 2,
            "ignore_eos": True,
            "skip_special_tokens": False,
            "stop_token_ids": [5],
            "stop": ["zz"],
        }
        fields = {**said, "logit_bias": {"7": -3}, "seed": -1, "max_tokens": 4}
        live.complete("count", **fields)
        completion = live.core.submitted[-1]
        native = {**fields, "min_new_tokens": 2, "max_new_tokens": 4, "sampling_seed": -1}
        for name in ("min_tokens", "max_tokens", "seed"):
            del native[name]
        live.generate("count", sampling_params=native)
        for submit in (completion, live.core.submitted[-1]):
            assert {name: getattr(submit.params, name) for name in said} == said
            assert submit.params.logit_bias == {7: -3}
            assert submit.seed == 2**64 - 1 and submit.max_tokens == 4
            assert submit.stop_ids == [5]

    def test_seeds_are_drawn(self, live: LiveServer) -> None:
        for _ in range(2):
            live.complete(["count", "count"], n=2)
        seeds = [submit.seed for submit in live.core.submitted[-8:]]
        assert seeds[0] == seeds[1] and len(set(seeds)) == 4
        assert [s.sample_index for s in live.core.submitted[-4:]] == [0, 1, 0, 1]

    def test_eos_ends_unless_ignored(self, live: LiveServer) -> None:
        live.complete("count")
        assert live.core.submitted[-1].stop_ids == [EOS]
        choice = live.complete("count", ignore_eos=True, max_tokens=30).json()["choices"][0]
        assert choice["finish_reason"] == "length"

    def test_ids_of_requests_are_ours(self, live: LiveServer) -> None:
        live.http.post(
            "/v1/completions", json={"prompt": "count"}, headers={"x-request-id": "mine"}
        )
        live.generate("count", rid="mine")
        ids = [submit.request_id for submit in live.core.submitted[-2:]]
        assert len(set(ids)) == 2 and all(len(i) == 32 for i in ids)


class TestStop:
    @pytest.mark.parametrize("burst", [1, 2, 5, 100])
    def test_stop_string(self, burst: int) -> None:
        with live_server(scripted(burst=burst)) as live:
            self.check(live)

    def check(self, live: LiveServer) -> None:
        whole = live.complete("stop", stop=["STOP"]).json()
        assert whole["choices"][0]["text"] == "alpha "
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert whole["usage"]["completion_tokens"] == len("alpha STOP")
        chunks = events(live.complete("stop", stop="STOP", stream=True))
        pieces = [chunk["choices"][0]["text"] for chunk in chunks]
        assert "".join(pieces) == "alpha " and not any("S" in piece for piece in pieces)
        assert live.call(lambda: live.client.open_sequences) == 0
        shown = live.complete("stop", stop="STOP", include_stop_str_in_output=True).json()
        assert shown["choices"][0]["text"] == "alpha STOP"

    def test_the_engine_is_told_at_once(self) -> None:
        with live_server(scripted()) as live:
            live.complete("stop", stop="STOP")
            assert live.core.aborted == [live.core.submitted[-1].request_id]
            live.complete("stop")
            assert len(live.core.aborted) == 1

    def test_what_only_looks_like_a_stop_string(self, live: LiveServer) -> None:
        chunks = events(live.complete("almost", stop="STOP", stream=True))
        text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
        assert text == SCRIPT["almost"]

    def test_min_tokens_come_before_stop_strings(self, live: LiveServer) -> None:
        whole = live.complete("count", stop=["o"], min_tokens=5, max_tokens=20).json()
        assert whole["choices"][0]["text"] == "one tw"
        assert live.complete("count", stop=["o"]).json()["choices"][0]["text"] == ""

    def test_stop_token(self, live: LiveServer) -> None:
        fields = {"stop_token_ids": [ord(" ")]}
        assert live.complete("count", **fields).json()["choices"][0]["text"] == "one"
        fields["include_stop_str_in_output"] = True  # type: ignore[assignment]
        assert live.complete("count", **fields).json()["choices"][0]["text"] == "one "

    def test_logprobs_end_with_the_text(self, live: LiveServer) -> None:
        logprobs = live.complete("stop", stop=["STOP"], logprobs=0).json()["choices"][0]["logprobs"]
        assert "".join(logprobs["tokens"]) == "alpha STOP"
