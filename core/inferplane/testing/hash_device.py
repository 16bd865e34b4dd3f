"""A device without numbers: it executes StepPlans on page tables whose slots hold hashes.

What a slot holds depends on every slot before it, read through the page table, on the token and on
the request's namespace; so does the next token, which also depends on seed and sample index. A page
that is wrong, freed too early, shared wrongly or overwritten changes tokens, and `Oracle` says
what they should have been from the request's own context alone.

Integers only: their hashes are the same in every process.
"""

import zlib
from collections.abc import Sequence

from inferplane.hw.batch import FROM_DEVICE, RowInit, Scored, StepPlan, StepResult
from inferplane.scheduling.pages import KVGroupPages


class SimulationError(Exception):
    """Something happened that must never happen."""


def state_of(slots: Sequence[int], namespace: int) -> int:
    """Stands for the last hidden state: all that attention sees."""
    return hash((namespace, *slots))


def slot_of(state: int, token: int) -> int:
    return hash((state, token))


def sample(state: int, seed: int, sample_index: int, vocab_size: int) -> int:
    return hash((state, seed, sample_index)) % vocab_size


def score(state: int, token: int, top: int, ids: Sequence[int] = ()) -> Scored:
    """A made-up logprob of `token`, its rank, the `top` best, and the logprobs of `ids`."""
    draw, *others = [hash((state, one)) % 1000 for one in (token, *ids)]
    best = [(rank, -rank / 8) for rank in range(top)]
    return -draw / 64, draw + 1, best, [-other / 64 for other in others]


def namespace_id(namespace: str) -> int:
    return zlib.crc32(namespace.encode())


def visible_span(groups: Sequence[KVGroupPages]) -> int | None:
    """How many tokens the model as a whole sees: None if a group sees all."""
    windows = [group.window for group in groups]
    return None if None in windows else max(window for window in windows if window)


class Oracle:
    """The tokens that one request must get."""

    def __init__(
        self, prompt: Sequence[int], namespace: str, span: int | None, vocab_size: int
    ) -> None:
        self._namespace = namespace_id(namespace)
        self._span = span
        self._vocab_size = vocab_size
        self._slots: list[int] = []
        self._state = self._see()
        self.states: list[int] = []  # after each token
        for token in prompt:
            self.push(token)

    def push(self, token: int) -> None:
        self._slots.append(slot_of(self._state, token))
        self._state = self._see()
        self.states.append(self._state)

    def next_token(self, seed: int, sample_index: int) -> int:
        return sample(self._state, seed, sample_index, self._vocab_size)

    def _see(self) -> int:
        first = 0 if self._span is None else max(0, len(self._slots) - self._span + 1)
        return state_of(self._slots[first:], self._namespace)


class HashDevice:
    """Tables and pages as a real device has them. `namespaces` says whose seed is whose, which a
    real device would know from the adapter or the weights."""

    def __init__(
        self, page_size: int, groups: Sequence[KVGroupPages], max_running: int, vocab_size: int
    ) -> None:
        self._page_size = page_size
        self._windows = [group.window for group in groups]
        self._vocab_size = vocab_size
        self._widest = self._windows.index(visible_span(groups))
        self._memory: list[list[int | None]] = [[0] * (g.num_pages * page_size) for g in groups]
        self._tables = [[[0] * 4096 for _ in range(max_running + 1)] for _ in groups]
        self._rows: dict[int, RowInit] = {}
        self._lengths: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self.namespaces: dict[int, str] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Raises SimulationError for a plan that no device could execute."""
        self._update(plan)
        inputs = self._inputs(plan)
        for row, start, count in zip(plan.rows, plan.starts, plan.q_lens, strict=True):
            for position in range(start, start + count):
                self._write(row, position, None)  # to be written in this step
        states: dict[int, list[int]] = {}
        todo = list(range(len(plan.rows)))
        while todo:  # in each layer all writes precede all reads: the plan's order is no matter
            for index in todo:
                computed = self._compute(plan.rows[index], plan.starts[index], inputs[index])
                if computed is not None:
                    states[index] = computed
            if not any(index in states for index in todo):
                raise SimulationError(f"sequences {todo} wait for each other's pages")
            todo = [index for index in todo if index not in states]
        return self._result(plan, states)

    def wreck(self, garbage: int) -> None:
        """A step failed: every page holds anything."""
        for memory in self._memory:
            memory[:] = range(garbage, garbage + len(memory))

    def _update(self, plan: StepPlan) -> None:
        for init in plan.init:
            self._rows[init.row] = init
            self._lengths[init.row] = init.num_computed
            self._last.pop(init.row, None)
        places = set()
        for write in plan.pages:
            self._tables[write.group][write.row][write.column] = write.page
            places.add((write.group, write.row, write.column))
        if len(places) != len(plan.pages):
            raise SimulationError("a page table entry is written twice in one plan")
        if len(set(plan.rows)) != len(plan.rows) or 0 in plan.rows:
            raise SimulationError(f"rows {plan.rows} are not distinct, or null")

    def _inputs(self, plan: StepPlan) -> list[list[int]]:
        inputs, offset = [], 0
        for index, (row, start, count) in enumerate(
            zip(plan.rows, plan.starts, plan.q_lens, strict=True)
        ):
            if self._lengths.get(row) != start:
                raise SimulationError(f"row {row} starts at {start}, has {self._lengths.get(row)}")
            self._lengths[row] += count
            tokens = plan.tokens[offset : offset + count]
            offset += count
            if index < plan.num_decode and (count != 1 or index not in plan.sample):
                raise SimulationError(f"sequence {index} is no decode")
            if tokens[-1] == FROM_DEVICE:
                tokens[-1] = self._last[row]
            inputs.append(tokens)
        if offset != len(plan.tokens):
            raise SimulationError(f"{len(plan.tokens)} tokens, q_lens have {offset}")
        return inputs

    def _compute(self, row: int, start: int, tokens: list[int]) -> list[int] | None:
        """States after each token; None if another sequence writes first what this one reads."""
        slots = self._read(self._widest, row, start)
        for g in range(len(self._windows)):
            seen = self._read(g, row, start)
            if None in seen:
                return None
            if seen != slots[len(slots) - len(seen) :]:
                raise SimulationError(f"groups {g} and {self._widest} of row {row} differ")
        namespace = namespace_id(self.namespaces[self._rows[row].seed])
        span, states = self._windows[self._widest], []
        context = [slot for slot in slots if slot is not None]
        state = state_of(context, namespace)
        for position, token in enumerate(tokens, start):
            slot = slot_of(state, token)
            self._write(row, position, slot)
            context.append(slot)
            if span is not None and len(context) >= span:
                del context[: len(context) - span + 1]
            state = state_of(context, namespace)
            states.append(state)
        return states

    def _result(self, plan: StepPlan, states: dict[int, list[int]]) -> StepResult:
        result = StepResult(tokens=[])
        for at, (index, top) in enumerate(zip(plan.sample, plan.logprobs, strict=True)):
            init, state = self._rows[plan.rows[index]], states[index][-1]
            token = sample(state, init.seed, init.sample_index, self._vocab_size)
            self._last[init.row] = token
            result.tokens.append(token)
            ids = plan.logprob_ids.get(at, [])
            result.logprobs.append(score(state, token, top, ids) if top >= 0 else None)
        for wanted in plan.prompt_logprobs:
            pairs = zip(states[wanted.index][wanted.first :], wanted.targets, strict=False)
            result.prompt_logprobs.append(
                [score(state, t, wanted.top, wanted.ids) for state, t in pairs]
            )
        return result

    def _read(self, group: int, row: int, end: int) -> list[int | None]:
        """What the query at position `end` sees before itself."""
        window, size = self._windows[group], self._page_size
        first = 0 if window is None else max(0, end - window + 1)
        memory, table = self._memory[group], self._tables[group][row]
        seen: list[int | None] = []
        for column in range(first // size, -(-end // size)):
            page = table[column] * size
            seen += memory[
                page + max(0, first - column * size) : page + min(size, end - column * size)
            ]
        return seen

    def _write(self, row: int, position: int, slot: int | None) -> None:
        column, offset = divmod(position, self._page_size)
        for memory, tables in zip(self._memory, self._tables, strict=True):
            page = tables[row][column]
            if page == 0:
                raise SimulationError(f"row {row} writes position {position} to the null page")
            where = page * self._page_size + offset
            if (memory[where] is None) == (slot is None):
                raise SimulationError(f"page {page} offset {offset} is written twice in a step")
            memory[where] = slot
