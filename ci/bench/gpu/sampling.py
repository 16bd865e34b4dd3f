"""Sampling kernels beside the reference and the bandwidth: python ci/bench/gpu/sampling.py

First whether the tokens are the reference's, with the gap between the two candidates' scores where
they are not; then the time of each case, by replaying a graph of several calls, so that launches
cost what they cost in a recorded step. The limit is the bytes that the case must read (and write)
over the copy bandwidth measured in the same run; small batches sit in the cache and can beat it.
The peer is the reference in plain torch. A case or variant that fails is shown, and the run goes
on.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ceilings import copy_bandwidth
from replay import replay_seconds
from torch import Tensor

from inferplane.hw import DeviceInfo, TorchDevice
from inferplane.hw.noise import gumbel
from inferplane.hw.ops import TABLE
from inferplane.hw.ops.embedding import EmbeddingSpec
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.testing.op_run import OneOp
from inferplane_triton.sampling import DEFAULT, Draw, Embedding, Filter, Logprobs, Tiles

CALLS, REPLAYS = 8, 20
PEER_ELEMENTS = 2**25
"""the reference sorts; larger cases would take the memory and the time of the run"""
FILTERS: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0.0},
    "unfiltered": {},
    "top_k50": {"top_k": 50},
    "top_p0.95": {"top_p": 0.95},
    "top_k50 top_p0.95 min_p0.05": {"top_k": 50, "top_p": 0.95, "min_p": 0.05},
    "min_p0.05": {"min_p": 0.05},
    "top_p0.9 flat": {"top_p": 0.9},
    "top_k20000 flat": {"top_k": 20000},
    "one flat row": {"top_k": 50},
    "mixed rows": {},
}
VARIANTS = {
    "segment1024": replace(DEFAULT, segment=1024),
    "segment4096": replace(DEFAULT, segment=4096),
    "segment4096 warps8": replace(DEFAULT, segment=4096, warps=8),
    "group128": replace(DEFAULT, group=128),
    "bits2": replace(DEFAULT, bits=2),
    "group128 bits2": replace(DEFAULT, group=128, bits=2),
    "block512": replace(DEFAULT, block=512),
    "search8": replace(DEFAULT, search_warps=8),
    "bound4": replace(DEFAULT, bound_warps=4),
    "bound16": replace(DEFAULT, bound_warps=16),
    "wide8": replace(DEFAULT, wide_warps=8),
    "ways8": replace(DEFAULT, wide_ways=8),
    "unroll8": replace(DEFAULT, wide_unroll=8),
    "list4096": replace(DEFAULT, wide_list=4096),
}


@dataclass(slots=True)
class Case:
    """One measurement. `nbytes`: what must be read and written."""

    name: str
    nbytes: int
    run: Callable[[], Any]
    peer: Callable[[], Any] | None = None


class Bench:
    """The device, the clock and where results go."""

    def __init__(self, device: str, seconds: float, out: Path | None, commit: str) -> None:
        self.context = OneOp(TorchDevice(DeviceInfo(backend="bench", torch_device=device, name="")))
        self.device = device
        self.end = time.monotonic() + seconds
        self.machine = torch.get_device_module(device).get_device_name()
        self.bandwidth = copy_bandwidth(device)
        self._out, self._commit = out, commit

    @property
    def late(self) -> bool:
        return time.monotonic() > self.end

    def pair(self, op: str, impl: Any, spec: Any) -> tuple[Any, Any]:
        reference = TABLE[op].reference.build(spec, self.context).run
        return impl.build(spec, self.context).run, reference

    def write(self, record: dict[str, Any]) -> None:
        if self._out is not None:
            about = {
                "machine": self.machine,
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
                "commit": self._commit,
            }
            with self._out.open("a") as file:
                file.write(json.dumps(about | record) + "\n")

    def measure(self, case: Case) -> None:
        """Time of a call in us, the limit and the peer; prints and records them."""
        try:
            value = replay_seconds([case.run] * CALLS, self.device, REPLAYS)
        except Exception as error:
            print(f"{case.name:<52} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return
        peer = None
        if case.peer is not None and not self.late:
            try:
                peer = replay_seconds([case.peer] * 2, self.device, 5) * 1e6
            except Exception as error:
                print(f"{case.name:<52} peer failed: {str(error)[:120]}", flush=True)
        limit = case.nbytes / self.bandwidth
        beside = "" if peer is None else f"{peer:>11.1f}"
        print(
            f"{case.name:<52}{value * 1e6:>9.1f}{limit * 1e6:>9.1f}{limit / value:>8.0%}{beside}",
            flush=True,
        )
        self.write(
            {
                "case": case.name,
                "value": round(value * 1e6, 2),
                "unit": "us",
                "limit": round(limit * 1e6, 2),
                "peer": None if peer is None else round(peer, 2),
            }
        )


def logits(kind: str, rows: int, vocab: int, device: str) -> Tensor:
    """`peaked`: as of a trained model, a few dozen tokens far above the rest."""
    generator = torch.Generator(device=device).manual_seed(rows * 7 + vocab)
    x = torch.randn(rows, vocab, generator=generator, device=device)
    if kind == "flat":
        return x * 0.5
    if kind == "ties":
        return (x * 8).round() / 2
    if kind == "masked":
        gone = torch.rand(rows, vocab, generator=generator, device=device) < 0.9
        return (x * 4).masked_fill(gone, -torch.inf)
    if kind == "wide":
        return x * 4
    at = torch.randint(vocab, (rows, 40), generator=generator, device=device)
    boost = 8 + 12 * torch.rand(rows, 40, generator=generator, device=device)
    return (x * 2.5).scatter_add(1, at, boost)


def settings(rows: int, device: str, **values: float) -> dict[str, Tensor]:
    def real(name: str, default: float) -> Tensor:
        return torch.full((rows,), float(values.get(name, default)), device=device)

    generator = torch.Generator().manual_seed(rows)
    seeds = torch.randint(-(2**31), 2**31, (rows, 2), generator=generator)
    return {
        "temperature": real("temperature", 0.8),
        "top_k": real("top_k", 0).int(),
        "top_p": real("top_p", 1.0),
        "min_p": real("min_p", 0.0),
        "seed": seeds.int().to(device),
        "sample_index": torch.zeros(rows, dtype=torch.int32, device=device),
        "position": torch.arange(rows, dtype=torch.int32, device=device) + 100,
    }


def mixed(rows: int, device: str) -> dict[str, Tensor]:
    """Greedy, unfiltered and filtered rows side by side."""
    given = settings(rows, device)
    kind = torch.arange(rows, device=device) % 4
    given["temperature"] = torch.where(kind == 0, 0.0, 0.8)
    given["top_k"] = torch.where(kind >= 2, 40, 0).int()
    given["top_p"] = torch.where(kind == 3, 0.9, 1.0)
    return given


def one_flat(x: Tensor, given: dict[str, Tensor]) -> None:
    """The last row has flat logits, of which it keeps most; the others have few candidates."""
    x[-1].mul_(0.02)
    given["top_k"][-1], given["top_p"][-1] = 0, 0.9


def check_draw(bench: Bench, vocab: int, rows: int, kind: str, name: str) -> None:
    """Fraction of rows whose token is not the reference's, and the gaps between the scores."""
    run, reference = bench.pair("sampling.draw", Draw(), SamplingSpec(vocab=vocab))
    x = logits(kind, rows, vocab, bench.device)
    device = bench.device
    given = mixed(rows, device) if name == "mixed rows" else settings(rows, device, **FILTERS[name])
    if name == "one flat row":
        one_flat(x, given)
    flags = {"greedy": name == "greedy", "unfiltered": name == "unfiltered"}
    got, want = run(x, *given.values(), **flags), reference(x, *given.values(), **flags)
    again = run(x, *given.values(), **flags)
    alone = torch.cat(
        [run(x[i : i + 1], *(v[i : i + 1] for v in given.values()), **flags) for i in range(3)]
    )
    wrong = (got != want).nonzero().flatten()
    gap = ""
    if len(wrong):
        where = (given["seed"], given["sample_index"], given["position"])
        score = x / given["temperature"].clamp(min=1e-9).unsqueeze(1) + gumbel(*where, vocab)
        pair = torch.stack([t.long() for t in (got, want)], 1)[wrong]
        both = score[wrong].gather(1, pair)
        gap = f", score of ours less theirs {[f'{g:.2e}' for g in (both[:, 0] - both[:, 1])[:5]]}"
        gap += f", logits {x[wrong].gather(1, pair)[:3].tolist()}"
    stable = torch.equal(got, again) and torch.equal(alone, got[:3])
    print(
        f"{vocab:>7} {kind:<7}{name:<30} {len(wrong)} of {rows} differ"
        f"{'' if stable else ', NOT THE SAME AGAIN OR ALONE'}{gap}",
        flush=True,
    )
    bench.write(
        {
            "case": f"sampling/tokens that differ/{name}/{kind}/V{vocab}",
            "value": len(wrong) / rows,
            "unit": "fraction",
            "limit": 0,
            "peer": None,
        }
    )


def check_others(bench: Bench, vocab: int) -> None:
    spec = SamplingSpec(vocab=vocab)
    score, reference = bench.pair("sampling.logprobs", Logprobs(), spec)
    for kind in ("peaked", "wide", "ties", "flat"):
        x = logits(kind, 16, vocab, bench.device)
        ids = torch.arange(16, dtype=torch.int32, device=bench.device) * (vocab // 16)
        got, want = score(x, ids, 20), reference(x.double(), ids, 20)
        exact = reference(x, ids, 20)[2]
        far = max(float((g.double() - w).abs().max()) for g, w in ((got[0], want[0]),
                  (got[3], want[3])))  # fmt: skip
        print(
            f"{vocab:>7} {kind:<7}logprobs: ranks {torch.equal(got[1], want[1])}, "
            f"top ids {torch.equal(got[2], exact)}, largest error {far:.1e}",
            flush=True,
        )
    restrict, reference = bench.pair("sampling.filter", Filter(), spec)
    for seed in range(8):
        inputs = TABLE["sampling.filter"].inputs(spec, seed)
        moved = {name: value.to(bench.device) for name, value in inputs.items()}
        if not torch.equal(restrict(**moved), reference(**moved)):
            print(f"{vocab:>7} filter, seed {seed}: not the bits of the reference", flush=True)


def draw_cases(bench: Bench, vocab: int, rows: int, tiles: Tiles, label: str) -> Iterator[Case]:
    run, reference = bench.pair("sampling.draw", Draw(tiles), SamplingSpec(vocab=vocab))
    for name, values in FILTERS.items():
        x = logits("flat" if name.endswith("flat") else "peaked", rows, vocab, bench.device)
        given = settings(rows, bench.device, **values)
        if name == "mixed rows":
            given = mixed(rows, bench.device)
        if name == "one flat row":
            one_flat(x, given)
        arguments = (x, *given.values())
        flags = {"greedy": name == "greedy", "unfiltered": name == "unfiltered"}

        def call(fn: Any, arguments: Any = arguments, flags: Any = flags) -> Any:
            return lambda: fn(*arguments, **flags)

        peer = call(reference) if not label and rows * vocab <= PEER_ELEMENTS else None
        title = f"sampling/{name}/V{vocab}/bs{rows}{label and f'/{label}'}"
        yield Case(title, 4 * x.numel(), call(run), peer)


def other_cases(bench: Bench, vocab: int, rows: int) -> Iterator[Case]:
    device, spec = bench.device, SamplingSpec(vocab=vocab)
    x = logits("peaked", rows, vocab, device)
    ids = torch.zeros(rows, dtype=torch.int32, device=device)
    score, reference = bench.pair("sampling.logprobs", Logprobs(), spec)
    small = rows * vocab <= PEER_ELEMENTS
    for top in (0, 5, 20):

        def scored(fn: Any, top: int = top) -> Any:
            return lambda: fn(x, ids, top)

        title = f"sampling/logprobs{top}/V{vocab}/bs{rows}"
        yield Case(title, 4 * x.numel(), scored(score), scored(reference) if small else None)
    restrict, reference = bench.pair("sampling.filter", Filter(), spec)
    words = torch.full((rows, -(-vocab // 32)), -2, dtype=torch.int32, device=device)
    counts = torch.zeros_like(x, dtype=torch.int32)
    value = torch.full((rows,), 1.1, device=device)
    kinds: dict[str, dict[str, Tensor]] = {
        "bitmask": {"bitmask": words},
        "penalties": {
            "rows": torch.arange(rows, device=device).int(),
            "counts": counts,
            "in_prompt": counts.bool(),
        }
        | dict.fromkeys(("repetition", "frequency", "presence"), value),
        "banned": {"banned": torch.full((rows, 64), vocab, dtype=torch.int32, device=device)},
    }
    for name, given in kinds.items():
        nbytes = 8 * x.numel() + sum(t.nbytes for t in given.values())

        def filtered(fn: Any, given: Any = given) -> Any:
            return lambda: fn(x, **given)

        title = f"sampling/filter {name}/V{vocab}/bs{rows}"
        yield Case(title, nbytes, filtered(restrict), filtered(reference) if small else None)


def embedding_cases(bench: Bench, rows: int) -> Iterator[Case]:
    spec = EmbeddingSpec(vocab=151936, dim=4096, dtype="bfloat16")
    run, reference = bench.pair("embedding", Embedding(), spec)
    weight = torch.zeros(spec.vocab, spec.dim, dtype=torch.bfloat16, device=bench.device)
    ids = (torch.arange(rows, device=bench.device) * 577 % spec.vocab).int()
    nbytes = 2 * rows * spec.dim * weight.itemsize
    yield Case(
        f"embedding/d4096/bs{rows}",
        nbytes,
        lambda: run(ids, weight),
        lambda: reference(ids, weight),
    )


def checks(bench: Bench) -> None:
    for vocab in (49152, 151936):
        for kind in ("peaked", "wide", "ties", "masked", "flat"):
            for name in FILTERS:
                if not bench.late:
                    guarded(lambda v=vocab, k=kind, n=name: check_draw(bench, v, 64, k, n))
        guarded(lambda v=vocab: check_others(bench, v))


def guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception as error:
        print(f"failed: {type(error).__name__}: {str(error)[:500]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--vocab", type=int, nargs="+", default=[151936, 128256, 49152, 262144])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 64, 256])
    parser.add_argument("--seconds", type=float, default=300.0, help="stop starting cases after")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--no-variants", action="store_true")
    parser.add_argument("--commit", default="")
    parser.add_argument("--json", type=Path, help="append results as JSON lines")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    bench = Bench(args.device, args.seconds, args.json, args.commit)
    print(f"{bench.machine}: copy {bench.bandwidth / 1e12:.2f} TB/s")
    if not args.no_checks:
        checks(bench)
    print(f"{'case':<52}{'us':>9}{'limit':>9}{'':>8}{'reference':>11}")
    work: list[Callable[[], Iterator[Case]]] = []
    for vocab in args.vocab:
        for rows in args.batch:
            work.append(lambda v=vocab, n=rows: draw_cases(bench, v, n, DEFAULT, ""))
            work.append(lambda v=vocab, n=rows: other_cases(bench, v, n))
    work += [lambda n=rows: embedding_cases(bench, n) for rows in args.batch]
    variants = {} if args.no_variants else VARIANTS
    for label, tiles in variants.items():
        for rows in (args.batch[0], args.batch[-1]):
            work.insert(
                2 * len(args.batch),  # after the first vocabulary
                lambda t=tiles, n=rows, x=label: draw_cases(bench, args.vocab[0], n, t, x),
            )
    for made in work:
        if not bench.late:
            guarded(lambda m=made: [bench.measure(case) for case in m() if not bench.late] and None)
    if bench.late:
        print(f"stopped after {args.seconds:.0f} s")


if __name__ == "__main__":
    main()
