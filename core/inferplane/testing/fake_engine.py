"""An engine core without a model, for tests of everything above the engine.

Its tokens come from a script or from a hash of all that a model's token may depend on, so that any
mix-up between requests shows. Run as a module it stands in for the real engine process.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from inferplane.config import Config
from inferplane.errors import InferplaneError, RequestError
from inferplane.ipc import engine_process
from inferplane.messages import (
    Abort,
    FlushCache,
    FromEngine,
    Logprob,
    ModelInfo,
    Output,
    Ping,
    Pong,
    Stats,
    Submit,
    ToEngine,
    TokenLogprobs,
)


class Behaviour(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a fake engine does. `script` maps a whole prompt to the tokens that follow it; other
    prompts get `answer`, or else hashed tokens between `low` and `high`. `fail_to_load` and
    `crash_at_step` raise, `exit_at_step` ends the process, `burst` is how many tokens one step
    gives a sequence."""

    vocab_size: int = 259
    max_model_len: int = 512
    low: int = 97
    high: int = 123
    script: list[tuple[list[int], list[int]]] = []
    answer: list[int] | None = None
    burst: int = 1
    crash_at_step: int | None = None
    exit_at_step: int | None = None
    fail_to_load: str | None = None
    compute_cpus: list[int] = []


@dataclass
class _Sequence:
    submit: Submit
    script: list[int] | None
    cached: int
    made: list[int] = field(default_factory=list)


class FakeEngineCore:
    """The interface of inferplane.engine.EngineCore."""

    def __init__(
        self,
        config: Config,
        progress: Callable[[str], None] = lambda text: None,
        behaviour: Behaviour | None = None,
    ) -> None:
        self.behaviour = behaviour or Behaviour()
        if self.behaviour.fail_to_load is not None:
            raise InferplaneError(self.behaviour.fail_to_load)
        progress("loading nothing")
        self._config = config
        self._script: Mapping[tuple[int, ...], list[int]] = {
            tuple(prompt): tokens for prompt, tokens in self.behaviour.script
        }
        self._seen: list[tuple[str, list[int]]] = []
        self._running: dict[str, _Sequence] = {}
        self.submitted: list[Submit] = []
        self.aborted: list[str] = []
        self.on_submit: Callable[[Submit], None] = lambda submit: None
        self.on_abort: Callable[[str], None] = lambda request_id: None
        self.stats = Stats(pages_total=100, pages_free=100)
        self.closed = False
        length = config.max_model_len or self.behaviour.max_model_len
        self.info = ModelInfo(
            model=config.model,
            architecture="fake",
            vocab_size=self.behaviour.vocab_size,
            max_model_len=length,
            dtype="float32",
            device="none",
            kv_tokens=4 * length,
            max_running=config.max_running,
            compute_cpus=self.behaviour.compute_cpus,
        )

    @property
    def has_work(self) -> bool:
        return bool(self._running)

    def close(self) -> None:
        self.closed = True

    def handle(self, message: ToEngine) -> list[FromEngine]:
        match message:
            case Submit():
                self._submit(message)
                return []
            case Abort():
                return self._abort(message.request_id)
            case Ping() | FlushCache():
                if isinstance(message, FlushCache):
                    self._seen.clear()
                self.stats.running = len(self._running)
                return [Pong(message.nonce, self.stats)]

    def _submit(self, submit: Submit) -> None:
        if len(self._running) >= self._config.max_queue:
            self.stats.refused += 1
            raise RequestError(
                f"{len(self._running)} requests are waiting, at most {self._config.max_queue}",
                code="queue_full",
                status=429,
            )
        cached = max(
            (
                _common(prompt, submit.prompt)
                for namespace, prompt in self._seen
                if namespace == submit.namespace
            ),
            default=0,
        )
        script = self._script.get(tuple(submit.prompt), self.behaviour.answer)
        self._seen.append((submit.namespace, submit.prompt))
        self.submitted.append(submit)
        self.on_submit(submit)
        self.stats.prompt_tokens += len(submit.prompt)
        self._running[submit.request_id] = _Sequence(
            submit, script, min(cached, len(submit.prompt) - 1)
        )

    def _abort(self, request_id: str) -> list[FromEngine]:
        self.aborted.append(request_id)
        self.on_abort(request_id)
        if self._running.pop(request_id, None) is None:
            return []
        self.stats.aborted += 1
        return [Output(request_id=request_id, finish_reason="abort")]

    def step(self) -> list[FromEngine]:
        if not self._running:
            return []
        self.stats.steps += 1
        if self.stats.steps == self.behaviour.crash_at_step:
            raise RuntimeError("secret detail of a crash")
        if self.stats.steps == self.behaviour.exit_at_step:
            raise SystemExit(3)
        outputs: list[FromEngine] = []
        for sequence in list(self._running.values()):
            output = self._advance(sequence)
            outputs.append(output)
            if output.finish_reason is not None:
                self.stats.finished += 1
                del self._running[sequence.submit.request_id]
        return outputs

    def _advance(self, sequence: _Sequence) -> Output:
        submit = sequence.submit
        output = Output(request_id=submit.request_id, cached_tokens=sequence.cached)
        first = not sequence.made
        for _ in range(self.behaviour.burst):
            token = self._token(sequence)
            sequence.made.append(token)
            output.tokens.append(token)
            if token in submit.stop_ids and len(sequence.made) > submit.params.min_tokens:
                output.finish_reason, output.stop_token = "stop", token
                break
            if len(sequence.made) >= submit.max_tokens:
                output.finish_reason = "length"
                break
        ids = submit.params.logprob_token_ids
        if submit.params.logprobs is not None:
            output.logprobs = [logprobs(t, submit.params.logprobs, ids) for t in output.tokens]
        if first and submit.params.prompt_logprobs is not None:
            rest = [logprobs(t, submit.params.prompt_logprobs, ids) for t in submit.prompt[1:]]
            skipped = min(submit.params.prompt_logprobs_start, len(submit.prompt))
            output.prompt_logprobs = [*[None] * skipped, *[None, *rest][skipped:]]
        self.stats.output_tokens += len(output.tokens)
        return output

    def _token(self, sequence: _Sequence) -> int:
        submit, made = sequence.submit, sequence.made
        if sequence.script is not None:
            return sequence.script[len(made) % len(sequence.script)]
        context = repr((submit.prompt, made, submit.namespace, submit.seed, submit.sample_index))
        digest = hashlib.sha256(context.encode()).digest()
        span = self.behaviour.high - self.behaviour.low
        return self.behaviour.low + int.from_bytes(digest[:4], "little") % span


def logprobs(token: int, count: int, ids: Sequence[int] = ()) -> TokenLogprobs:
    """A made-up but fixed distribution: the nearer to the chosen token, the likelier."""
    top: list[Logprob] = [(token + i, -0.25 - i) for i in range(count)]
    wanted = [-0.25 - abs(i - token) for i in ids]
    return TokenLogprobs(token=token, logprob=-0.25, rank=1, top=top, wanted=wanted)


def _common(first: list[int], second: list[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


def _build(config: Config, progress: Callable[[str], None]) -> FakeEngineCore:
    """`config.model` is "fake" or "fake:" and a Behaviour in JSON."""
    _, _, text = config.model.partition(":")
    behaviour = msgspec.json.decode(text, type=Behaviour) if text else Behaviour()
    return FakeEngineCore(config, progress, behaviour)


if __name__ == "__main__":
    engine_process.main(_build)
