"""Seeded simulation of the real scheduler, prefix cache and page pools against a HashDevice.

    python -m inferplane.testing.simulation --seed 7 --steps 500      replay one seed, with a trace
    python -m inferplane.testing.simulation --seeds 0:1000 --jobs 2   run many

One seed decides everything: shape of model and pools, arrivals, aborts, failures, how many steps
are in flight. Knows nothing about real time: the clock counts events.
"""

import argparse
import multiprocessing
import random
import sys
import zlib
from collections.abc import Callable
from typing import Any

import msgspec

from inferplane.errors import RequestError
from inferplane.hw.batch import RowInit, StepPlan, StepResult
from inferplane.messages import Output, Submit, TokenLogprobs
from inferplane.sampling_params import SamplingParams
from inferplane.scheduling.scheduler import Scheduler
from inferplane.testing.client import Client
from inferplane.testing.hash_device import HashDevice, Oracle, SimulationError, score, visible_span
from inferplane.testing.invariants import (
    require,
    verify_idle,
    verify_progress,
    verify_scheduler,
)
from inferplane.testing.scenario import draw_scenario

RECOUNT_STEPS = 16
VOCAB_SIZE = 40


class Simulation:
    def __init__(self, seed: int, trace: Callable[[str], None] | None = None) -> None:
        self.rng = random.Random(seed)
        self.scenario = draw_scenario(self.rng)
        s = self.scenario
        self.now = 0.0
        self.scheduler = Scheduler(
            page_size=s.page_size,
            groups=s.groups,
            max_running=s.max_running,
            max_queue=s.max_queue,
            max_batch_tokens=s.max_batch_tokens,
            max_model_len=s.max_model_len,
            prefix_cache=s.prefix_cache,
            clock=lambda: self.now,
        )
        self.device = HashDevice(s.page_size, s.groups, s.max_running, VOCAB_SIZE)
        self.open: dict[str, Client] = {}
        self.rows: dict[int, Client] = {}
        self.flights: list[tuple[StepPlan, StepResult, list[Client]]] = []
        self.texts = [[self.rng.randrange(VOCAB_SIZE) for _ in range(100)] for _ in range(3)]
        self.ended = self.made = self.steps = self.accepted = 0
        self.quiet = 0  # steps without any output
        self.digest = 0
        self._trace = trace
        self.note("scenario", s)

    def note(self, what: str, value: object) -> None:
        """One line of the trace, which the digest covers."""
        self.digest = zlib.crc32(msgspec.msgpack.encode((what, value)), self.digest)
        if self._trace:
            self._trace(f"{self.steps:5} {what:9} {value}")

    def run(self, steps: int) -> int:
        """Digest of all that happened."""
        while self.steps < steps:
            self.tick()
        owed = sum(c.submit.max_tokens + len(c.submit.prompt) for c in self.open.values())
        last = self.steps + 4 * owed + 50
        while self.scheduler.has_work:
            require(self.steps <= last, "requests do not end:", list(self.open))
            self.advance(self.rng.randint(0, 2))
        require(not self.open, "requests never ended:", list(self.open))
        stats = self.scheduler.stats()
        ended = stats.finished + stats.aborted + stats.failed
        require(ended == self.accepted == self.ended, "ends are miscounted:", stats)
        verify_idle(self.scheduler)
        self.note("stats", stats)
        return self.digest

    def tick(self) -> None:
        rng, s = self.rng, self.scenario
        self.now += 1.0
        if rng.random() < s.arrival:
            self.arrive()
        if s.burst and rng.random() < s.burst:
            for _ in range(rng.randint(4, 12)):
                self.arrive()
        if s.abort and rng.random() < s.abort:
            self.abort()
        if s.flush and rng.random() < s.flush:
            self.scheduler.flush_cache()
            self.note("flush", None)
        self.advance(rng.randint(0, 2))
        if not self.open and not self.flights:
            self.steps += 1  # an idle step

    # What clients do

    def arrive(self) -> None:
        rng = self.rng
        prompt = self.draw_prompt()
        answer = rng.randint(1, self.scenario.longest_answer)
        params = SamplingParams(
            min_tokens=rng.choice([0, 0, rng.randint(0, answer)]),
            logprobs=rng.choice([None, None, 0, 2]),
            prompt_logprobs=rng.choice([None] * 7 + [1]),
            logprob_token_ids=rng.choice([[], [3, 1]]),
            prompt_logprobs_start=answer % 3 * len(prompt) // 2,
            repetition_penalty=rng.choice([1.0, 1.0, 1.5]),
        )
        stop_ids = rng.sample(range(VOCAB_SIZE), rng.choice([0, 0, 1, 4]))
        shared: dict[str, Any] = {
            "seed": rng.getrandbits(64),
            "priority": rng.choice([0, 0, 0, -1, 2]),
        }
        namespace = rng.choice(["", "", "", "other"])
        self.device.namespaces[shared["seed"]] = namespace
        for sample_index in range(rng.choice([1, 1, 1, 2, 4])):
            self.made += 1
            self.submit(
                Submit(
                    request_id=f"r{self.made}",
                    prompt=prompt,
                    params=params,
                    stop_ids=stop_ids,
                    max_tokens=answer,
                    sample_index=sample_index,
                    namespace=namespace,
                    **shared,
                )
            )

    def draw_prompt(self) -> list[int]:
        """Shared prefixes, follow-ups of what was said, new texts; now and then too long."""
        rng, longest = self.rng, self.scenario.max_model_len - 1
        text = rng.choice(self.texts)
        if rng.random() < 0.1:
            self.texts[rng.randrange(3)] = [rng.randrange(VOCAB_SIZE) for _ in range(100)]
        if self.open and rng.random() < 0.2:
            client = rng.choice(list(self.open.values()))
            text = client.submit.prompt + client.output
        prompt = text[: rng.randint(0, rng.choice([6, longest // 2, longest]))]
        prompt += [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([0, 1, 1, 9]))]
        return prompt if rng.random() < 0.03 else (prompt or [5])[:longest]

    def submit(self, submit: Submit) -> None:
        if self.open and self.rng.random() < 0.01:
            submit.request_id = self.rng.choice(list(self.open))
        expected = self.refusal(submit)
        try:
            self.scheduler.submit(submit)
        except RequestError as error:
            refused = (error.status, error.param)
            require(refused == expected, f"refused {submit}, expected {expected}:", error.message)
            self.note("refused", [submit.request_id, *refused])
            return
        require(expected is None, f"accepted {submit}, expected", expected)
        span = visible_span(self.scenario.groups)
        oracle = Oracle(submit.prompt, submit.namespace, span, VOCAB_SIZE)
        self.accepted += 1
        self.open[submit.request_id] = Client(submit, self.accepted, oracle)
        self.note("submit", submit)
        self.maybe_extend(submit.request_id)

    def refusal(self, submit: Submit) -> tuple[int, str | None] | None:
        s = self.scenario
        if submit.request_id in self.open:
            return 400, "request_id"
        if len(self.open) >= s.max_running + s.max_queue:
            return 429, None
        longest = min(len(submit.prompt) + submit.max_tokens, s.max_model_len)
        fits = 0 < len(submit.prompt) < s.max_model_len
        for group in s.groups:
            for last in range(longest - 1):  # pages in use while this token is computed
                first = 0 if group.window is None else max(0, last - group.window + 1)
                pages = last // s.page_size - first // s.page_size + 1
                fits = fits and pages < group.num_pages
        return None if fits else (400, "prompt")

    def abort(self) -> None:
        if not self.open:
            return
        request_id = self.rng.choice(list(self.open))
        for stranger in (request_id + "0", request_id[:-1], "nobody"):
            if stranger not in self.open:
                require(self.scheduler.abort(stranger) is None, "aborted a stranger:", stranger)
        output = self.scheduler.abort(request_id)
        require(output is not None and output.finish_reason == "abort", "not aborted:", output)
        if output is not None:
            self.receive(output, "abort")

    def maybe_extend(self, request_id: str) -> None:
        """Tokens that need no sampling, as a grammar forces them."""
        client = self.open.get(request_id)
        if client is None or client.submit.params.logprobs is not None:
            return
        if self.rng.random() >= self.scenario.extend:
            return
        if self.scheduler._requests[request_id].pending > 1:
            return  # whoever extends knows every token but the one being sampled
        tokens = [self.rng.randrange(VOCAB_SIZE) for _ in range(self.rng.randint(1, 9))]
        self.note("extend", [request_id, *tokens])
        output = self.scheduler.extend(request_id, tokens)
        client.miscounted = client.submit.params.has_penalties
        for token in tokens:
            client.unheard.append(token)
            reason = client.push(token, self.scenario.max_model_len)
            if reason is not None:
                break
        if reason is None or output is None:
            require(reason is None and output is None, "ended by an extension?", output)
            return
        require(output.tokens == client.unheard, "extension should be reported:", output)
        require(output.logprobs is None, "logprobs of what was not sampled:", output)
        self.receive(output, reason)

    # What the engine does

    def advance(self, depth: int) -> None:
        """Schedule, unless `depth` steps are in flight already; finish the oldest if more are."""
        plan = None
        if len(self.flights) <= depth:
            plan = self.scheduler.schedule()
            verify_progress(self.scheduler, plan)
        if plan is not None:
            self.steps += 1
            self.note("plan", plan)
            clients = self.follow(plan)
            self.flights.append((plan, self.device.execute(plan), clients))
            if self.steps % RECOUNT_STEPS == 0:
                verify_scheduler(self.scheduler)
        if self.flights and (plan is None or len(self.flights) > depth):
            if self.rng.random() < self.scenario.fail:
                self.fail()
            else:
                self.finish()
        elif plan is None:
            require(not self.open, "nothing is scheduled or in flight, but open:", list(self.open))

    def follow(self, plan: StepPlan) -> list[Client]:
        """Who is in the plan; nobody was overtaken, and budgets are kept."""
        s = self.scenario
        for init in plan.init:
            client = next(
                c
                for c in self.open.values()
                if (c.submit.seed, c.submit.sample_index) == (init.seed, init.sample_index)
            )
            self.rows[init.row] = client
            self.verify_init(client, init)
            mine = (client.submit.priority, client.arrival)
            if not client.admitted:
                client.admitted = True
                client.cached_tokens = init.num_computed
                for other in self.open.values():
                    theirs = (other.submit.priority, other.arrival)
                    require(other.admitted or theirs > mine, "overtaken:", other.submit.request_id)
        require(sum(plan.q_lens) <= s.max_batch_tokens, "over budget:", plan.q_lens)
        require(min(plan.q_lens) > 0, "an empty sequence:", plan.q_lens)
        clients = [self.rows[row] for row in plan.rows]
        for client, start, count in zip(clients, plan.starts, plan.q_lens, strict=True):
            require(client.submit.request_id in self.open, "a ghost is scheduled:", client.submit)
            require(not client.miscounted, "penalties lack an extension:", client.submit)
            longest = min(len(client.submit.prompt) + client.submit.max_tokens, s.max_model_len)
            require(start + count < longest, "computes what nobody needs:", client.submit)
        return clients

    def verify_init(self, client: Client, init: RowInit) -> None:
        submit = client.submit
        known = submit.prompt + client.output
        counted = known if submit.params.has_penalties else []
        require(init.tokens == counted, "penalties count wrong tokens:", init)
        client.miscounted = False
        require(init.prompt_len == len(submit.prompt), "wrong prompt_len:", init)
        require(init.min_len == init.prompt_len + submit.params.min_tokens, "min_len:", init)
        require(init.stop_ids == sorted(submit.stop_ids), "wrong stop ids:", init)
        require(init.num_computed < len(known), "the last token is not computed:", init)

    def finish(self) -> None:
        plan, result, _ = self.flights.pop(0)
        outputs = self.scheduler.finish(plan, result)
        self.quiet += 1
        longest = 2 * self.scenario.max_model_len + 10
        require(self.quiet <= longest, f"no output in {self.quiet} steps:", list(self.open))
        for output in outputs:
            self.receive(output, None)
            self.maybe_extend(output.request_id)

    def fail(self) -> None:
        """The oldest step fails. What the engine does with later ones must not matter."""
        lost = [client for _, _, clients in self.flights for client in clients]
        flights, self.flights = self.flights, []
        self.device.wreck(self.rng.getrandbits(60))
        self.note("fail", flights[0][0].step)
        for output in self.scheduler.fail(flights[0][0], "the device failed"):
            require(output.error == "the device failed", "no reason given:", output)
            self.receive(output, "error")
        for client in lost:
            require(client.submit.request_id not in self.open, "survived:", client.submit)
        verify_scheduler(self.scheduler)
        for plan, result, _ in flights:
            if self.rng.random() < 0.5:
                outputs = self.scheduler.finish(plan, result)
            else:
                outputs = self.scheduler.fail(plan, "again")
            require(not outputs, "output of a step that had failed:", outputs)

    def receive(self, output: Output, reason: str | None) -> None:
        """An output arrives at its client. `reason`: why it must end; None: decide from tokens."""
        self.note("output", output)
        self.quiet = 0
        client = self.open.get(output.request_id)
        if client is None:
            raise SimulationError(f"output for {output.request_id}, which is not open")
        cached = client.cached_tokens
        require(output.cached_tokens == cached, f"cached_tokens is not {cached}:", output)
        if reason is None:
            reason = self.receive_token(client, output)
        elif reason in ("abort", "error"):
            require(not output.tokens, "tokens at the end:", output)
        require(output.finish_reason == reason, f"should end with {reason}:", output)
        if reason is not None:
            del self.open[output.request_id]
            self.ended += 1

    def receive_token(self, client: Client, output: Output) -> str | None:
        """Compare with the oracle. Returns how the request ends, if it does."""
        submit, params, oracle = client.submit, client.submit.params, client.oracle
        token = oracle.next_token(submit.seed, submit.sample_index)
        expected = [*client.unheard, token]
        client.unheard.clear()
        require(output.tokens == expected, f"{submit.request_id} should get {expected}:", output)
        states = oracle.states
        scores, ids = None, params.logprob_token_ids
        if params.logprobs is not None:
            scores = [TokenLogprobs(token, *score(states[-1], token, params.logprobs, ids))]
        require(output.logprobs == scores, f"logprobs should be {scores}:", output)
        prompt_scores: list[TokenLogprobs | None] | None = None
        if params.prompt_logprobs is not None and not client.heard:
            top, later = params.prompt_logprobs, submit.prompt[1:]
            pairs = zip(states, later, strict=False)
            prompt_scores = [None, *(TokenLogprobs(t, *score(s, t, top, ids)) for s, t in pairs)]
            skipped = min(params.prompt_logprobs_start, len(prompt_scores))
            prompt_scores[:skipped] = [None] * skipped
        require(output.prompt_logprobs == prompt_scores, "wrong prompt logprobs:", output)
        client.heard = True
        reason = client.push(token, self.scenario.max_model_len)
        stop = token if reason == "stop" else None
        require(output.stop_token == stop, f"stop token should be {stop}:", output)
        return reason


def run_seed(job: tuple[int, int]) -> tuple[int, str | None]:
    """(seed, None), or what went wrong and how to see it again."""
    seed, steps = job
    simulation = Simulation(seed)
    try:
        simulation.run(steps)
    except Exception as error:  # a fault of any kind is what we are looking for
        replay = f"python -m inferplane.testing.simulation --seed {seed} --steps {steps}"
        return seed, f"{type(error).__name__} at step {simulation.steps}: {error}\nreplay: {replay}"
    return seed, None


def run_seeds(seeds: range, steps: int, jobs: int) -> list[str]:
    """Failures of many seeds, run in `jobs` processes."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(jobs) as pool:
        work = pool.imap(run_seed, [(seed, steps) for seed in seeds], chunksize=10)
        return [failure for _, failure in work if failure is not None]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="inferplane.testing.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this one, with a trace")
    parser.add_argument("--seeds", default="0:1000", help="first:end")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(arguments)
    if options.seed is not None:
        digest = Simulation(options.seed, print).run(options.steps)
        print(f"seed {options.seed} passed, digest {digest:08x}")
        return 0
    first, end = (int(part) for part in options.seeds.split(":"))
    failures = run_seeds(range(first, end), options.steps, options.jobs)
    print(*failures, f"{end - first} seeds, {len(failures)} failed", sep="\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
