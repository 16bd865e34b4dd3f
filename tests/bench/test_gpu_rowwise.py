"""The benchmark of ops on rows: its plan at real shapes without a device, and its measuring on a
model of two heads, whose kernels run in Triton's interpreter."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.backends.triton.interpreter import DEVICE, ON_GPU  # isort: skip

from inferplane.hw.ops.derive import DeriveSpec
from inferplane.testing.op_run import OneOp
from inferplane_triton import derive, normed, quantized, rowwise, sampling

if ON_GPU:
    pytest.skip("the benchmark itself runs on a GPU", allow_module_level=True)

GPU = Path(__file__).parents[2] / "ci/bench/gpu"
TINY = {
    "model_type": "qwen3",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "vocab_size": 96,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
}
IMPLS = [
    ("norm.rms", rowwise.RMSNorm()),
    ("norm.add_rms", rowwise.AddRMSNorm()),
    ("qk_norm_rope_kvwrite", rowwise.RopeWrite()),
    ("activation.glu", rowwise.Glu()),
    ("embedding", sampling.Embedding()),
    ("batch.derive", derive.Derive()),
    ("norm_linear", normed.NormLinear()),
]
MODELS = ("llama3-8b", "qwen3-8b", "qwen3-0.6b")
TOOK, FLOOR = 2e-6, 1e-7


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(GPU))
    made = import_module("rowwise")

    class Installed:
        def op_impls(self, device: Any) -> Any:
            return IMPLS

    monkeypatch.setattr(made, "Plugins", Installed)
    monkeypatch.setattr(made, "open_device", lambda plugins, wanted: (DEVICE, ""))
    monkeypatch.setattr(made, "copy_bandwidth", lambda where: 1e12)
    monkeypatch.setattr(made, "product_rate", lambda where: 1e15)
    monkeypatch.setattr(made, "replay_seconds", replay_seconds)
    monkeypatch.setattr(quantized, "has_fp8", lambda arch: True)
    monkeypatch.setitem(import_module("models").SHAPES, "tiny", TINY)
    return made


def replay_seconds(calls: list[Any], where: str, replays: int) -> float:
    """Makes each of the calls that begin and end a recording, and tells a time of its own."""
    for call in (*calls[:2], calls[-1]):
        call()
    return FLOOR if calls[0].func.__name__ == "launch_nothing" else TOOK


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cache that few calls of the small model fill."""
    cases = import_module("rowwise_cases")
    monkeypatch.setattr(cases, "L2", 20_000)
    monkeypatch.setattr(cases, "MOST", 6)
    return cases


def run(bench: Any, path: Path, *options: str) -> dict[str, dict[str, Any]]:
    given = ["--models", "tiny", "--rows", "5", "--dtype", "float16", "--json", str(path)]
    bench.main([*given, "--contexts", "64", *options])
    lines = map(json.loads, path.read_text().splitlines())
    return {line["case"]: line for line in lines}


def test_the_plan_has_each_op_at_each_shape(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def opened(*_: Any) -> Any:
        raise AssertionError("a plan needs no device")

    monkeypatch.setattr(bench, "open_device", opened)
    bench.main(["--dry"])
    *lines, total = capsys.readouterr().out.splitlines()
    names = {line.split()[0] for line in lines}
    assert total == f"{len(names)} cases"
    tables = ("qk_norm_rope_kvwrite", "batch.derive")
    for model in MODELS:
        for rows in (1, 8, 32, 64, 128, 256):
            wanted = {
                f"{op}/m{rows}/warm"
                for op in ("norm.rms", "norm.add_rms", "norm.add_rms/fp8", "activation.glu",
                           "activation.glu/fp8")
            } | {f"{op}/m{rows}/{k}k/warm" for op in tables for k in (1, 32)}  # fmt: skip
            wanted |= {f"embedding/m{rows}/cold"}
            wanted |= {f"{op}/dense/m{rows}" for op in ("norm_linear", "norm_mlp")}
            assert {f"{model}/{each}" for each in wanted} <= names
        assert f"{model}/norm.add_rms/m256/cold" in names
    assert "qwen3-0.6b/norm.rms/m1/cold" not in names  # all calls of a recording fit the cache


def test_the_plan_has_the_bytes_of_each_op(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: Llama-3-8B has rows of 4,096 and 14,336, 32 heads and 8 of keys of 128; 64 rows."""
    bench.main(["--dry", "--models", "llama3-8b", "--rows", "64"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[:-1]]
    found = {words[0].removeprefix("llama3-8b/"): int(words[1]) for words in lines}
    assert found["norm.rms/m64/warm"] == 2 * 4096 * (64 * 2 + 1)
    assert found["norm.add_rms/m64/warm"] == 2 * 4096 * (64 * 4 + 1)
    assert found["norm.add_rms/fp8/m64/warm"] == 2 * 4096 * (64 * 3 + 1) + 64 * 4096 + 64 * 4
    assert found["activation.glu/m64/cold"] == 2 * 64 * 3 * 14336
    assert found["activation.glu/fp8/m64/warm"] == 64 * (5 * 14336 + 4)
    assert found["embedding/m64/cold"] == 64 * (2 * 2 * 4096 + 4)
    # read q, k, v; write q, k, v; a row of cos and sin in float32; position and slot
    turned = 64 * (2 * 2 * (32 + 8 + 8) * 128 + 128 * 4 + 8)
    assert found["qk_norm_rope_kvwrite/m64/1k/warm"] == turned
    assert found["qk_norm_rope_kvwrite/m64/32k/cold"] == turned
    assert found["batch.derive/m64/1k/warm"] == 4 * 64 * (2 * 64 + 13)
    assert found["batch.derive/m64/32k/warm"] == 4 * 64 * (2 * 2048 + 13)
    wide = (32 + 2 * 8) * 128
    assert found["norm_linear/dense/m64"] == 2 * (4096 * wide + 64 * (3 * 4096 + wide) + 4096)
    mlp = 3 * 4096 * 14336 + 64 * 4 * 4096 + 4096
    assert found["norm_mlp/dense/m64"] == 2 * mlp


def test_calls_that_are_to_be_cold_walk_through_more_than_the_cache(bench: Any) -> None:
    cases = import_module("rowwise_cases")
    planned = list(bench.plan(bench.options([])))
    assert len(planned) > 300
    for case in planned:
        walked = case.nbytes if case.cold else case.weights
        if case.op == "embedding" and case.copies == cases.MOST:
            continue  # a recording has no more calls, and the op no other case
        if walked:
            assert (case.copies - 1) * walked >= cases.L2, case.name
        else:
            assert case.copies == 1, case.name


def test_each_op_is_measured_by_what_serves_it(
    bench: Any, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(bench, tmp_path / "lines")
    served = {
        name.removeprefix("tiny/"): [kernel for _, kernel in line["rows"]]
        for name, line in found.items()
    }
    kernels = {
        "norm.rms/m5/warm": "triton.rms",
        "norm.add_rms/m5/warm": "triton.add_rms",
        "norm.add_rms/fp8/m5/warm": "triton.rms_quantize",
        "qk_norm_rope_kvwrite/m5/0k/warm": "triton.rope_write",
        "activation.glu/m5/cold": "triton.glu",
        "activation.glu/fp8/m5/warm": "triton.glu_quantize",
        "embedding/m5/cold": "triton.embedding",
        "batch.derive/m5/0k/warm": "triton.derive",
    }
    assert {name: served[name] for name in kernels} == {n: [k] for n, k in kernels.items()}
    assert served["norm_linear/dense/m5"] == ["triton.norm_linear", "parts"]
    assert served["norm_mlp/dense/m5"] == ["parts"]
    assert "Error" not in capsys.readouterr().out


def test_a_line_has_rate_and_part_of_the_limit_or_floors(
    bench: Any, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = run(bench, tmp_path / "lines", "--only", "activation.glu/m")
    line = line["tiny/activation.glu/m5/warm"]
    nbytes = 2 * 5 * 3 * 256
    assert line["nbytes"] == nbytes
    assert line["limit"] == pytest.approx(nbytes / 1e12)
    assert (line["floor"], line["rows"]) == (FLOOR, [[TOOK, "triton.glu"]])
    shown = capsys.readouterr().out
    assert "copy 1.00 TB/s, 1000 TFLOP/s, floor 0.10 us" in shown
    assert "2.00 us 4 GB/s 20.0 floors" in shown  # 7,680 bytes take 0.008 us: below the floor
    run(bench, tmp_path / "lines", "--only", "activation.glu/m", "--rows", "200")
    shown = capsys.readouterr().out
    assert "0.31 us, floor 0.10 |" in shown
    assert "2.00 us 154 GB/s 15%" in shown


def test_cold_calls_share_nothing_and_composites_what_the_op_before_wrote(
    bench: Any, small: Any
) -> None:
    def memory(value: Any) -> set[int]:
        if isinstance(value, torch.Tensor):
            return {value.untyped_storage().data_ptr()}
        parts = value if isinstance(value, tuple | list) else []
        return set().union(*map(memory, parts))

    planned = bench.plan(
        bench.options(
            ["--models", "tiny", "--rows", "40", "--dtype", "float16", "--contexts", "64"]
        )
    )
    names = []
    for case in planned:
        if not (case.cold or case.products):
            continue
        names.append(case.op)
        bound = bench.built(case, bench.TABLE[case.op].reference, OneOp(DEVICE)) \
            if case.op in bench.TABLE else type("Plain", (), {"prepack": None})  # fmt: skip
        one, two = bench.inputs(case, bound, small.stored(case, "cpu"), "cpu")[:2]
        shared = {name for name in one if memory(one[name]) & memory(two[name])}
        assert shared == ({"x", "residual"} if case.products else
                          {"weight"} if case.op == "embedding" else set())  # fmt: skip
    assert {"norm_mlp", "norm_linear", "embedding", "norm.rms", "batch.derive"} <= set(names)


def test_rows_that_are_written_have_slots_of_their_own(bench: Any, small: Any) -> None:
    (case,) = bench.plan(
        bench.options(["--models", "tiny", "--rows", "40", "--contexts", "64",
                       "--only", "kvwrite/m40/0k/cold"])
    )  # fmt: skip
    slots = torch.cat([small.arguments(case, i, [], "cpu")["slot"] for i in range(case.copies)])
    assert len(slots.unique()) == len(slots) == 40 * case.copies > 40
    assert 16 <= int(slots.min()) <= int(slots.max()) < 16 * case.pages
    assert int(small.arguments(case, 0, [], "cpu")["position"].max()) < 64


def test_tables_have_room_for_all_replays(bench: Any) -> None:
    """Each call counts a token more, and looks its page up."""
    cases = import_module("rowwise_cases")
    case = cases.Case("", "batch.derive", DeriveSpec(page_size=16), 3, "float16", context=1024)
    calls = 2 + (1 + 2 * bench.REPLAYS) * bench.LEAST
    given = cases.arguments(case, 0, [], "cpu")
    last = int(given["num_computed"][1]) + calls - 1
    assert last // cases.PAGE < given["pages"][0].shape[1]
    assert given["columns"] == 64


def test_the_kernels_that_quantize_are_those_of_the_engine(bench: Any) -> None:
    """Their bits are those of the op alone and of what quantizes inputs by itself."""
    kernels, cases = import_module("rowwise_kernels"), import_module("rowwise_cases")
    linear, mlp = cases.layer(TINY, "fp8", "float16")
    x, residual = (torch.randn(3, 128, dtype=torch.float16) for _ in range(2))
    weight, wide = torch.randn(128).half(), torch.randn(3, 512).half()
    add, glu = kernels.QUANTIZING.values()
    context = OneOp(DEVICE)
    rounded, total = add.build(linear, context).run(x, residual, weight)
    plain, wanted = rowwise.AddRMSNorm().build(linear.norm, context).run(x, residual, weight)
    assert torch.equal(total, wanted)
    acted = rowwise.Glu().build(mlp.gated.glu, context).run(wide)
    for (q, scale), values, part in (
        (rounded, plain, linear.linear),
        (glu.build(mlp, context).run(wide), acted, mlp.down),
    ):
        product = quantized.BytesProduct(part, part.out_features, part.in_features, context)
        bits, scales = product.quantize(values, kernels.PLAIN)
        assert q.dtype == torch.float8_e4m3fn
        assert torch.equal(q.view(torch.int8), bits.view(torch.int8))
        assert torch.equal(scale, scales)


def test_it_stops_when_the_time_is_over(
    bench: Any, small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.main(["--models", "tiny", "--seconds", "0", "--json", str(tmp_path / "lines")])
    assert "stopped after 0 s, before tiny/norm.rms/m1/warm" in capsys.readouterr().out
    assert not (tmp_path / "lines").exists()
