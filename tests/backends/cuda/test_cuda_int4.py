"""The INT4 op whole, its kernels run on the CPU in place of being loaded to a GPU."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inferplane.hw import DeviceInfo, Reject, Support
from inferplane.hw.ops.linear import LinearSpec, LogitsSpec
from inferplane.hw.quantization import Scheme, dequantize, quantize
from inferplane.testing.compare import close
from inferplane.testing.ops import TABLE
from inferplane_cuda import compiler, int4
from inferplane_cuda.compiler import Compiler
from inferplane_cuda.plugin import CudaDevice, op_impls
from tests.backends.cuda.lanes import arguments, library
from tests.rules.source import REPO

INFO = DeviceInfo(backend="cuda", torch_device="cpu", name="test", arch="sm_90")
DEVICE = CudaDevice(INFO, Compiler())
SCHEME = Scheme(weight="int4", group=64, asymmetric=True)
SPEC = LinearSpec(in_features=256, out_features=96, dtype="bfloat16", scheme=SCHEME)


class OnCpu:
    """In place of launch.Module: what the compiler would get is run by the stand-in."""

    def __init__(self, options: dict[str, int], sources: Path) -> None:
        self._options, self._sources = options, sources

    def kernel(self, name: str, threads: int, shared: int = 0, overlapped: bool = False) -> Any:
        assert threads == 32 * self._options["WARPS"]

        def run(grid: tuple[int, int], values: "Sequence[torch.Tensor | int | None]") -> None:
            kernels = library(self._sources, self._options)  # compiled if used
            if name == "int4_dense":
                *values, steps = values
                kernels.dense(*arguments((*values, grid[0], steps)))
                return
            assert shared == kernels.scratch_bytes()
            o, (rows, columns) = self._options, values[5:7]
            assert isinstance(rows, int) and isinstance(columns, int)
            assert grid == (columns // (16 * o["STRIPS"] * o["ACROSS"]), -(-rows // o["ROWS"]))
            kernels.few(*arguments(values))

        return run


@pytest.fixture
def on_cpu(sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def modules(self: Any, device: Any, wanted: Sequence[dict[str, int]]) -> list[OnCpu]:
        return [OnCpu(options, sources) for options in wanted]

    monkeypatch.setattr(int4.Kernels, "modules", modules)


@pytest.mark.parametrize("rows", [0, 1, 20, 70, 150])
def test_linear_of_any_number_of_rows(
    rows: int, on_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int4, "PART_BYTES", 2 * 256 * 48)  # the library takes two parts
    spec = replace(SPEC, bias=True)
    context: Any = SimpleNamespace(device=DEVICE)
    bound = int4.Linear(DEVICE.compiler, int4.Kernels(DEVICE.compiler)).build(spec, context)
    generator = torch.Generator().manual_seed(rows)
    weight = quantize(torch.randn(96, 256, generator=generator) / 16, SCHEME)
    bias = torch.randn(96, generator=generator).bfloat16()
    x = torch.randn(rows, 256, generator=generator).bfloat16()
    assert bound.prepack is not None
    got = bound.run(x, bound.prepack(weight, bias))
    want = x.double() @ dequantize(weight, "float64").T + bias.double()
    assert got.dtype == torch.bfloat16 and got.shape == want.shape
    close("y", got, want, TABLE["linear"].tolerance(spec))


def test_logits_are_capped(on_cpu: None) -> None:
    spec = LogitsSpec(dim=256, vocab=96, dtype="float16", softcap=0.5, scheme=SCHEME)
    context: Any = SimpleNamespace(device=DEVICE)
    bound = int4.Logits(DEVICE.compiler, int4.Kernels(DEVICE.compiler)).build(spec, context)
    weight = quantize(torch.randn(96, 256, generator=torch.Generator().manual_seed(1)), SCHEME)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(2)).half()
    assert bound.prepack is not None
    got = bound.run(x, bound.prepack(weight))
    want = 0.5 * (x.double() @ dequantize(weight, "float64").T / 0.5).tanh()
    assert got.dtype == torch.float32
    close("logits", got, want, TABLE["logits"].tolerance(spec))


@pytest.mark.parametrize("columns", [16, 96, 4096, 6144, 28672, 128256, 1008])
def test_cuts_divide_every_weight(columns: int) -> None:
    chosen = int4.cuts(columns)
    assert [rows for rows, _ in chosen] == [1, 4, 8, 16, 32, int4.MOST]
    for rows, cut in chosen:
        assert columns % cut.columns == 0
        assert cut.rows >= min(rows, 64)
        assert cut.warps % cut.across == 0
        assert cut.shared_bytes <= 227 * 1024


def verdict(spec: Any, arch: str = "sm_90") -> Support | Reject:
    device = CudaDevice(replace(INFO, arch=arch), Compiler())
    op = "linear" if isinstance(spec, LinearSpec) else "logits"
    (impl,) = [i for name, i in op_impls(device) if (name, i.name) == (op, "cuda.int4")]
    return impl.supports(spec, device)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_problem", lambda arch: "")


def test_what_is_served(compiles: None) -> None:
    served = verdict(SPEC)
    assert isinstance(served, Support)
    assert served.priority > 60, "above the Triton pack's"
    assert served.invariance == "run"
    for group in (0, 32, 128, 256):
        assert isinstance(verdict(replace(SPEC, scheme=replace(SCHEME, group=group))), Support)
    assert isinstance(
        verdict(LogitsSpec(dim=256, vocab=96, dtype="float16", scheme=SCHEME)), Support
    )


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"scheme": None}, "feature"),
        ({"scheme": replace(SCHEME, activation="int8")}, "feature"),
        ({"scheme": replace(SCHEME, weight="int8")}, "feature"),
        ({"scheme": replace(SCHEME, group=16)}, "shape"),
        ({"dtype": "float32"}, "dtype"),
        ({"in_features": 192}, "shape"),
        ({"out_features": 100}, "shape"),
    ],
)
def test_what_is_not(changed: dict[str, Any], code: str, compiles: None) -> None:
    refused = verdict(replace(SPEC, **changed))
    assert isinstance(refused, Reject)
    assert refused.code == code


@pytest.mark.parametrize("arch", ["sm_80", "sm_100", ""])
def test_other_gpus_are_refused_by_name(arch: str, compiles: None) -> None:
    refused = verdict(SPEC, arch)
    assert isinstance(refused, Reject)
    assert refused.code == "hardware"
    assert "sm_90 only" in refused.reason and (arch or "this GPU") in refused.reason


def test_without_a_compiler_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_problem", lambda arch: f"no NVRTC for {arch}")
    assert verdict(SPEC) == Reject("library", "no NVRTC for sm_90")


@pytest.fixture
def linears(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ci/bench/gpu/linears.py without a GPU, and with no candidates but ours."""
    monkeypatch.syspath_prepend(str(REPO / "ci/bench/gpu"))
    bench = import_module("linears")
    kernels = int4.Kernels(DEVICE.compiler)
    monkeypatch.setattr(bench.linear_cuda, "opened", lambda name: (DEVICE, kernels))
    monkeypatch.setattr(bench, "variants", lambda *given: ())

    def seconds(run: Any, copies: int) -> float:
        for copy in range(copies):
            run(copy)
        return copies * 1e-6

    monkeypatch.setattr(bench, "graph_seconds", seconds)
    monkeypatch.setitem(bench.SHAPES, "tiny", (96, 256))
    monkeypatch.setattr(import_module("linear_variants"), "ROTATE", 40_000)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "test")
    return bench


def bench_lines(bench: Any, kind: str, rows: int, file: Path) -> list[dict[str, Any]]:
    report = bench.Report(file, "commit", 1e12, 1e12)
    problem = bench.Problem(kind, "tiny", 1, "cpu")
    bench.measure(problem, rows, bench.Shared("cpu"), report, float("inf"))
    assert report.wrong == []
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize(("kind", "rows"), [("int4", 3), ("int4-g32", 3), ("int4", 150)])
def test_the_benchmark_measures_it(
    kind: str, rows: int, linears: Any, on_cpu: None, compiles: None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (line,) = bench_lines(linears, kind, rows, tmp_path / "lines")
    assert (line["case"], line["variant"]) == (f"linear/{kind}/tiny/m{rows}", "cuda.int4")
    assert line["value"] >= 3 and 0 < line["error"] < 0.008
    assert "  cuda.int4\n" in capsys.readouterr().out


def test_the_benchmark_says_why_it_cannot(
    linears: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(compiler, "_problem", lambda arch: f"no NVRTC for {arch}")
    assert bench_lines(linears, "int4", 3, tmp_path / "lines") == []
    assert "failed: cuda.int4: RuntimeError: no NVRTC for sm_90\n" in capsys.readouterr().out
    assert bench_lines(linears, "bf16", 3, tmp_path / "lines") == []
    assert "cuda.int4" not in capsys.readouterr().out
