"""One mixed set of requests for an engine, and what came of it: the same on every device.

Prompts longer than the token budget, shared prefixes, more sequences than fit the cache, and every
sampling parameter.
"""

import random
from dataclasses import dataclass, field
from typing import Any

from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.messages import Output, Stats, Submit, TokenLogprobs
from inferplane.plugins import Plugins
from inferplane.sampling_params import SamplingParams
from inferplane.testing.tiny import TinySource

SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0, "logprobs": 3, "logprob_token_ids": [5, 90, 0]},
    {"temperature": 0.8, "top_k": 20, "top_p": 0.9, "logprobs": 2},
    {"temperature": 1.0, "repetition_penalty": 1.3, "frequency_penalty": 0.5, "logprobs": 0},
    {"temperature": 0.0, "presence_penalty": 1.5, "logit_bias": {5: 1.5, 9: -100.0}, "logprobs": 1},
    {"temperature": 1.2, "min_p": 0.05, "min_tokens": 6, "logprobs": 1},
    {"temperature": 0.0, "prompt_logprobs": 2, "logprobs": 1, "logprob_token_ids": [1, 2]},
    {"temperature": 1.0},
)


@dataclass(slots=True)
class Answer:
    """All Outputs of one request together."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: str | None = None

    def add(self, output: Output) -> None:
        self.tokens += output.tokens
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.finish_reason = output.finish_reason or self.finish_reason


def tiny_engine(name: str, plugins: Plugins, device: str, **settings: Any) -> EngineCore:
    """An engine for a tiny model that must chunk prompts and retract sequences."""
    defaults: dict[str, Any] = {
        "dtype": "float32",
        "max_running": 6,
        "max_batch_tokens": 48,
        "page_size": 8,
        "kv_cache_tokens": 208,
        "max_model_len": 256,
    }
    config = Config(model=name, device=device, **(defaults | settings))
    return open_engine(config, TinySource(name), plugins)


def requests(seed: int = 0, vocab: int = 99) -> list[Submit]:
    """Requests in order of submission; ids say which settings they use."""
    choose = random.Random(seed)
    shared = [choose.randrange(vocab) for _ in range(70)]
    made = []
    for index in range(2 * len(SAMPLING)):
        kept = choose.choice((0, 37, 64, 70)) if index else 70
        own = [choose.randrange(vocab) for _ in range(choose.randint(1, 60))]
        made.append(
            Submit(
                request_id=f"r{index}",
                prompt=shared[:kept] + own,
                params=SamplingParams(**SAMPLING[index % len(SAMPLING)]),
                stop_ids=[7],
                max_tokens=choose.randint(3, 60),
                seed=choose.getrandbits(64),
                sample_index=index % 3,
            )
        )
    return made


def serve(engine: EngineCore, submits: list[Submit]) -> tuple[dict[str, Answer], Stats]:
    """Submit half at once and the others one every few steps; run to the end."""
    answers = {submit.request_id: Answer() for submit in submits}
    waiting = list(submits)
    steps = 0
    while waiting or engine.has_work:
        if waiting and (steps % 3 == 0 or len(waiting) > len(submits) // 2):
            assert engine.handle(waiting.pop(0)) == []
        for message in engine.step():
            assert isinstance(message, Output), message
            answers[message.request_id].add(message)
        steps += 1
    return answers, engine.scheduler.stats()
