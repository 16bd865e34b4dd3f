"""/generate beyond the plain answer, and SGLang's endpoints about the server."""

import json
import queue
import threading
from typing import Any

import httpx
import pytest

from inferplane.errors import RequestError
from inferplane.sampling_params import SamplingParams
from tests.core.server.byte_model import EOS
from tests.core.server.live_server import MODEL, NAME, SCRIPT, LiveServer, events, live_server
from tests.core.server.live_server import scripted as scripted

ENDLESS = {"max_new_tokens": 900_000, "ignore_eos": True}
INCREMENTAL = {"stream": True, "incremental_streaming_output": True}


class TestStream:
    @pytest.mark.parametrize("burst", [1, 3, 100])
    def test_incremental_chunks_add_up(self, burst: int) -> None:
        with live_server(scripted(burst=burst)) as live:
            whole = live.generate("emoji", return_logprob=True).json()
            chunks = events(live.generate("emoji", return_logprob=True, **INCREMENTAL))
        assert "".join(chunk["text"] for chunk in chunks) == whole["text"] == SCRIPT["emoji"]
        assert [t for chunk in chunks for t in chunk["output_ids"]] == whole["output_ids"]
        name = "output_token_logprobs"
        entries = [e for chunk in chunks for e in chunk["meta_info"][name]]
        assert entries == whole["meta_info"][name] and len(entries) == len(whole["output_ids"])
        lengths = [chunk["meta_info"]["output_token_logprobs_length"] for chunk in chunks]
        assert lengths == sorted(lengths) and lengths[-1] == len(entries)

    @pytest.mark.parametrize("incremental", [False, True])
    def test_interval(self, live: LiveServer, incremental: bool) -> None:
        sampling = {"stream_interval": 5}
        fields = {"stream": True, "incremental_streaming_output": incremental}
        chunks = events(live.generate("count", sampling_params=sampling, **fields))
        counts = [chunk["meta_info"]["completion_tokens"] for chunk in chunks]
        assert counts == [5, 10, 15, 19]
        texts = [chunk["text"] for chunk in chunks]
        assert ("".join(texts) if incremental else texts[-1]) == SCRIPT["count"]


class TestBatch:
    def test_names(self, live: LiveServer) -> None:
        results = live.generate(["count", "stop"], rid=["a", "b"]).json()
        assert [result["meta_info"]["id"] for result in results] == ["a", "b"]
        results = live.generate("x", rid="a", sampling_params={"n": 2}).json()
        assert [result["meta_info"]["id"] for result in results] == ["a", "a"]

    def test_logprobs_for_each_prompt(self, live: LiveServer) -> None:
        fields = {"return_logprob": [True, False, True], "logprob_start_len": [1, -1, -1]}
        fields["top_logprobs_num"] = [2, 0, 0]
        params = {"max_new_tokens": 2}
        results = live.generate(["ab", "cd", "ef"], sampling_params=params, **fields).json()
        first, second, third = (result["meta_info"] for result in results)
        assert first["input_token_logprobs"] == [[None, ord("b"), None]]
        assert first["input_token_logprobs_length"] == 1
        assert len(first["output_top_logprobs"][0]) == 2
        assert "output_token_logprobs" not in second
        assert third["input_token_logprobs"] == [] and "output_top_logprobs" not in third

    def test_named_tokens(self, live: LiveServer) -> None:
        """One id or one list is for all prompts, a list of lists has one for each."""
        fields = {"return_logprob": True, "logprob_start_len": [0, -1]}
        params = {"max_new_tokens": 2}

        def ask(ids: Any, **more: Any) -> list[Any]:
            more |= {"sampling_params": params, "token_ids_logprob": ids, **fields}
            return [one["meta_info"] for one in live.generate(["count", "stop"], **more).json()]

        first, second = ask([[110, 111], None], return_text_in_logprobs=True)
        one, nothing = [[-1.25, 110, "n"], [-0.25, 111, "o"]], None
        assert first["output_token_ids_logprobs"][0] == one
        assert len(first["output_token_ids_logprobs"]) == 2
        assert first["input_token_ids_logprobs"][0] is nothing
        assert first["input_token_ids_logprobs"][1] == [[-1.25, 110, "n"], [-0.25, 111, "o"]]
        assert len(first["input_token_ids_logprobs"]) == len("count")
        assert "output_token_ids_logprobs" not in second
        for ids in (97, [97]):
            entries = [meta["output_token_ids_logprobs"][0][0][1:] for meta in ask(ids)]
            assert entries == [[97, None]] * 2
        assert ask([97])[1]["input_token_ids_logprobs"] == []

    def test_named_tokens_of_a_stream(self, live: LiveServer) -> None:
        fields = {"return_logprob": True, "token_ids_logprob": [1, 2]}
        whole = live.generate("count", **fields).json()["meta_info"]["output_token_ids_logprobs"]
        name = "output_token_ids_logprobs"
        chunks = events(live.generate("count", **fields, **INCREMENTAL))
        assert [e for chunk in chunks for e in chunk["meta_info"][name]] == whole
        last = events(live.generate("count", **fields, stream=True))[-1]
        assert last["meta_info"][name] == whole and len(whole) == len(SCRIPT["count"]) + 1

    @pytest.mark.parametrize("ids", [[-1], [259], [2**70], [1] * 1025], ids=lambda ids: ids[0])
    def test_named_tokens_that_cannot_be(self, live: LiveServer, ids: list[int]) -> None:
        response = live.generate("ab", token_ids_logprob=ids, return_logprob=True)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "token_ids_logprob"

    def test_too_many_figures(self) -> None:
        params = SamplingParams(logprobs=0, prompt_logprobs=0, logprob_token_ids=[1] * 1024)
        params.verify_wanted_size(prompt_len=1000, max_tokens=24)
        with pytest.raises(RequestError, match="1024 ids for up to 1025 tokens") as refused:
            params.verify_wanted_size(prompt_len=1001, max_tokens=24)
        assert refused.value.param == "logprob_token_ids"

    def test_prompt_ids_come_back(self, live: LiveServer) -> None:
        results = live.generate(["ab", "c"], return_prompt_token_ids=True).json()
        assert [result["prompt_token_ids"] for result in results] == [[97, 98], [99]]

    def test_wrong_counts(self, live: LiveServer) -> None:
        for name, value in {
            "rid": ["a", "b", "c"],
            "return_logprob": [True] * 3,
            "logprob_start_len": [0] * 3,
            "top_logprobs_num": [0] * 3,
            "token_ids_logprob": [[1]] * 3,
        }.items():
            response = live.generate(["a", "b"], **{name: value})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == name


class Endless:
    """A request that runs in a thread until somebody aborts it."""

    def __init__(self, live: LiveServer, rid: str, key: str | None = None) -> None:
        self.result: Any = None
        started: queue.Queue[str] = queue.Queue()
        live.core.on_submit = lambda submit: started.put(submit.request_id)
        body = {"text": "x", "rid": rid, "sampling_params": ENDLESS}
        headers = {"authorization": f"Bearer {key}"} if key else {}

        def run() -> None:
            answer = httpx.post(f"{live.url}/generate", json=body, headers=headers, timeout=60)
            self.result = answer.json()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        started.get(timeout=20)

    def finish(self) -> Any:
        self._thread.join(30)
        return self.result["meta_info"]["finish_reason"]["type"]


class TestAbort:
    def test_exact_name_alone(self) -> None:
        with live_server(scripted(max_model_len=10**6)) as live:
            longer, exact = Endless(live, "job-12"), Endless(live, "job-1")
            for name, count in (("job", 0), ("job-", 0), ("JOB-1", 0), ("job-1", 1)):
                response = live.http.post("/abort_request", json={"rid": name})
                assert response.json() == {"aborted": count}, name
            assert exact.finish() == "abort"
            assert live.http.post("/abort_request", json={"rid": "job-1"}).json() == {"aborted": 0}
            assert live.http.post("/abort_request", json={"abort_all": True}).json()["aborted"] == 1
            assert longer.finish() == "abort"
            assert live.service.open_requests.of("") == []

    def test_another_tenants_request_is_out_of_reach(self) -> None:
        with live_server(scripted(max_model_len=10**6), key="k") as live:
            request = Endless(live, "mine", "k")
            (owner,) = live.service.open_requests._ids
            requests = live.service.open_requests
            stranger = ("another tenant", "mine")
            requests._ids[stranger] = {"theirs"}
            headers = {"authorization": "Bearer k"}
            for body in ({"rid": "mine"}, {"abort_all": True}):
                live.http.post("/abort_request", json=body, headers=headers)
            assert request.finish() == "abort"
            assert "theirs" not in live.core.aborted and owner[0] != stranger[0]
            assert live.http.post("/abort_request", json={"rid": "mine"}).status_code == 401

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
    def test_of_openais_endpoints(self, path: str, named: bool) -> None:
        with live_server(scripted(max_model_len=10**6)) as live:
            prompt = {"messages": [{"role": "user", "content": "x"}]}
            body: Any = {"prompt": "x"} if path == "/v1/completions" else prompt
            body |= {"stream": True, "ignore_eos": True, "rid": "mine" if named else None}
            with live.http.stream("POST", path, json=body) as response:
                lines = response.iter_lines()
                identity = json.loads(next(lines).removeprefix("data: "))["id"]
                ask = {"rid": "mine" if named else identity}
                assert httpx.post(f"{live.url}/abort_request", json=ask).json() == {"aborted": 1}
                rest = [line for line in lines if line]
            assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == "aborted"

    def test_a_stream_says_so(self) -> None:
        with live_server(scripted(max_model_len=10**6)) as live:
            body = {"text": "x", "rid": "s", "stream": True, "sampling_params": ENDLESS}
            with live.http.stream("POST", "/generate", json=body) as response:
                lines = response.iter_lines()
                next(lines)
                httpx.post(f"{live.url}/abort_request", json={"rid": "s"})
                rest = [line for line in lines if line]
            assert rest[-1] == "data: [DONE]"
            last = json.loads(rest[-2].removeprefix("data: "))
            assert last["meta_info"]["finish_reason"]["type"] == "abort"

    def test_nothing_named(self, live: LiveServer) -> None:
        for body in ({}, {"abort_all": False}, {"rid": None}):
            response = live.http.post("/abort_request", json=body)
            assert response.json()["error"]["param"] == "rid"


class TestInfo:
    @pytest.mark.parametrize("path", ["/model_info", "/get_model_info"])
    def test_model(self, live: LiveServer, path: str) -> None:
        info = live.http.get(path).json()
        assert (info["model_path"], info["served_model_name"]) == (MODEL, NAME)
        assert info["is_generation"] is True and info["context_length"] == 512

    @pytest.mark.parametrize("path", ["/server_info", "/get_server_info"])
    def test_server_tells_only_what_is_listed(self, path: str) -> None:
        with live_server(key="k", chat_template="/secret/place") as live:
            headers = {"authorization": "Bearer k"}
            response = live.http.get(path, headers=headers)
        info = response.json()
        assert info["max_total_num_tokens"] == 4 * 512 and info["device"] == "none"
        assert info["internal_states"] == [{"running": 0, "waiting": 0}]
        hidden = {"host", "port", "api_key_file", "chat_template", "chosen_by", "log_level"}
        assert not hidden & set(info) and "/secret" not in response.text


class TestFlush:
    def cached(self, live: LiveServer) -> int:
        text = "the same prompt"
        return int(live.generate(text).json()["meta_info"]["cached_tokens"])

    def test_flush(self) -> None:
        with live_server() as live:
            self.cached(live)
            assert self.cached(live) > 0
            assert live.http.post("/flush_cache", params={"timeout": 5}).status_code == 200
            assert self.cached(live) == 0

    def test_only_for_the_operator(self) -> None:
        with live_server(key="k") as live:
            assert live.http.post("/flush_cache").status_code == 401
            headers = {"authorization": "Bearer k"}
            response = live.http.post("/flush_cache", headers=headers)
            assert response.status_code == 403
            assert response.json()["error"]["code"] == "operator_only"
        with live_server(host="0.0.0.0") as live:
            assert live.http.post("/flush_cache").status_code == 403
        with live_server() as live:
            origin = {"origin": "http://localhost"}
            assert live.http.post("/flush_cache", headers=origin).status_code == 403


def test_the_end_of_sequence_is_in_the_ids(live: LiveServer) -> None:
    assert live.generate("count").json()["output_ids"][-1] == EOS
