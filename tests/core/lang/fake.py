"""A backend whose answers are given, and that remembers what it was asked."""

import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

from inferplane.lang.backend import Answer, TokenUsage, chat_text
from inferplane.lang.choices import ChoicesMethod, Scored
from inferplane.lang.sampling import Sampling
from inferplane.lang.transcript import Transcript

Rule = Callable[[str], str]


def count_words(prompt: str) -> str:
    return f" {len(prompt.split())} words"


class FakeBackend:
    """`rule` says what follows a prompt; a stream gives it word by word. `on_call` is called in the
    thread of each call, with the prompt. A choice is the likelier the earlier in the alphabet."""

    def __init__(
        self, rule: Rule = count_words, on_call: Callable[[str], object] = lambda prompt: None
    ) -> None:
        self.rule = rule
        self.on_call = on_call
        self.token_usage = TokenUsage()
        self.calls: list[tuple[str, Sampling]] = []
        self.prefilled: list[str] = []
        self.closed_streams = 0
        self._lock = threading.Lock()

    @property
    def keeps_tokens(self) -> bool:
        return False

    def text(self, transcript: Transcript) -> str:
        return chat_text(transcript)

    def generate(self, transcript: Transcript, sampling: Sampling) -> list[Answer]:
        text = self._answer(transcript, sampling)
        samples = range(sampling.n or 1)
        return [Answer(text + "!" * i, {"sample": i, "words": len(text.split())}) for i in samples]

    def stream(self, transcript: Transcript, sampling: Sampling) -> Generator[Answer, None, None]:
        text = self._answer(transcript, sampling)
        try:
            for index, word in enumerate(text.split(" ")):
                yield Answer(" " * (index > 0) + word, {"pieces": index + 1})
        finally:
            self.closed_streams += 1

    def select(
        self, transcript: Transcript, choices: Sequence[str], method: ChoicesMethod
    ) -> Answer:
        self._answer(transcript, Sampling())
        tokens = [[Scored(-float(ord(c[0])), c)] for c in choices]
        best, meta = method.decide(tokens, tokens)
        return Answer(choices[best], meta)

    def prefill(self, transcript: Transcript) -> None:
        self.prefilled.append(self.text(transcript))

    def flush_cache(self) -> None:
        self.prefilled.clear()

    def get_server_info(self) -> dict[str, Any]:
        return {"model": "fake"}

    @property
    def prompts(self) -> list[str]:
        return [prompt for prompt, _ in self.calls]

    def _answer(self, transcript: Transcript, sampling: Sampling) -> str:
        prompt = self.text(transcript)
        with self._lock:
            self.calls.append((prompt, sampling))
        self.on_call(prompt)
        return self.rule(prompt)
