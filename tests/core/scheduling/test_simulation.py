"""The simulation passes, is repeatable, and notices planted faults of every kind."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferplane.scheduling import memory, pages, prefix_cache, request, scheduler
from inferplane.testing import simulation

MODULES = [pages, prefix_cache, request, memory, scheduler, simulation]


@pytest.mark.slow
def test_thousand_seeds() -> None:
    failures = simulation.run_seeds(range(1000), steps=500, jobs=2)
    assert not failures, "\n".join(failures[:5])


def test_a_seed_gives_one_trace() -> None:
    lines: list[str] = []
    first = simulation.Simulation(3, lines.append).run(120)
    assert first == simulation.Simulation(3).run(120)
    assert first != simulation.Simulation(4).run(120)
    assert any(" plan " in line for line in lines) and any(" output " in line for line in lines)


def test_replay_command_gives_the_same_trace_in_another_process() -> None:
    command = [
        sys.executable,
        "-m",
        "inferplane.testing.simulation",
        "--seed",
        "3",
        "--steps",
        "60",
    ]
    path = os.pathsep.join(sys.path)
    answers = {
        subprocess.run(
            command,
            env={"PYTHONPATH": path, "PYTHONHASHSEED": salt},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for salt in ("1", "2")
    }
    assert len(answers) == 1
    assert "seed 3 passed" in answers.pop()


def test_the_scenarios_reach_what_they_are_for() -> None:
    totals = dict.fromkeys(("retractions", "aborted", "failed", "refused", "cached_tokens"), 0)
    for seed in range(40):
        run = simulation.Simulation(seed)
        run.run(200)
        stats = run.scheduler.stats()
        for name in totals:
            totals[name] += getattr(stats, name)
    assert all(count > 50 for count in totals.values()), totals


# module, what is there, what the mutant has instead
MUTANTS = {
    "token of another request": (
        scheduler,
        "flight = Flight(list(decode), list(decode), [])",
        "flight = Flight(list(decode), decode[::-1], [])",
    ),
    "token in flight is not dropped": (
        scheduler,
        "if request is None or request.ended:\n                continue",
        "if request is None:\n                continue",
    ),
    "a sample in flight survives an extension": (
        scheduler,
        "[None if other is request else other for other in flight.sampled]",
        "[other for other in flight.sampled]",
    ),
    "an extended request goes on decoding": (
        scheduler,
        "request.decoding, request.need = False, None",
        "request.need = None",
    ),
    "an extension is not counted for penalties": (
        scheduler,
        "request.recount = request.params.has_penalties",
        "request.recount = False",
    ),
    "an extension is not reported": (
        scheduler,
        "request.tokens[request.reported :]",
        "request.tokens[-1:]",
    ),
    "readmitted before its tokens have arrived": (
        scheduler,
        "if request.pending or (self._overfull",
        "if (self._overfull",
    ),
    "stops before min_tokens": (
        scheduler,
        "token in request.stop_ids and output_len >= request.params.min_tokens",
        "token in request.stop_ids",
    ),
    "decodes beyond max_tokens": (
        scheduler,
        "if request.length >= request.limit:",
        "if request.length > request.limit:",
    ),
    "stale cache after a failure": (
        scheduler,
        "        self._memory.flush()\n        return outputs",
        "        return outputs",
    ),
    "the most senior is retracted": (
        scheduler,
        "victim = self._running[-1]",
        "victim = self._running[0]",
    ),
    "a junior overtakes": (
        scheduler,
        "insort(self._waiting, request, key=_seniority)\n\n    def verify",
        "self._waiting.insert(0, request)\n\n    def verify",
    ),
    "abort by prefix": (
        scheduler,
        "request = self._requests.get(request_id)\n        if request is None:\n"
        "            return None\n        self._stats.aborted",
        "request = next((r for i, r in self._requests.items() if i.startswith(request_id)), None)"
        "\n        if request is None:\n            return None\n        self._stats.aborted",
    ),
    "prefill over budget": (
        scheduler,
        "budget = self._max_batch_tokens - sum([request.decoding for request in running])",
        "budget = self._max_batch_tokens",
    ),
    "prompt logprobs at the wrong place": (
        scheduler,
        "targets = request.tokens[first + 1 : end + 1]",
        "targets = request.tokens[first:end]",
    ),
    "takes another namespace's pages": (
        memory,
        "self.cache.match(request.namespace, ",
        'self.cache.match("", ',
    ),
    "matched pages are not held": (
        memory,
        "                if page:\n                    self.pools[g].share(page)",
        "                if page and column:\n                    self.pools[g].share(page)",
    ),
    "a page is not given back": (
        memory,
        "for page in pages[request.given_back[g] :]:",
        "for page in pages[request.given_back[g] + 1 :]:",
    ),
    "a page leaves the window too early": (
        memory,
        "behind = (request.computed - group.window + 1) // self._page_size",
        "behind = (request.computed - group.window + 2) // self._page_size",
    ),
    "pages of unknown content are stored": (
        memory,
        "range(request.stored, min(request.computed, len(request.tokens)) // size)",
        "range(request.stored, len(request.tokens) // size)",
    ),
    "exchanges a page that the step writes": (
        memory,
        "if end > settled and key in node.children:",
        "if end < 0:",
    ),
    "the device is not told of an exchange": (
        memory,
        "if request.row:",
        "if not request.row:",
    ),
    "admits what does not fit": (
        memory,
        "return all(pool.num_available >= wanted + kept for",
        "return all(pool.num_available + 1 >= wanted for",
    ),
    "window match is a token short": (
        prefix_cache,
        "max(0, end - group.window + 1) // size",
        "max(0, end - group.window + 2) // size",
    ),
    "matches a page of the wrong prefix": (
        prefix_cache,
        "child = node.children.get(tokens[end - size : end].tobytes())",
        "child = next((c for n in self.nodes() for k, c in n.children.items()"
        " if k == tokens[end - size : end].tobytes()), None)",
    ),
    "evicts a node in use": (
        prefix_cache,
        "            and not node.users\n",
        "",
    ),
    "a removed node keeps its page": (
        prefix_cache,
        "        self._allocators[group].uncache(page)\n",
        "",
    ),
    "evictable pages are miscounted": (
        pages,
        "        if refs == 1 and self._cached[page]:\n            self.num_evictable -= 1\n",
        "",
    ),
    "the last prompt token is not computed": (
        request,
        "return len(self.tokens) - 1",
        "return len(self.tokens)",
    ),
    "prompt logprobs from the cache": (
        request,
        "if self.prompt_logprobs is not None and self.scored",
        "if self.scored < 0 and self.scored",
    ),
    "prompt logprobs nobody asked for": (
        request,
        "scored=max(0, submit.params.prompt_logprobs_start - 1)",
        "scored=max(0, submit.params.prompt_logprobs_start - 2)",
    ),
    "samples of a request are one": (
        request,
        "sample_index=self.sample_index,",
        "sample_index=0,",
    ),
    "penalties forget the output": (
        request,
        "tokens=self.tokens.tolist() if",
        "tokens=self.tokens[: self.prompt_len].tolist() if",
    ),
}


SEEDS = 500
"""rare faults need some"""


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_fault_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, old, new = MUTANTS[name]
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, "this mutant's text is not in the source: bring it up to date"
    path = tmp_path / "mutant.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None and spec.loader is not None
    mutant = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mutant", mutant)
    spec.loader.exec_module(mutant)
    for other in MODULES:
        for key, value in vars(mutant).items():
            if getattr(value, "__module__", None) == "mutant" and hasattr(other, key):
                monkeypatch.setattr(other, key, value)
    for seed in range(SEEDS):
        failure = simulation.run_seed((seed, 200))[1]
        if failure is not None:
            assert f"--seed {seed} --steps 200" in failure
            print(seed, failure)
            return
    pytest.fail(f"{SEEDS} seeds did not notice it")
