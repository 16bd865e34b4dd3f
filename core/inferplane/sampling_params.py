"""How the tokens of one request are chosen. Knows nothing about text, HTTP or devices."""

import math

import msgspec

from inferplane.errors import RequestError

MAX_LOGPROBS = 20
MAX_SAMPLES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling settings; field names and meanings follow vLLM and SGLang.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch their filter off. `logprobs` None
    returns none, 0 only that of the chosen token, n also the n most likely. Logprobs are of the
    raw distribution, before temperature, penalties and bias. `prompt_logprobs` is the same for the
    prompt, from its token `prompt_logprobs_start` on: those before may come from the prefix cache,
    except for the one that it follows. Penalties: repetition as in CTRL
    (arXiv 1909.05858) over prompt and output; frequency and presence as in OpenAI's API, over the
    output alone. Without a `seed` each request draws its own.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    def verify(self, vocab_size: int) -> None:
        """Check every range; raises RequestError naming the field."""
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_k", self.top_k, -1, 2**31 - 1)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("n", self.n, 1, MAX_SAMPLES)
        _in_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _in_range("prompt_logprobs_start", self.prompt_logprobs_start, 0, 2**31 - 1)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}",
                    param="min_tokens",
                )
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _in_range(name, count, 0, MAX_LOGPROBS)
        self._verify_lists(vocab_size)

    def _verify_lists(self, vocab_size: int) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop has {len(self.stop)} strings, at most {MAX_STOP_STRINGS}", param="stop"
            )
        if any(not s or len(s) > 1024 for s in self.stop):
            raise RequestError("stop strings must have 1 to 1024 characters", param="stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} ids, at most {MAX_STOP_TOKENS}",
                param="stop_token_ids",
            )
        if len(self.logit_bias) > 1024:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries, at most 1024", param="logit_bias"
            )
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", list(self.logit_bias)),
        ):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise RequestError(
                        f"{name} has token id {token}, outside the vocabulary of {vocab_size}",
                        param=name,
                    )
        for value in self.logit_bias.values():
            _in_range("logit_bias", value, -100.0, 100.0)


def _in_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        raise RequestError(f"{name} is {value}, outside {left}{low}, {high}]", param=name)
