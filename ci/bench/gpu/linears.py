"""Every candidate kernel of a product beside the library's: python ci/bench/gpu/linears.py

For each case (number format, weight shape, rows of x) all candidates are checked against a
float32 reference on fresh random inputs, with the result poisoned before, and timed by replays of
one CUDA graph that walks through copies of the weights larger than L2. Printed are time, GB/s or
TFLOP/s and the fraction of the copy bandwidth of the same run (or of the library's largest bf16
rate), best first. A candidate that fails prints its error. The most valuable cases come first and
--seconds ends the run after any of them.

In the last fifth of the time the batch-invariant product is compared bit for bit over rows, and
so is cuBLAS without split-K, in a process of its own because that is set by environment variables.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import zlib
from concurrent.futures import ProcessPoolExecutor, wait
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import linear_cuda
import torch
import triton
from linear_variants import LIMIT, SHAPES, Inputs, Problem, Run, Shared, variants
from replay import replay_seconds

from inferplane_cuda import int4
from inferplane_triton import launch, tuning

MODEL_8B = ("8b/gate_up", "8b/down", "8b/qkv", "8b/o")
MODEL_SMALL = ("0.6b/qkv", "0.6b/o", "0.6b/gate_up", "0.6b/down")
LAUNCHES = 48
NO_SPLIT = {"CUBLAS_WORKSPACE_CONFIG": ":16:8", "CUBLASLT_WORKSPACE_SIZE": "1"}


def plan() -> list[tuple[str, str, tuple[int, ...]]]:
    """(kind, shape, rows), most valuable first"""
    few, many = (2, 32), (128, 256, 1024)
    steps = [("int4", s, (1, 16)) for s in MODEL_8B]
    steps += [("fp8", s, (1, 8)) for s in MODEL_8B]
    steps += [("bf16", s, (4, 8)) for s in (*MODEL_SMALL, *MODEL_8B)]
    steps += [("int4", s, (64, 128, 512, 4)) for s in MODEL_8B]
    steps += [("bf16", s, (1,)) for s in (*MODEL_8B, "8b/head", *MODEL_SMALL)]
    steps += [("bf16", s, (32, 64, 2)) for s in (*MODEL_8B, *MODEL_SMALL)]
    steps += [("fp8", s, (64, 128, 1024)) for s in MODEL_8B]
    steps += [("int4", s, (32, 256, 1024)) for s in MODEL_8B]
    steps += [("bf16", s, (256, 4096)) for s in MODEL_8B]
    steps += [("fp8-block", s, (1, 4, 16, 64, 1024, 4096)) for s in MODEL_8B]
    steps += [("int4-g32", s, (1, 4, 16, 64)) for s in MODEL_8B]
    steps += [("fp8", s, few) for s in MODEL_8B]
    steps += [("bf16", s, (16, *many)) for s in MODEL_8B]
    steps += [("bf16", "8b/head", (8, 32, 64, 256)), ("int4", "8b/down", (4096,))]
    steps += [("int8", s, (1, 4, 16, 64, 1024, 4096)) for s in MODEL_8B]
    return steps


def compile_share(index: int, count: int, steps: list[tuple[str, str, tuple[int, ...]]]) -> int:
    """Compile every `count`th kernel of the plan into Triton's cache, without data or launches."""
    from triton.runtime.jit import JITFunction

    def compiled(self: Any, grid: Any) -> Any:
        return lambda *args, **kwargs: self.run(*args, grid=grid, warmup=True, **kwargs)

    JITFunction.__getitem__ = compiled
    shared, done, seen = Shared("meta"), 0, set()
    for kind, shape, counts in steps:
        p = Problem(kind, shape, 1, "meta")
        for rows in counts:
            for name, run in variants(p, p.at(rows), shared):
                key = f"{kind} {name} {min(rows, 128)}"
                if zlib.crc32(key.encode()) % count != index or key in seen or _is_library(name):
                    continue
                seen.add(key)
                with contextlib.suppress(Exception):  # the measurement prints it
                    run(0)
                    done += 1
    return done


def compile_all(seconds: float, steps: list[tuple[str, str, tuple[int, ...]]]) -> None:
    begin = time.perf_counter()
    count = max(1, (os.cpu_count() or 2) - 2)
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        parts = [pool.submit(compile_share, i, count, steps) for i in range(count)]
        waited = wait(parts, timeout=seconds)
        for process in pool._processes.values() if waited.not_done else ():
            process.terminate()
        done = sum(p.result() for p in waited.done if not p.exception())
        errors = {repr(p.exception())[:300] for p in waited.done if p.exception()}
    spent = time.perf_counter() - begin
    print(f"compiled {done} kernels in {count} processes, {spent:.0f} s {errors or ''}", flush=True)


def copy_bandwidth(device: str) -> float:
    """Bytes read and written per second by a large copy; median of 10 by events"""
    source = torch.empty(1 << 31, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(times[2:])


def graph_seconds(run: Run, copies: int) -> float:
    """Seconds of one launch in a recorded sequence of them: median of 7 replays"""
    once = replay_seconds([partial(run, 0)], "cuda", 1)
    count = 4 if once > 2e-3 else LAUNCHES  # few launches of a long one are enough
    return replay_seconds([partial(run, c % copies) for c in range(count)], "cuda", 7)


class Report:
    def __init__(self, path: Path | None, commit: str, bandwidth: float, rate: float) -> None:
        self._path, self._bandwidth, self._rate = path, bandwidth, rate
        self._base = {
            "machine": torch.cuda.get_device_name(),
            "versions": {"torch": torch.__version__, "triton": triton.__version__},
            "python": platform.python_version(),
            "commit": commit,
        }
        self.wrong: list[str] = []

    def write(self, record: dict[str, Any]) -> None:
        if self._path:
            with self._path.open("a") as file:
                file.write(json.dumps({**self._base, **record}) + "\n")

    def case(self, p: Problem, results: list[tuple[float, str, float]], seconds: float) -> None:
        """results: (seconds, candidate, error)"""
        flops = 2 * p.rows * p.columns * p.width
        memory, math = p.nbytes / self._bandwidth, flops / self._rate
        floor = max(memory, math)
        print(
            f"== {p.kind} {p.shape} [{p.columns}x{p.width}] M={p.rows}: limit {floor * 1e6:.1f} us"
            f" ({'memory' if memory >= math else 'bf16 rate'}), took {seconds:.1f} s"
        )
        ranked = sorted(results)
        library = min((r[0] for r in ranked if _is_library(r[1])), default=None)
        shown = ranked[:6] + [r for r in ranked[6:] if _is_shown(r[1])]
        for value, name, error in shown:
            rate = p.nbytes / value / 1e9 if memory >= math else flops / value / 1e12
            peer = f"{library / value:>6.2f}x" if library else ""
            print(
                f"  {value * 1e6:>8.2f} us {rate:>6.0f} {'GB/s' if memory >= math else 'TF/s'}"
                f" {floor / value:>5.0%} {peer:>7} err {error:.1e}  {name}"
            )
        for value, name, error in ranked:
            case = f"linear/{p.kind}/{p.shape}/m{p.rows}"
            self.write(
                {
                    "case": case, "variant": name, "value": round(value * 1e6, 3), "unit": "us",
                    "limit": round(floor * 1e6, 3), "error": error,
                    "peer": library and round(library * 1e6, 3),
                }
            )  # fmt: skip
        sys.stdout.flush()


def _is_library(name: str) -> bool:
    return name.startswith(("cublas", "scaled_mm", "quant+scaled_mm", "int_mm"))


def _is_shown(name: str) -> bool:
    """However slow it is."""
    return _is_library(name) or "alone" in name or name == linear_cuda.NAME


def measure(p: Problem, rows: int, shared: Shared, report: Report, deadline: float) -> None:
    begin = time.perf_counter()
    inputs: Inputs = p.at(rows)
    results = []
    failed = 0
    for name, run in chain(linear_cuda.candidates(p, inputs), variants(p, inputs, shared)):
        if time.perf_counter() > deadline:
            break
        try:
            inputs.y.fill_(float("nan"))
            run(0)
            torch.cuda.synchronize()
            error = 0.0 if "unchecked" in name else inputs.error()
            if not error <= LIMIT.get(p.kind, LIMIT["int4"]):
                report.wrong.append(f"{p.kind} {p.shape} M={rows} {name}: error {error:.3g}")
                print(f"  WRONG {report.wrong[-1]}")
                continue
            results.append((graph_seconds(run, len(p.weights)), name, error))
        except Exception as problem:
            failed += 1
            if "CUDA error" in str(problem):
                raise
            print(f"  failed: {name}: {type(problem).__name__}: {str(problem)[:200]}")
            torch.cuda.synchronize()
    if shared.count.any():
        report.wrong.append(f"{p.kind} {p.shape} M={rows}: counters are not zero")
        shared.count.zero_()
    report.case(p, results, time.perf_counter() - begin)


def invariance(product: Any, shape: str, device: str, most: int) -> dict[str, Any]:
    """Rows of every batch of 1 to `most` against the largest batch, from the start and inside."""
    columns, width = SHAPES[shape]
    torch.manual_seed(7)
    weight = (torch.randn(columns, width, device=device) / width**0.5).bfloat16()
    x = torch.randn(most, width, device=device).bfloat16()
    whole = product(x, weight).clone()
    bad = torch.zeros(2, most + 1, dtype=torch.bool, device=device)
    for rows in range(1, most + 1):
        bad[0, rows] = (product(x[:rows], weight) != whole[:rows]).any()
        if rows % 16 == 1:
            start = (rows * 37) % (most - rows + 1)
            inside = product(x[start : start + rows], weight)
            bad[1, rows] = (inside != whole[start : start + rows]).any()
    reference = x[:64].float() @ weight.float().T
    error = float((whole[:64].float() - reference).norm() / reference.norm())
    found = bad.any(0).nonzero().flatten().tolist()
    return {"shape": shape, "most": most, "differ": len(found), "first": found[:8], "error": error}


def own_invariant(device: str, shared: Shared) -> Any:
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        cut = tuning.invariant(x.shape[0], *weight.shape, True)
        y = torch.full((x.shape[0], weight.shape[0]), float("nan"), device=device).bfloat16()
        scratch = shared.scratch(cut, x.shape[0], weight.shape[0])
        launch.dense_tiles(x, weight, None, y, cut, scratch)
        return y

    return product


def check_invariance(shapes: list[str], device: str, own: bool, seconds: float) -> None:
    """Prints one JSON line for each shape."""
    shared = Shared(device)
    product = own_invariant(device, shared) if own else lambda x, w: torch.mm(x, w.T)
    begin = time.perf_counter()
    for shape in shapes:
        if time.perf_counter() - begin > seconds:
            break
        most = 512 if shape == "8b/head" else 4096
        found = invariance(product, shape, device, most)
        print(json.dumps({"product": "own" if own else "cublas", **found}), flush=True)


def invariance_rows(report: Report, seconds: float) -> None:
    shapes = [*MODEL_8B, *MODEL_SMALL, "8b/head"]
    for own in (True, False):
        command = [sys.executable, __file__, "--invariance", "own" if own else "cublas"]
        command += ["--seconds", str(seconds / 2), "--shapes", *shapes]
        environment = os.environ if own else {**os.environ, **NO_SPLIT}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            print(f"invariance failed: {done.stderr[-600:]}")
        for line in done.stdout.splitlines():
            if not line.startswith("{"):
                continue
            found = json.loads(line)
            verdict = "bitwise equal" if not found["differ"] else f"DIFFERS {found['first']}"
            print(
                f"  {found['product']:<7}{found['shape']:<14} M=1..{found['most']}: {verdict}"
                f" ({found['differ']} row counts), err {found['error']:.1e}"
            )
            report.write({"case": f"invariance/{found['product']}/{found['shape']}", **found})
            if found["product"] == "own" and found["differ"]:
                report.wrong.append(f"invariance of {found['shape']}: {found['first']}")


def source_stamp() -> str:
    """Tells versions of the kernels apart where the tree is not under version control."""
    digest = hashlib.sha256()
    for module in (launch, int4):
        for path in sorted(Path(module.__file__).parent.rglob("*")):
            if path.suffix in (".py", ".cu", ".cuh"):
                digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--kinds", nargs="+", default=[])
    parser.add_argument("--shapes", nargs="+", default=[])
    parser.add_argument("--rows", type=int, nargs="+", default=[])
    parser.add_argument("--commit", default=source_stamp())
    parser.add_argument("--json", type=Path)
    parser.add_argument("--invariance", choices=("own", "cublas", "none"), default=None)
    args = parser.parse_args()
    torch.cuda.set_device(args.device)
    if args.invariance in ("own", "cublas"):
        shapes = args.shapes or list(SHAPES)
        check_invariance(shapes, args.device, args.invariance == "own", args.seconds)
        return
    begin = time.perf_counter()
    steps = [
        (kind, shape, tuple(r for r in counts if not args.rows or r in args.rows))
        for kind, shape, counts in plan()
        if (not args.kinds or kind in args.kinds) and (not args.shapes or shape in args.shapes)
    ]
    compile_all(0.4 * args.seconds, steps)
    torch.set_float32_matmul_precision("highest")
    bandwidth = copy_bandwidth(args.device)
    a = torch.randn(8192, 8192, device=args.device).bfloat16()
    rate = 2 * 8192**3 / graph_seconds(lambda c: torch.mm(a, a), 1)
    print(
        f"{torch.cuda.get_device_name()}: copy {bandwidth / 1e12:.2f} TB/s,"
        f" bf16 {rate / 1e12:.0f} TFLOP/s, torch {torch.__version__}, triton {triton.__version__},"
        f" kernels {args.commit}"
    )
    report = Report(args.json, args.commit, bandwidth, rate)
    shared = Shared(args.device)
    check = args.invariance is None and not args.kinds
    deadline = begin + args.seconds * (0.8 if check else 1.0)
    for kind, shape, counts in steps:
        if time.perf_counter() > deadline:
            print(f"out of time before {kind} {shape}")
            break
        p = Problem(kind, shape, 1, args.device)
        for rows in counts:
            if time.perf_counter() < deadline:
                measure(p, rows, shared, report, deadline)
        del p
        torch.cuda.empty_cache()
    if check:
        invariance_rows(report, 0.2 * args.seconds)
    print(f"{time.perf_counter() - begin:.0f} s")
    if report.wrong:
        sys.exit("\n".join(["WRONG:", *report.wrong]))


if __name__ == "__main__":
    main()
