"""What the API process and the engine process say to each other, as typed msgpack structs.

Nothing here is ever pickled. A decoder knows every tag; an unknown or malformed message is an
error of the sender and is dropped with a log line, never a crash of the receiver.
"""

import msgspec

from inferplane.grammar.contract import Grammar
from inferplane.sampling_params import SamplingParams

Logprob = tuple[int, float]
"""(token id, natural logarithm of its probability)."""


class TokenLogprobs(msgspec.Struct, array_like=True):
    """Logprob of one chosen (or prompt) token, its rank (1 = most likely), and the most likely
    tokens in falling order. `wanted` has the logprobs of SamplingParams.logprob_token_ids."""

    token: int
    logprob: float
    rank: int
    top: list[Logprob]
    wanted: list[float] = []


class Submit(msgspec.Struct, tag="submit", kw_only=True):
    """Start one sequence. A request with n samples is n Submits that differ in `sample_index`.

    `request_id` is made by the sender of this message and unique; what a client calls its request
    never gets here. `stop_ids` holds the end-of-sequence ids (unless ignored) and the request's
    own stop ids. `seed` is unsigned 64 bit. `namespace` separates prefix caches. `grammar` is the
    compiled form of the constraint in `params`, if there is one.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    stop_ids: list[int]
    max_tokens: int
    seed: int
    sample_index: int = 0
    namespace: str = ""
    priority: int = 0
    grammar: Grammar | None = None


class Abort(msgspec.Struct, tag="abort"):
    """Stop the sequence with exactly this id and free its pages. Unknown ids are ignored."""

    request_id: str


class Ping(msgspec.Struct, tag="ping"):
    nonce: int


class FlushCache(msgspec.Struct, tag="flush"):
    """Drop every cached page that no running request uses."""

    nonce: int


ToEngine = Submit | Abort | Ping | FlushCache


class ModelInfo(msgspec.Struct, kw_only=True):
    """What the API process must know of the loaded model."""

    model: str
    architecture: str
    vocab_size: int
    max_model_len: int
    dtype: str
    device: str
    kv_tokens: int
    max_running: int
    compute_cpus: list[int] = []
    """processors that the engine's threads are bound to, that of its own thread first"""


class Ready(msgspec.Struct, tag="ready"):
    info: ModelInfo


class Progress(msgspec.Struct, tag="progress"):
    """Where a start-up that takes long has got to."""

    text: str


GRAMMAR_ERROR = "grammar: "
"""how the `error` of an Output begins if the request's own constraint was at fault"""


class Output(msgspec.Struct, tag="output", kw_only=True):
    """New tokens of one sequence. Exactly one Output of a sequence has a `finish_reason`.

    `finish_reason` is "stop" (a stop id, the last of `tokens`, is in `stop_token`), "length",
    "abort" or "error" (then `error` says what happened). `prompt_logprobs` comes once, with the
    first output; its first entry, which has no predecessor, is None, and so are those before
    `prompt_logprobs_start`.
    """

    request_id: str
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_token: int | None = None
    error: str | None = None

    def join(self, later: "Output") -> None:
        """Take in the output that follows this one, which is not the last."""
        self.tokens += later.tokens
        if later.logprobs is not None:
            self.logprobs = [*(self.logprobs or []), *later.logprobs]
        self.cached_tokens = max(self.cached_tokens, later.cached_tokens)
        self.finish_reason, self.stop_token = later.finish_reason, later.stop_token


class Refused(msgspec.Struct, tag="refused", kw_only=True):
    """The engine did not take a Submit; see errors.RequestError for the fields."""

    request_id: str
    message: str
    status: int
    param: str | None = None
    code: str | None = None


class Stats(msgspec.Struct, kw_only=True):
    """Gauges and counters of the engine at one moment; counters only grow."""

    running: int = 0
    waiting: int = 0
    pages_total: int = 0
    pages_free: int = 0
    pages_cached: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    forced_tokens: int = 0
    """of the output tokens those that a grammar forced, which were not sampled"""
    retractions: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    refused: int = 0
    oldest_wait: float = 0.0
    """seconds since the request at the head of the queue was submitted"""


class Pong(msgspec.Struct, tag="pong"):
    nonce: int
    stats: Stats


class Fatal(msgspec.Struct, tag="fatal"):
    """The engine is going down; every open request has failed."""

    message: str


FromEngine = Ready | Progress | Output | Refused | Pong | Fatal
