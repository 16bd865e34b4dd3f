"""Which sequences compute how many tokens in the next step, and with which pages.

The scheduler knows nothing about tensors, text or devices. It relies on one promise: the device
executes plans in the order in which they were made, and within a step a layer writes its KV before
it attends. Hence a page may be shared as soon as the step that fills it is scheduled, and reused
in the step after the one in which its last reader was scheduled.

Requests are served by seniority: (priority, arrival), the lower first. When pages run out the most
junior running request is retracted, so that the most senior one always progresses. Waiting
requests are admitted in the same order and none overtakes another.
"""

import time
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import msgspec

from inferplane.errors import RequestError
from inferplane.hw.batch import (
    FROM_DEVICE,
    PromptLogprobs,
    RowInit,
    StepPlan,
    StepResult,
)
from inferplane.messages import Output, Stats, Submit, TokenLogprobs
from inferplane.scheduling.memory import Memory
from inferplane.scheduling.pages import KVGroupPages
from inferplane.scheduling.request import Request, new_request

_seniority = attrgetter("order")


@dataclass(slots=True)
class Flight:
    """A plan whose result is still to come, and whom the parts of the result belong to."""

    requests: list[Request]
    sampled: list[Request | None]  # None: the sample is not wanted
    scored: list[tuple[Request, int]]  # and the position of the first target's predecessor


class Scheduler:
    """submit/abort at any time; schedule() makes a plan; finish() or fail() ends the oldest plan.

    schedule() may be called again before finish(): the host then plans without knowing the
    tokens of the steps in flight.
    """

    def __init__(
        self,
        *,
        page_size: int,
        groups: Sequence[KVGroupPages],
        max_running: int,
        max_queue: int,
        max_batch_tokens: int,
        max_model_len: int,
        prefix_cache: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._memory = Memory(page_size, groups, max_model_len, prefix_cache)
        self._max_running = max_running
        self._max_queue = max_queue
        self._max_batch_tokens = max_batch_tokens
        self._max_model_len = max_model_len
        self._clock = clock
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []  # both lists by seniority
        self._waiting: list[Request] = []
        self._free_rows = list(range(max_running, 0, -1))
        self._flights: dict[int, Flight] = {}
        self._step = 0
        self._arrivals = 0
        self._overfull = False  # a request was retracted and none has ended since
        self._init: list[RowInit] = []  # of the plan being made
        self._stats = Stats()

    @property
    def has_work(self) -> bool:
        """There is something to schedule or to finish."""
        return bool(self._requests or self._flights)

    def submit(self, submit: Submit) -> None:
        """Queue a request. RequestError if it is refused; nothing has changed then."""
        try:
            self.verify(submit)
            now = self._clock()
            request = new_request(submit, self._max_model_len, self._arrivals, now)
        except RequestError:
            self._stats.refused += 1
            raise
        self._arrivals += 1
        self._requests[request.request_id] = request
        insort(self._waiting, request, key=_seniority)

    def verify(self, submit: Submit, waiting: int = 0) -> None:
        """RequestError if `submit` would refuse it with so many more requests waiting."""
        self._check_free(submit, waiting)
        self._memory.verify(submit)

    def abort(self, request_id: str) -> Output | None:
        """End the request with exactly this id, whatever it is doing. None: there is no such."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        self._stats.aborted += 1
        return self._end(request, "abort")

    def schedule(self) -> StepPlan | None:
        """Plan the next step. None: nothing to compute until a step in flight is finished."""
        running, waiting = self._running, self._waiting
        decode: list[Request] = []
        prefill: list[tuple[Request, int, int]] = []  # request, first token, tokens
        self._init, self._memory.writes = [], []
        # Decodes go first. They never take all while others prefill: whoever decodes computed at
        # least one token of its prompt in the step before it began to.
        budget = self._max_batch_tokens - sum([request.decoding for request in running])
        index = 0
        while index < len(running):  # _grow may retract requests, from the end
            request = running[index]
            index += 1
            if request.decoding:
                if request.length >= request.limit:
                    continue  # its last token is in flight
                if request.computed < request.capacity or self._grow(request, 1):
                    decode.append(request)
            elif budget:
                count = self._grow(request, min(budget, request.length - request.computed))
                if count:
                    prefill.append((request, request.computed, count))
                    self._advance(request, count)
                    budget -= count
        admitting = waiting and budget and self._free_rows
        reserve = self._memory.wanted(running) if admitting else []
        while waiting and budget and self._free_rows and self._admit(waiting[0], reserve):
            request = waiting.pop(0)
            insort(running, request, key=_seniority)
            count = self._grow(request, min(budget, request.length - request.computed))
            prefill.append((request, request.computed, count))
            self._advance(request, count)
            budget -= count
            reserve = self._memory.wanted([request], reserve)
        return self._plan(decode, prefill) if decode or prefill else None

    def finish(self, plan: StepPlan, result: StepResult) -> list[Output]:
        """Take in what the device computed for a plan; plans finish in the order of schedule()."""
        flight = self._flights.pop(plan.step, None)
        if flight is None:
            return []  # an earlier step failed
        for (owner, start), scores in zip(flight.scored, result.prompt_logprobs, strict=True):
            if owner.prompt_logprobs is not None:
                for position, scored in enumerate(scores, start + 1):
                    token = owner.tokens[position]
                    owner.prompt_logprobs[position] = TokenLogprobs(token, *scored)
                owner.scored = max(owner.scored, start + len(scores))
        outputs: list[Output] = []
        for index, request in enumerate(flight.sampled):
            if request is None or request.ended:
                continue  # the token in flight when it was extended, stopped or aborted
            token = result.tokens[index]
            first = request.reported == request.prompt_len
            output = self._report(request, self._append(request, token))
            if request.params.logprobs is not None:
                figures = result.logprobs[index]
                assert figures is not None, f"step {plan.step} lacks logprobs {index}"
                output.logprobs = [TokenLogprobs(token, *figures)]
            if first:
                output.prompt_logprobs = request.prompt_logprobs
            outputs.append(output)
        return outputs

    def sampling(self, plan: StepPlan) -> list[str | None]:
        """Whose tokens the plan's samples are, by request id; None where nobody wants it."""
        flight = self._flights.get(plan.step)
        sampled = flight.sampled if flight else [None] * len(plan.sample)
        return [None if r is None or r.ended else r.request_id for r in sampled]

    def extend(self, request_id: str, tokens: Sequence[int]) -> Output | None:
        """Append output tokens that need no sampling: the request computes them as it does a
        prompt. A sample of it that is in flight is dropped; there may be one, whose input then is
        the last known token. They are reported with its next sample, or with the Output returned
        here if one of them ends the request. Not for logprobs, which only samples have."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        assert request.pending <= 1, f"{request_id} has {request.pending} samples in flight"
        for flight in self._flights.values():
            flight.sampled = [None if other is request else other for other in flight.sampled]
        request.decoding, request.need = False, None
        request.recount = request.params.has_penalties
        for token in tokens:
            reason = self._append(request, token)
            self._stats.forced_tokens += 1
            if reason is not None:
                return self._report(request, reason)
        request.length = len(request.tokens)
        return None

    def end(self, request_id: str, error: str | None = None) -> Output | None:
        """End the request as complete, or with an error of its own. None: there is no such."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        if error is None:
            return self._report(request, "stop")
        self._stats.failed += 1
        output = self._end(request, "error")
        output.error = error
        return output

    def fail(self, plan: StepPlan, message: str) -> list[Output]:
        """A step failed: what it and later ones wrote is unknown. Ends every request that runs or
        was in a step in flight, and forgets these steps and the prefix cache."""
        if plan.step not in self._flights:
            return []
        lost = [request for flight in self._flights.values() for request in flight.requests]
        self._flights.clear()
        outputs = []
        for request in [*self._running, *lost]:
            if not request.ended:
                self._stats.failed += 1
                output = self._end(request, "error")
                output.error = message
                outputs.append(output)
        self._memory.flush()
        return outputs

    def _append(self, request: Request, token: int) -> str | None:
        """One more token of output. Returns why the request ends with it, if it does."""
        request.tokens.append(token)
        self._stats.output_tokens += 1
        output_len = len(request.tokens) - request.prompt_len
        if token in request.stop_ids and output_len >= request.params.min_tokens:
            return "stop"
        return "length" if len(request.tokens) >= request.limit else None

    def _report(self, request: Request, reason: str | None) -> Output:
        """What has come since the last report."""
        if reason is None:
            cached = request.cached_tokens or 0
            output = Output(request_id=request.request_id, cached_tokens=cached)
        else:
            self._stats.finished += 1
            output = self._end(request, reason)
        output.tokens = request.tokens[request.reported :].tolist()
        request.reported = len(request.tokens)
        if reason == "stop" and output.tokens and output.tokens[-1] in request.stop_ids:
            output.stop_token = output.tokens[-1]
        return output

    def flush_cache(self) -> None:
        """Drop every cached page that no running request uses."""
        self._memory.flush()

    def stats(self) -> Stats:
        stats = msgspec.structs.replace(self._stats)
        stats.running = len(self._running)
        stats.waiting = len(self._waiting)
        stats.oldest_wait = self._clock() - self._waiting[0].submitted_at if self._waiting else 0.0
        pools = self._memory.pools
        stats.pages_total = sum(pool.num_usable for pool in pools)
        stats.pages_free = sum(pool.num_free for pool in pools)
        stats.pages_cached = sum(pool.num_evictable for pool in pools)
        stats.steps = self._step
        return stats

    def _check_free(self, submit: Submit, waiting: int) -> None:
        """RequestError for what cannot be taken now."""
        if submit.request_id in self._requests:
            raise RequestError(
                f"request_id {submit.request_id} is in use: choose another", param="request_id"
            )
        waiting += len(self._waiting)
        queued = waiting + len(self._running) - self._max_running
        if queued >= self._max_queue:
            raise RequestError(
                f"{len(self._running)} requests run and {waiting} wait: try again"
                f" later, or raise --max-queue ({self._max_queue})",
                code="queue_full",
                status=429,
            )

    def _plan(self, decode: list[Request], prefill: list[tuple[Request, int, int]]) -> StepPlan:
        """Write the step down, and count its tokens as computed and pending."""
        self._step += 1
        plan = StepPlan(
            step=self._step,
            rows=[request.row for request in decode],
            q_lens=[1] * len(decode),
            starts=[request.computed for request in decode],
            tokens=[FROM_DEVICE] * len(decode),
            num_decode=len(decode),
            sample=list(range(len(decode))),
            logprobs=[request.top_logprobs for request in decode],
            init=self._init,
            pages=self._memory.writes,
        )
        for request in decode:
            request.computed += 1
            request.length += 1
        flight = Flight(list(decode), list(decode), [])
        for request, start, count in prefill:
            index = len(plan.rows)
            plan.rows.append(request.row)
            plan.q_lens.append(count)
            plan.starts.append(start)
            plan.tokens.extend(request.tokens[start : start + count])
            flight.requests.append(request)
            if request.decoding:
                plan.sample.append(index)
                plan.logprobs.append(request.top_logprobs)
                flight.sampled.append(request)
            top = request.params.prompt_logprobs
            first, end = max(start, request.scored), min(start + count, request.prompt_len - 1)
            if top is not None and first < end:
                targets = request.tokens[first + 1 : end + 1].tolist()
                ids = request.params.logprob_token_ids
                plan.prompt_logprobs.append(PromptLogprobs(index, top, targets, first - start, ids))
                flight.scored.append((request, first))
        if max(plan.logprobs, default=-1) >= 0:
            wanted = [r.params.logprob_token_ids if r else [] for r in flight.sampled]
            plan.logprob_ids = {index: ids for index, ids in enumerate(wanted) if ids}
        self._flights[self._step] = flight
        return plan

    def _admit(self, request: Request, reserve: list[int]) -> bool:
        """Give the request at the head of the queue a row and memory, if it may run now."""
        if request.pending or (self._overfull and self._running):
            return False
        if not self._memory.attach(request, self._free_rows[-1], reserve, self._step):
            return False
        self._free_rows.pop()
        request.recount = False
        self._init.append(request.row_init())
        if request.cached_tokens is None:
            request.cached_tokens = request.computed
            self._stats.prompt_tokens += request.prompt_len
            self._stats.cached_tokens += request.computed
        return True

    def _grow(self, request: Request, count: int) -> int:
        """Memory for up to `count` more tokens; at least for one, if need be by retracting others.
        Returns how many; 0: the request itself has been retracted."""
        while not (got := self._memory.grow(request, count)):
            victim = self._running[-1]
            self._retract(victim)
            if victim is request:
                break
        return got

    def _advance(self, request: Request, count: int) -> None:
        """Count a chunk of prefill as computed; the last one samples."""
        if request.recount:
            request.recount = False
            self._init.append(request.row_init())
        settled = request.computed
        request.computed += count
        if request.computed == request.length:
            request.length += 1
            request.decoding = True
        self._memory.store(request, settled)

    def _retract(self, request: Request) -> None:
        """Back to the queue: what it has computed may survive in the prefix cache."""
        self._release(request)
        insort(self._waiting, request, key=_seniority)
        request.retractions += 1
        self._stats.retractions += 1
        self._overfull = True

    def _release(self, request: Request) -> None:
        """Take row and pages from a running request. Steps in flight that still use them come
        before any step that will get them."""
        del self._running[bisect_left(self._running, request.order, key=_seniority)]
        self._free_rows.append(request.row)
        request.row, request.decoding = 0, False
        self._memory.detach(request)

    def _end(self, request: Request, reason: str) -> Output:
        if request.row:
            self._release(request)
            self._overfull = False
        else:
            del self._waiting[bisect_left(self._waiting, request.order, key=_seniority)]
        request.ended = True
        del self._requests[request.request_id]
        return Output(
            request_id=request.request_id,
            cached_tokens=request.cached_tokens or 0,
            finish_reason=reason,
        )
