"""JSON-Schema-Test-Suite and MaskBench against the grammar engines, with a real tokenizer.

    python ci/suites/json_schema.py                       all suites, compared with the ratchet file
    python ci/suites/json_schema.py --suite maskbench --part 0/20       a twentieth of one
    python ci/suites/json_schema.py --write               improve the ratchet file

A schema is right if it compiles and every instance gets the verdict that the suite demands,
refused if no engine enforces it exactly, wrong otherwise. Instances are compact JSON with keys in
the order of the file; engines fix the order of properties, which makes some valid instances false
rejects. Exit status 1: a false accept, or fewer right schemas than the ratchet file says.
"""

import argparse
import json
import lzma
import multiprocessing
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferplane.checkpoint.source import open_model
from inferplane.errors import RequestError
from inferplane.grammar.compile import Choices, Compiler
from inferplane.grammar.contract import Engine, GrammarError
from inferplane.grammar.engines import open_engine
from inferplane.grammar.vocabulary import vocabulary_of
from inferplane.sampling_params import Constraint
from inferplane.text.tokenizer import Tokenizer

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
RATCHET = Path(__file__).with_name("json_schema.ratchet.json")
ARCHIVES = {
    "draft7": "json-schema-test-suite.tar.xz",
    "draft2020-12": "json-schema-test-suite.tar.xz",
    "maskbench": "maskbench-dev.tar.xz",
}
"""suite -> the file that holds it"""


@dataclass(frozen=True)
class Case:
    """One schema and its instances: (value, whether the schema allows it)."""

    name: str
    schema: Any
    instances: list[tuple[Any, bool]]


def cases(suite: str, data: Path) -> Iterator[Case]:
    """Every case of a suite, in a fixed order."""
    with tarfile.open(fileobj=lzma.open(data / ARCHIVES[suite])) as archive:
        members = sorted(
            (member for member in archive.getmembers() if wanted(suite, member.name)),
            key=lambda member: member.name,
        )
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            content = json.load(file)
            for case in content if isinstance(content, list) else [content]:
                instances = [(test["data"], test["valid"]) for test in case["tests"]]
                name = f"{Path(member.name).stem}: {case['description']}"
                yield Case(name, case["schema"], instances)


def wanted(suite: str, name: str) -> bool:
    """The required tests: those directly in the folder of the draft."""
    folder = "maskbench-dev" if suite == "maskbench" else f"tests/{suite}"
    return name.endswith(".json") and str(Path(name).parent).endswith(folder)


class Judge:
    """Runs cases with one tokenizer and one choice of engines."""

    def __init__(self, tokenizer: Tokenizer, backend: str) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary_of(tokenizer, tokenizer.vocab_size)
        self._compiler = Compiler(self._vocabulary, Choices(backend))
        self._engines: dict[str, Engine] = {}

    def judge(self, case: Case) -> Counter[str]:
        """Counts: right, refused or wrong; false_rejects and false_accepts."""
        constraint = Constraint("json_schema", json.dumps(case.schema))
        try:
            grammar = self._compiler.compile(constraint)
        except RequestError:
            return Counter(refused=1)
        if grammar.engine not in self._engines:
            self._engines[grammar.engine] = open_engine(grammar.engine, self._vocabulary)
        engine = self._engines[grammar.engine]
        counts: Counter[str] = Counter()
        for value, valid in case.instances:
            matcher = engine.matcher(grammar.source)
            try:
                matcher.accept(self._tokenizer.encode(text_of(value), False))
                accepted = matcher.may_end
            except GrammarError:
                accepted = False
            if accepted != valid:
                counts["false_accepts" if accepted else "false_rejects"] += 1
        counts["wrong" if counts else "right"] += 1
        return counts


def text_of(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair can only be written as an escape
        text = json.dumps(value, separators=(",", ":"))
    return text


def run_part(job: tuple[str, Path, str, str, int, int]) -> tuple[Counter[str], list[str]]:
    """Counts of the cases whose number is `first` modulo `step`, and names of false accepts."""
    suite, data, model, backend, first, step = job
    judge = Judge(open_model(model).tokenizer(None), backend)
    counts: Counter[str] = Counter()
    accepted = []
    for number, case in enumerate(cases(suite, data)):
        if number % step != first:
            continue
        found = judge.judge(case)
        counts += found
        if found["false_accepts"]:
            accepted.append(case.name)
    return counts, accepted


def compare(name: str, counts: Counter[str], ratchet: dict[str, dict[str, int]]) -> list[str]:
    """What is worse than the ratchet file allows."""
    before = ratchet.get(name, {})
    faults = []
    if counts["false_accepts"] > 0:
        faults.append(f"{name}: {counts['false_accepts']} false accepts, must be 0")
    if counts["right"] < before.get("right", 0):
        faults.append(f"{name}: {counts['right']} right, were {before['right']}")
    return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="schema suites against the grammar engines")
    parser.add_argument("--suite", choices=ARCHIVES, action="append")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with the archives")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer to use")
    parser.add_argument("--backend", default="auto", choices=("auto", "llguidance", "xgrammar"))
    parser.add_argument("--part", help="I/N: every Nth case from the Ith on; not compared")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write what is better than before")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        print(f"skipped: there is no folder {options.data}")
        return 0
    ratchet = json.loads(RATCHET.read_text()) if RATCHET.exists() else {}
    faults: list[str] = []
    for suite in options.suite or ARCHIVES:
        begun = time.monotonic()
        first, step = (int(n) for n in (options.part or "0/1").split("/"))
        jobs = [
            (suite, options.data, options.model, options.backend, first + step * i)
            for i in range(options.jobs)
        ]
        with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
            parts = pool.map(run_part, [(*job, step * options.jobs) for job in jobs])
        counts = sum((part[0] for part in parts), Counter[str]())
        name = suite if options.backend == "auto" else f"{suite} {options.backend}"
        print(f"{name}: {dict(sorted(counts.items()))} in {time.monotonic() - begun:.0f} s")
        for accepted in (name for part in parts for name in part[1]):
            print(f"  false accept: {accepted}")
        if not options.part:
            faults += compare(name, counts, ratchet)
            if options.write and not compare(name, counts, ratchet):
                ratchet[name] = dict(sorted(counts.items()))
    if options.write:
        RATCHET.write_text(json.dumps(ratchet, indent=1, sort_keys=True) + "\n")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
