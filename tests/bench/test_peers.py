"""The arithmetic of the comparison with peers, and what its drivers have in common."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ci.bench.cpu import peers
from ci.bench.cpu.peer import processes
from ci.bench.cpu.peer.install import Peer, Unavailable, environment, install
from ci.bench.cpu.peer.limits import (
    Ceiling,
    Row,
    Shape,
    decode_limit,
    limit_of,
    met,
    prefill_limit,
    rows,
)
from ci.bench.cpu.peer.report import Report
from ci.bench.gpu.models import SHAPES

SMOLLM2 = SHAPES["smollm2-135m"]
CEILING = Ceiling(read=75e9, bf16=985e9, int8=1960e9)
DRIVERS = Path("ci/bench/cpu/peer/drivers").absolute()


def test_limits_are_those_of_the_roofline() -> None:
    """By hand, for SmolLM2-135M: 134.5 M weights are read, 23,040 bytes of KV for a token."""
    shape = Shape.of(SMOLLM2)
    assert shape.layers + shape.head == pytest.approx(134.5e6, rel=1e-3)
    assert 2 * shape.kv == 23040
    decode = {
        (p, b): decode_limit(shape, CEILING, p, b, 256) for p in ("bf16", "4-bit") for b in (1, 8)
    }
    assert decode["bf16", 1] == pytest.approx(75e9 / (2 * 134.5e6 + 256 * 23040), rel=1e-3)
    assert decode["bf16", 8] == pytest.approx(8 * 75e9 / (2 * 134.5e6 + 2048 * 23040), rel=1e-3)
    assert decode["4-bit", 1] == pytest.approx(920, rel=0.01)
    many = decode_limit(shape, CEILING, "bf16", 512, 0)  # bound by operations
    assert many == pytest.approx(985e9 / (2 * 134.5e6), rel=1e-3)
    assert decode_limit(shape, CEILING, "8-bit", 512, 0) == pytest.approx(many * 1960 / 985)
    pairs = 512 * 513 / 2
    seconds = (2 * (512 * shape.layers + shape.head) + pairs * 30 * 4 * 576) / 985e9
    assert prefill_limit(shape, CEILING, "bf16", 512) == pytest.approx(512 / seconds, rel=1e-6)


def test_a_case_has_the_limit_of_its_name() -> None:
    shape = Shape.of(SMOLLM2)
    found = limit_of("decode/8", shape, CEILING, "bf16", 128, 128)
    assert found == decode_limit(shape, CEILING, "bf16", 8, 192)
    found = limit_of("prefill/512", shape, CEILING, "8-bit", 128, 128)
    assert found == prefill_limit(shape, CEILING, "8-bit", 512)
    for case in ("start", "memory", "http/32"):
        assert limit_of(case, shape, CEILING, "bf16", 128, 128) is None


FOUND = {
    ("4-bit", "decode/1", "inferplane", "Q4_1"): [90.0, 100.0, 300.0],
    ("4-bit", "decode/1", "inferplane", "int4"): [120.0],
    ("4-bit", "decode/1", "llama.cpp", "Q4_0"): [50.0, 40.0],
    ("4-bit", "decode/1", "openvino", "int4"): [30.0],
    ("bf16", "start", "vllm", "bf16"): [60.0],
    ("bf16", "start", "inferplane", "bf16"): [3.0],
    ("bf16", "decode/1", "llama.cpp", "BF16"): [10.0],
}


def test_ratios_compare_the_best_variants_by_their_medians() -> None:
    made = {row.key[1:]: row for row in rows(FOUND, "inferplane")}
    ours = made["decode/1", "inferplane", "Q4_1"]
    assert (ours.value, ours.ratio) == (100.0, pytest.approx(100 / 45))
    assert made["decode/1", "inferplane", "int4"].ratio == pytest.approx(120 / 45)
    assert made["decode/1", "llama.cpp", "Q4_0"].ratio == pytest.approx(120 / 45)
    assert made["decode/1", "openvino", "int4"].ratio == pytest.approx(120 / 30)
    assert made["decode/1", "llama.cpp", "BF16"].ratio is None, "another precision"
    for engine in ("vllm", "inferplane"):  # fewer seconds are better
        assert made["start", engine, "bf16"].ratio == pytest.approx(20)


def test_rows_of_a_case_stand_together_the_best_first() -> None:
    order = [row.key[2:] for row in rows(FOUND, "inferplane")]
    assert order[:2] == [("inferplane", "int4"), ("inferplane", "Q4_1")]
    assert order[4:6] == [("inferplane", "bf16"), ("vllm", "bf16")]


def row(case: str, value: float, ratio: float | None, precision: str = "bf16") -> Row:
    return Row((precision, case, "inferplane", "bf16"), value, [value], ratio)


def test_a_goal_is_met_by_its_ratio_or_near_the_limit() -> None:
    assert met(row("decode/1", 100.0, 1.35), 1000.0)
    assert met(row("decode/1", 921.0, 1.0), 1000.0)
    assert met(row("decode/1", 919.0, 1.34), 1000.0) is False
    assert met(row("prefill/512", 821.0, None), 1000.0)
    assert met(row("memory", 901.0, 9.0), None) is False
    assert met(row("start", 3.9, None), None)
    assert met(row("decode/1", 100.0, None), None) is None
    assert met(row("decode/2", 100.0, 9.0), 1000.0) is None, "no goal for this batch"


def test_the_report_appends_a_line_for_each_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = {"read": [70e9, 75e9, 80e9], "bf16": [985e9], "int8": [1960e9]}
    path = tmp_path / "results.jsonl"
    report = Report(SMOLLM2, (128, 128), FOUND, machine)
    report.show()
    report.append({"commit": "abc", "model": "m"}, path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == len(FOUND)
    first = lines[0]
    assert first["case"] == "4-bit/decode/1" and first["peer"] is None
    assert first["commit"] == "abc" and first["ceilings"]["read"] == 75.0
    limit = decode_limit(Shape.of(SMOLLM2), CEILING, "4-bit", 1, 192)
    assert first["limit"] == pytest.approx(limit, rel=1e-3)
    assert {line["peer"] for line in lines} == {None, "llama.cpp", "openvino", "vllm"}
    assert "goal met" in capsys.readouterr().out


def test_a_round_is_written_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second round is interrupted; the first one's lines are there."""

    class Weights:
        name = "toy"

        def bf16(self) -> Path:
            return tmp_path

        def config(self) -> dict[str, Any]:
            return {**SMOLLM2, "vocab_size": 40}

    def driver(engine: str, python: Path, job: dict[str, Any], log: Path) -> dict[str, Any]:
        if job["seed"] == 1:
            raise SystemExit(143)
        return {"values": {"decode/1": 100.0}, "versions": {"toy": "1"}}

    ceilings = {"read": 75e9, "bf16": 985e9, "int8": 1960e9}
    monkeypatch.setattr(peers, "find", lambda *given: Weights())
    monkeypatch.setattr(peers, "VARIANTS", [peers.Variant("inferplane", "x", "bf16", Weights.bf16)])
    monkeypatch.setattr(processes, "ceilings", lambda log: {"values": ceilings})
    monkeypatch.setattr(processes, "driver", driver)
    monkeypatch.setattr(peers.signal, "signal", lambda number, handler: None)
    path = tmp_path / "results.jsonl"
    command = f"peers --peers --cases decode --batches 1 --json {path} --rounds 2"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        peers.main()
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert (line["case"], line["value"], line["round"]) == ("bf16/decode/1", 100.0, 1)
    assert line["commit"] == peers.commit() and line["versions"] == {"toy": "1"}
    assert line["ceilings"]["read"] == 75.0


DRIVER = """
from drive import Made, main

def load(job):
    def generate(prompts, count):
        assert all(4 <= token < 40 for prompt in prompts for token in prompt)
        assert {len(prompt) for prompt in prompts} <= {4, 6, 9}
        return Made(0.5, 2.0 * len(prompts), len(prompts) * (count - 1))
    return generate, {"toy": "1"}

main(load)
"""
JOB: dict[str, Any] = {
    "kind": "steps",
    "vocab": 40,
    "prompt": 6,
    "output": 5,
    "batches": [1, 3],
    "prefill": [9],
    "seconds": 0,
    "seed": 0,
}


def drive(tmp_path: Path, job: dict[str, Any]) -> list[str]:
    script = tmp_path / "driver.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(DRIVERS)!r})\n{DRIVER}")
    command = [sys.executable, str(script), json.dumps(job)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    assert done.returncode == 0
    return done.stdout.splitlines()


def test_a_driver_counts_decode_without_prefill(tmp_path: Path) -> None:
    kind, _, text = drive(tmp_path, JOB)[-1].partition(" ")
    assert kind == "RESULT"
    wanted = {"decode/1": 2.0, "decode/3": 2.0, "prefill/9": 18.0}
    assert json.loads(text) == {"values": wanted, "versions": {"toy": "1"}}


def test_a_driver_tells_its_first_token(tmp_path: Path) -> None:
    assert drive(tmp_path, JOB | {"kind": "start"}) == ["FIRST", "READY"]


def test_tokens_before_the_last_sequence_started_do_not_count() -> None:
    """Three sequences of three tokens; the second starts a step late, the third two."""
    code = (
        "from drive import streamed\n"
        "steps = [{'a': 1}, {'a': 2, 'b': 1}, {'a': 3, 'b': 2, 'c': 1}, {'a': 3, 'b': 3, 'c': 3}]\n"
        "print(streamed(3, 3, 0.0, iter(steps)).tokens)\n"
        "try:\n"
        "    streamed(3, 4, 0.0, iter(steps))\n"
        "except RuntimeError as error:\n"
        "    print(error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=DRIVERS, stdout=subprocess.PIPE, text=True, check=True
    )
    assert told.stdout.splitlines() == ["3", "9 tokens instead of 12"]


def test_an_environment_is_made_once_and_only_when_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for running commands: what matters here is when they are run."""
    ran: list[list[str]] = []
    status = 1

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        (tmp_path / "toy").mkdir(exist_ok=True)
        print("no such package", file=options["stdout"], flush=True)
        return subprocess.CompletedProcess(command, status if "install" in command else 0)

    monkeypatch.setattr("ci.bench.cpu.peer.install.subprocess.run", run)
    peer = Peer("toy", ("toy==1",), removed=("vision",))
    with pytest.raises(Unavailable, match="no such package"):
        install(peer, tmp_path)
    status = 0
    python = install(peer, tmp_path)
    assert python == tmp_path / "toy" / "bin" / "python"
    assert [command[-1] for command in ran[-2:]] == ["toy==1", "vision"]
    before = len(ran)
    assert install(peer, tmp_path) == python and len(ran) == before
    install(Peer("toy", ("toy==2",), removed=("vision",)), tmp_path)
    assert len(ran) > before, "other requirements are another environment"


def test_a_peer_does_not_see_our_packages_or_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "core")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    seen = environment({"A": "b"})
    assert "PYTHONPATH" not in seen and "OMP_NUM_THREADS" not in seen and seen["A"] == "b"
