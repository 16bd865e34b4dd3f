"""Runs a model through the whole engine, on a device that has nothing but the reference ops, and
remembers the hidden states of every computed position."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import inferplane.hw as hw
from inferplane.checkpoint.source import ModelSource
from inferplane.config import Config
from inferplane.engine import EngineCore, open_engine
from inferplane.hw.batch import StepPlan
from inferplane.messages import Output, Ping, Pong, Refused, Stats, Submit, TokenLogprobs
from inferplane.plugins import Plugins
from inferplane.runner.runner import Forwarded
from inferplane.sampling_params import SamplingParams


class ReferenceBackend:
    """A backend without kernels on the CPU."""

    @staticmethod
    @hw.impl
    def backend_info() -> hw.BackendInfo:
        return hw.BackendInfo(name="plain", version="1", devices=("plain",), rank=0)

    @staticmethod
    @hw.impl
    def probe() -> list[hw.DeviceInfo]:
        return [hw.DeviceInfo(backend="plain", torch_device="cpu", name="plain torch")]

    @staticmethod
    @hw.impl
    def create_device(info: hw.DeviceInfo, options: dict[str, Any]) -> hw.Device:
        return hw.TorchDevice(info)


@dataclass(slots=True)
class Answer:
    """All outputs of one request put together."""

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int = 0
    finish_reason: str | None = None
    stop_token: int | None = None

    def add(self, output: Output) -> None:
        assert output.error is None, output.error
        self.tokens += output.tokens
        self.logprobs += output.logprobs or []
        self.prompt_logprobs = output.prompt_logprobs or self.prompt_logprobs
        self.cached_tokens = output.cached_tokens
        self.finish_reason = output.finish_reason or self.finish_reason
        self.stop_token = output.stop_token

    @property
    def computed(self) -> list[int]:
        """The tokens that went through the model: the last sampled one did not."""
        return self.prompt + self.tokens[:-1]


class Served:
    """An engine whose runner is watched."""

    def __init__(self, engine: EngineCore) -> None:
        self.engine = engine
        self.hidden: dict[str, dict[int, torch.Tensor]] = {}
        self.plans: list[StepPlan] = []
        self._forward = engine.loaded.runner.forward
        engine.loaded.runner.forward = self._watch  # type: ignore[method-assign]

    def _watch(self, plan: StepPlan) -> Forwarded:
        done = self._forward(plan)
        self.plans.append(plan)
        requests = self.engine.scheduler._flights[plan.step].requests
        hidden = done.hidden.clone() if done.recorded else done.hidden
        first = 0
        for request, start, count in zip(requests, plan.starts, plan.q_lens, strict=True):
            kept = self.hidden.setdefault(request.request_id, {})
            for offset in range(count):
                kept[start + offset] = hidden[first + offset]
            first += count
        return done

    def run(self, requests: Iterable[Submit], later: Sequence[Submit] = ()) -> dict[str, Answer]:
        """Submit `requests` at once and `later` one per step; run until all have ended."""
        queue, answers = list(later), {}
        self.hidden.clear()
        self.plans.clear()
        for submit in requests:
            self._submit(submit, answers)
        while self.engine.has_work or queue:
            if queue:
                self._submit(queue.pop(0), answers)
            for output in self.engine.step():
                assert isinstance(output, Output)
                answers[output.request_id].add(output)
        return answers

    def _submit(self, submit: Submit, answers: dict[str, Answer]) -> None:
        refused = self.engine.handle(submit)
        assert not refused, refused
        answers[submit.request_id] = Answer(submit.prompt)

    def refuse(self, submit: Submit) -> Refused:
        (refused,) = self.engine.handle(submit)
        assert isinstance(refused, Refused)
        return refused

    def logits(self, request_id: str) -> dict[int, torch.Tensor]:
        """f32[V] of each position that was computed for a request of the last `run`, on the CPU."""
        kept = self.hidden[request_id]
        with torch.inference_mode():
            rows = self.engine.loaded.model.logits(torch.stack(list(kept.values()))).cpu()
        return dict(zip(kept, rows, strict=True))

    @property
    def stats(self) -> Stats:
        (pong,) = self.engine.handle(Ping(0))
        assert isinstance(pong, Pong)
        return pong.stats


def serve(source: ModelSource, *, depth: int = 0, **settings: Any) -> Served:
    """`depth`: steps in flight, as on a device with streams."""
    plugins = Plugins()
    plugins.register("plain", ReferenceBackend)
    defaults: dict[str, Any] = {
        "model": source.name,
        "device": "plain",
        "dtype": "float32",
        "kv_cache_tokens": 8192,
        "max_running": 64,
    }
    engine = open_engine(Config(**(defaults | settings)), source, plugins)
    engine.loaded.depth = depth
    return Served(engine)


def ask(
    name: str,
    prompt: Sequence[int],
    max_tokens: int = 8,
    *,
    seed: int = 1,
    sample_index: int = 0,
    stop_ids: Sequence[int] = (),
    **params: Any,
) -> Submit:
    """A request; greedy unless it says otherwise."""
    return Submit(
        request_id=name,
        prompt=list(prompt),
        params=SamplingParams(**({"temperature": 0.0} | params)),
        stop_ids=list(stop_ids),
        max_tokens=max_tokens,
        seed=seed,
        sample_index=sample_index,
    )


def random_prompt(length: int, vocab: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 10007 + length)
    return torch.randint(0, vocab, (length,), generator=generator).tolist()
