"""Programs on a server with SGLang's native API: inferplane's own, or SGLang."""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any

from inferplane.errors import InferplaneError, ProgramError
from inferplane.lang.backend import Answer, TokenUsage, common_length
from inferplane.lang.choices import ChoicesMethod, Scored, Tokens
from inferplane.lang.connection import Connection
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Transcript
from inferplane.text.chat_template import ChatTemplate

SEAM = 4
"""tokens at the end of a prompt that a choice behind it may turn into others"""
TOP_LEVEL = ("return_logprob", "logprob_start_len", "top_logprobs_num", "return_text_in_logprobs")
"""fields of the request; the others are fields of its sampling_params"""


class RuntimeEndpoint:
    """`chat_template`: the text of the model's Jinja template, for servers that do not render chat
    messages themselves (SGLang's); inferplane's do."""

    def __init__(
        self, base_url: str, api_key: str | None = None, *, chat_template: str | None = None
    ) -> None:
        self._connection = Connection(base_url, api_key)
        self.token_usage = TokenUsage()
        self._begin: list[int] | None = None
        self._given = None
        if chat_template is not None:
            self._given = ChatTemplate(chat_template, "chat_template")

    def close(self) -> None:
        self._connection.close()

    @property
    def keeps_tokens(self) -> bool:
        return True

    def text(self, transcript: Transcript) -> str:
        return transcript.render(self._template)[0]

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        results = self._post(_body(self.text(transcript), sampling))
        return [Answer(result["text"], result["meta_info"]) for result in results]

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        body = {**_body(self.text(transcript), sampling), "stream": True}
        so_far, meta = "", {}
        with closing(self._connection.events("/generate", body)) as events:
            for event in events:
                text, meta = event["text"], event["meta_info"]
                yield Answer(text[len(so_far) :], meta)
                so_far = text
        self._count(meta)

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer:
        """As EngineBackend.select; the server tokenizes."""
        prompt = self.text(transcript)
        count = self._score(prompt)[0]["meta_info"]["prompt_tokens"]
        start = max(0, count - SEAM)
        results = self._score([prompt + choice for choice in choices], start)
        entries = [result["meta_info"]["input_token_logprobs"] for result in results]
        ids = [[entry[1] for entry in some] for some in entries]
        seam = min(common_length(ids), count - start, min(map(len, ids)) - 1)
        if seam < 1:
            raise ProgramError("select needs text before it: the first token has no probability")
        tokens: list[Tokens] = [[Scored(*entry) for entry in some[seam:]] for some in entries]
        alone: list[Tokens] = []
        if method.unconditional:
            bare = self._score([some[seam:] for some in ids], 0)
            alone = [
                [Scored(*entry) for entry in result["meta_info"]["input_token_logprobs"]]
                for result in bare
            ]
        best, meta = method.decide(tokens, alone)
        meta["prompt_tokens"] = count
        meta["cached_tokens"] = sum(r["meta_info"].get("cached_tokens", 0) for r in results)
        return Answer(choices[best], meta)

    def prefill(self, transcript: Transcript) -> None:
        text = self.text(transcript)
        if text:
            self._score(text)

    def flush_cache(self) -> None:
        self._connection.tell("/flush_cache")

    def get_server_info(self) -> dict[str, Any]:
        info: dict[str, Any] = self._connection.get("/get_server_info")
        return info

    def _score(self, prompts: Any, start: int | None = None) -> list[dict[str, Any]]:
        """Read prompts, a text or a list of texts or of token ids; with `start` give the logprobs
        from that token on."""
        many = isinstance(prompts, list)
        field = "input_ids" if many and isinstance(prompts[0], list) else "text"
        body = {field: prompts, "sampling_params": {"max_new_tokens": 0, "temperature": 0.0}}
        if start is not None:
            body |= {
                "return_logprob": True,
                "logprob_start_len": start,
                "return_text_in_logprobs": True,
            }
        return self._post(body)

    def _post(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self._connection.post("/generate", body)
        results: list[dict[str, Any]] = answer if isinstance(answer, list) else [answer]
        for result in results:
            self._count(result["meta_info"])
        return results

    def _count(self, meta: dict[str, Any]) -> None:
        names = ("prompt_tokens", "cached_tokens", "completion_tokens")
        self.token_usage.add(*(meta.get(name, 0) for name in names))

    def _template(self, messages: list[dict[str, Any]], answer: bool) -> str:
        """The server's /generate puts the token that begins a text before it, so it is left out.
        It is not defined in a template that was given, and so empty there."""
        if self._given is not None:
            return self._given.render(messages, None, answer, {})
        try:
            return self._rendered(messages, answer)
        except (InferplaneError, KeyError, TypeError) as error:
            raise ProgramError(
                f"{self._connection.url} does not render chat messages ({error}): pass"
                " chat_template=..., the text of the model's template, to RuntimeEndpoint"
            ) from error

    def _rendered(self, messages: list[dict[str, Any]], answer: bool) -> str:
        post = self._connection.post
        if self._begin is None:
            whole: list[int] = post("/tokenize", {"prompt": "a"})["tokens"]
            bare = post("/tokenize", {"prompt": "a", "add_special_tokens": False})["tokens"]
            self._begin = whole[: whole.index(bare[0])]
        body = {"messages": messages, "add_generation_prompt": answer}
        tokens = post("/tokenize", body)["tokens"]
        if self._begin and tokens[: len(self._begin)] == self._begin:
            tokens = tokens[len(self._begin) :]
        text: str = post("/detokenize", {"tokens": tokens, "skip_special_tokens": False})["text"]
        return text


def _body(text: str, sampling: Sampling) -> dict[str, Any]:
    said = sampling.said()
    top = {name: said.pop(name) for name in TOP_LEVEL if name in said}
    for name in ("stop", "stop_token_ids"):
        if name in said:
            said[name] = list(said[name])
    return {"text": text, "sampling_params": said, **top}
