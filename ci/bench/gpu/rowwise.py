"""Ops on rows, and the composites of a layer beside their parts:
python ci/bench/gpu/rowwise.py; --only norm_mlp --models qwen3-8b --rows 64; --dry without a GPU

norm.rms, norm.add_rms, qk_norm_rope_kvwrite, activation.glu, embedding and batch.derive by every
kernel that is installed (or the reference, where none is), norm.add_rms/fp8 and activation.glu/fp8,
which quantize what they make, norm_linear and norm_mlp. Recorded calls walk through copies of what
an op reads, more than L2 holds, where that must come from memory: weights of products, rows of the
embedding's table. What the op before has just written is

  warm  the same memory in every call, as in a model: such a case can beat its limit
  cold  memory of its own in each call, and so are results; left out where as many calls as a
        recording has fit L2, but for the embedding, whose few rows then come from there

`parts` is a composite's decomposition, each part the engine's choice. Contexts are for the tables
of positions and of pages. The limit is the larger of the bytes over the copy bandwidth and the
operations over the rate of a large matrix product, both measured in the same run. The floor is
what a kernel takes that does nothing, recorded as often: where the limit is below it, launches are
what is measured, and the line has no part of the limit but how many floors it takes.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from ceilings import copy_bandwidth, product_rate
from replay import replay_seconds
from rowwise_cases import (
    KINDS,
    WRITTEN,
    Case,
    arguments,
    composite_cases,
    rowwise_cases,
    stored,
)
from rowwise_kernels import QUANTIZING, launch_nothing

from inferplane.hw import CANONICAL, Bound, Device, DeviceInfo, LayerKV, OpImpl, Reject
from inferplane.hw.ops import TABLE
from inferplane.plugins import Plugins, open_device
from inferplane.resolver import Resolver
from inferplane.testing.op_run import OneOp
from models import SHAPES

LEAST = 64
"""calls of a recording, so that its start does not count"""
FEW = 16
"""that are enough of those that take longer than LONG seconds"""
LONG = 20e-6
REPLAYS = 9
"""of which the median is taken; SPARE of rowwise_cases.py is enough for so many"""


class Parts(OneOp):
    """Binds the parts of a composite as an engine does: each to the best there is."""

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(resolver.device)
        self._resolver = resolver

    def bind(self, op: str, spec: Any) -> Bound:
        return self._resolver.resolve(op, spec).chosen.build(spec, self)


def built(case: Case, impl: OpImpl, context: OneOp) -> Bound:
    if case.op == "qk_norm_rope_kvwrite":
        handle = context.handles[0] = LayerKV(CANONICAL, case.spec.kv)
        handle.data = CANONICAL.alloc(case.pages, case.spec.kv, context.device)
    return impl.build(case.spec, context)


def inputs(case: Case, bound: Bound, weights: list[Any], where: str) -> list[dict[str, Any]]:
    """The arguments of each copy."""
    copies: list[dict[str, Any]] = []
    for index in range(case.copies):
        given = arguments(case, index, weights, where)
        if copies and not case.cold:
            given |= {name: copies[0][name] for name in WRITTEN & set(given)}
        if bound.prepack is not None:
            given["packed"] = bound.prepack(*given["packed"])
        copies.append(given)
    return copies


class Bench:
    """One device, what serves there, its ceilings and its floor."""

    def __init__(self, plugins: Plugins, device: Device) -> None:
        self.device, self.where = device, device.info.torch_device
        self._resolver = Resolver(device, plugins.op_impls(device), capture=True)
        self._refused: set[str] = set()
        self._bandwidth, self._rate = copy_bandwidth(self.where), product_rate(self.where)
        empty = [partial(launch_nothing, device)] * LEAST
        self.floor = replay_seconds(empty, self.where, REPLAYS)
        print(
            f"{device.info.name}: copy {self._bandwidth / 1e12:.2f} TB/s, "
            f"{self._rate / 1e12:.0f} TFLOP/s, floor {self.floor * 1e6:.2f} us"
        )

    def serving(self, case: Case) -> dict[str, OpImpl]:
        """Kernels that take the case, and a composite's parts; says once why others do not. The
        reference is too slow to be worth the time where anything else serves."""
        if case.op in QUANTIZING:
            impl = QUANTIZING[case.op]
            taken = self._takes(case, impl.supports(case.spec, self.device), impl.name)
            return {impl.name: impl} if taken else {}
        impls = [impl for op, impl in self._resolver.impls if op == case.op]
        verdicts = self._resolver.kernels(case.op, case.spec)
        found = {
            name: impl
            for impl, (name, verdict) in zip(impls, verdicts, strict=True)
            if self._takes(case, verdict, name)
        }
        entry = TABLE[case.op]
        if case.products:
            found["parts"] = entry.reference
        return found or {entry.reference.name: entry.reference}

    def _takes(self, case: Case, verdict: Any, name: str) -> bool:
        if not isinstance(verdict, Reject):
            return True
        if (text := f"{name}, {case.op}, {case.kind}: {verdict.reason}") not in self._refused:
            self._refused.add(text)
            print(text)
        return False

    def limit(self, case: Case) -> float:
        return max(case.nbytes / self._bandwidth, case.operations / self._rate)

    def measure(self, case: Case, impl: OpImpl, weights: list[Any]) -> float:
        """Seconds of one call."""
        bound = built(case, impl, Parts(self._resolver))
        copies = inputs(case, bound, weights, self.where)
        results: dict[int, Any] = {}

        def call(index: int) -> None:
            made = bound.run(*copies[index % len(copies)].values())
            if case.cold:
                results[index] = made  # kept, so that the next one is memory of its own, too

        count = max(FEW if self.limit(case) > LONG else LEAST, len(copies))
        return replay_seconds([partial(call, i) for i in range(count)], self.where, REPLAYS)

    def case(self, case: Case) -> dict[str, Any]:
        """A line of results, which is printed, too."""
        limit, rows = self.limit(case), []
        weights = stored(case, self.where)
        for name, impl in self.serving(case).items():
            try:
                rows.append((self.measure(case, impl, weights), name))
            except Exception as error:
                print(f"  {case.name} {name}: {type(error).__name__}: {str(error)[:300]}")
        print(self.line(case, limit, rows), flush=True)
        return {
            "machine": self.device.info.name,
            "case": case.name,
            "limit": limit,
            "floor": self.floor,
            "nbytes": case.nbytes,
            "rows": rows,
        }

    def line(self, case: Case, limit: float, rows: Sequence[tuple[float, str]]) -> str:
        work, unit = case.nbytes / 1e9, "GB/s"
        if case.operations / self._rate > case.nbytes / self._bandwidth:
            work, unit = case.operations / 1e12, "TFLOP/s"
        shown = [f"{case.name:<48}{limit * 1e6:>8.2f} us, floor {self.floor * 1e6:.2f} |"]
        for took, name in rows:
            tiny = limit < self.floor
            of = f"{took / self.floor:.1f} floors" if tiny else f"{limit / took:.0%}"
            shown.append(f"{name} {took * 1e6:.2f} us {work / took:.0f} {unit} {of}")
        return "  ".join(shown)


def dry(cases: Sequence[Case]) -> None:
    """Each case with what it moves, after its reference has taken its arguments: shapes and types
    alone, of nothing anywhere."""
    where = "meta"
    device: Any = SimpleNamespace(info=DeviceInfo(backend="dry", torch_device=where, name=where))
    for case in cases:
        if case.op in TABLE:
            bound = built(case, TABLE[case.op].reference, OneOp(device))
            given = arguments(case, 0, stored(case, where), where)
            if bound.prepack is not None:
                given["packed"] = bound.prepack(*given["packed"])
            bound.run(*given.values())
        print(
            f"{case.name:<48}{case.nbytes:>12} bytes{case.operations / 1e9:>10.2f} GFLOP"
            f"{case.copies:>6} copies"
        )
    print(f"{len(cases)} cases")


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=["llama3-8b", "qwen3-8b",
                        "qwen3-0.6b"])  # fmt: skip
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256, 8, 32, 128])
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 32768])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["dense"], help="of weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seconds", type=float, default=55, help="stop starting cases after")
    parser.add_argument("--dry", action="store_true", help="the plan alone, on the CPU")
    parser.add_argument("--json", type=Path, help="append results as JSON lines")
    return parser.parse_args(argv)


def plan(args: argparse.Namespace) -> Iterator[Case]:
    """Composites last: their products take longest to compile."""
    alone = rowwise_cases(args.models, args.rows, args.dtype, args.contexts)
    whole = composite_cases(args.models, args.rows, args.dtype, args.kinds)
    return (case for case in chain(alone, whole) if args.only in case.name)


def main(argv: Sequence[str] | None = None) -> None:
    args = options(argv)
    end = time.perf_counter() + args.seconds
    if args.dry:
        with torch.inference_mode():
            dry(list(plan(args)))
        return
    plugins = Plugins()
    bench = Bench(plugins, open_device(plugins, args.device)[0])
    for case in plan(args):
        if time.perf_counter() > end:
            print(f"stopped after {args.seconds:.0f} s, before {case.name}")
            return
        with torch.inference_mode():
            found = bench.case(case)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
