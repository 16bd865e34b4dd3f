"""Paged attention alone, at the shapes of whole models, by every implementation that is installed:
python ci/bench/gpu/attention.py --seconds 60; with --tiles by the Triton kernel in several tiles.

Each call is a layer of its own, so that keys and values come from memory and not from a cache; all
layers are recorded and replayed at once, as the engine does: steps that decode or prefill up to
1,024 tokens with page tables for the longest sequence. Plans are made before and not timed. Decode
is compared with the copy bandwidth (keys and values once), prefill with the rate of a large matrix
product (4 D Hq operations a visible pair); the limit is the larger of the two times.
"""

import argparse
import itertools
import json
import random
import time
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ceilings import copy_bandwidth, product_rate
from replay import replay_seconds

from inferplane.hw import CANONICAL, Device, ForwardBatch, LayerKV, OpImpl, Reject
from inferplane.hw.kv import KVSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.plugins import Plugins, open_device
from inferplane.resolver import short_name
from inferplane.testing.op_run import OneOp
from inferplane_triton.attention import PagedAttention, Tiles, decode_tiles, prefill_tiles

LAYERS_BYTES = 2**28
"""keys and values of all layers of a case together, at least; the H100's L2 holds 50 MB"""


LONGEST = 8192
"""tokens that page tables of recorded steps have room for, at least"""


@dataclass(frozen=True, slots=True)
class Case:
    """`queries` of each of `seqs` sequences that are `context` long with them; `ragged`: that
    long at most, an eighth at least. `decodes`: so many sequences more with one query."""

    name: str
    heads: int
    kv_heads: int
    seqs: int
    queries: int
    context: int
    ragged: bool = False
    decodes: int = 0
    dim: int = 128
    page: int = 16

    def spec(self, layer: int) -> AttentionSpec:
        kv = KVSpec(
            num_kv_heads=self.kv_heads,
            head_dim=self.dim,
            dtype="bfloat16",
            page_size=self.page,
        )
        return AttentionSpec(
            layer=layer,
            group=0,
            num_heads=self.heads,
            kv=kv,
            dtype="bfloat16",
            scale=self.dim**-0.5,
        )

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """(queries, keys) of each sequence"""
        choose = random.Random(self.seqs)
        least = self.context // 8 if self.ragged else self.context
        own = [(self.queries, choose.randint(least, self.context)) for _ in range(self.seqs)]
        return [(1, self.context)] * self.decodes + own

    @property
    def pages(self) -> int:
        return sum(-(-keys // self.page) for _, keys in self.lengths)

    @property
    def nbytes(self) -> int:
        return 4 * self.kv_heads * self.dim * sum(keys for _, keys in self.lengths)

    @property
    def operations(self) -> int:
        pairs = sum(n * (keys - n) + n * (n + 1) // 2 for n, keys in self.lengths)
        return 4 * self.dim * self.heads * pairs


def grid(model: str, heads: int, batches: tuple[int, ...], contexts: tuple[int, ...]) -> list[Case]:
    """Decode steps whose keys and values fit a few gigabytes a layer."""
    return [
        Case(f"{model}/decode/{n}x{context // 1024}k", heads, 8, n, 1, context)
        for context in contexts
        for n in batches
        if n * context <= LARGEST
    ]


LARGEST = 2**20
"""tokens of a case"""
CASES = (
    *grid("8b", 32, (1, 8, 32, 64, 128, 256), (1024, 4096, 32768)),
    *grid("0.6b", 16, (1, 8, 64, 256), (1024, 8192)),
    Case("8b/decode/64x<=8k", 32, 8, 64, 1, 8192, ragged=True),
    Case("8b/decode/256x<=2k", 32, 8, 256, 1, 2048, ragged=True),
    Case("8b/prefill/1x256", 32, 8, 1, 256, 256),
    Case("8b/prefill/1x1k", 32, 8, 1, 1024, 1024),
    Case("8b/prefill/8x1k", 32, 8, 8, 1024, 1024),
    Case("8b/prefill/1x8k", 32, 8, 1, 8192, 8192),
    Case("8b/chunk/512-of-4k", 32, 8, 1, 512, 4096),
    Case("8b/chunk/2k-of-16k", 32, 8, 1, 2048, 16384),
    Case("8b/mixed/64+512-of-1k", 32, 8, 1, 512, 1024, decodes=64),
    Case("0.6b/prefill/1x1k", 16, 8, 1, 1024, 1024),
    Case("0.6b/prefill/8x1k", 16, 8, 8, 1024, 1024),
    Case("0.6b/mixed/64+512-of-1k", 16, 8, 1, 512, 1024, decodes=64),
)


def batch_of(case: Case, device: str) -> ForwardBatch:
    """Pages in a random order, as a cache in use has them."""
    order = list(range(1, case.pages + 1))
    random.Random(0).shuffle(order)

    def ints(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    lengths = case.lengths
    tokens = sum(n for n, _ in lengths)
    decode = tokens == len(lengths)
    padded = decode or tokens <= 1024
    longest = max(case.context, LONGEST if padded else 0)
    table = torch.zeros(len(lengths), -(-longest // case.page), dtype=torch.int32)
    for row, (_, keys) in zip(table, lengths, strict=True):
        count = -(-keys // case.page)
        row[:count] = torch.tensor([order.pop() for _ in range(count)], dtype=torch.int32)
    starts = [0, *itertools.accumulate(n for n, _ in lengths)]
    zeros = torch.zeros(tokens, dtype=torch.int32, device=device)
    return ForwardBatch(
        num_tokens=tokens,
        num_seqs=len(lengths),
        num_decode=sum(n == 1 for n, _ in lengths),
        num_verify=0,
        token_ids=zeros,
        position=zeros,
        slot=(zeros,),
        row=zeros[: len(lengths)],
        q_start=ints(starts),
        seq_len=ints([keys for _, keys in lengths]),
        page_table=(table.to(device),),
        logit_index=zeros,
        host_q_start=starts,
        host_seq_len=[keys for _, keys in lengths],
        host_exact=True,
        max_q=1 if decode else tokens if padded else max(n for n, _ in lengths),
        max_kv=longest,
        padded=padded,
    )


def measure(case: Case, impl: OpImpl, device: Device, seconds: float) -> float:
    """Seconds of one layer."""
    where = device.info.torch_device
    batch = batch_of(case, where)
    layers = min(64, max(2, -(-LAYERS_BYTES // case.nbytes)))
    context = OneOp(device)
    bound = []
    for layer in range(layers):
        spec = case.spec(layer)
        handle = LayerKV(CANONICAL, spec.kv)
        handle.data = CANONICAL.alloc(case.pages + 1, spec.kv, device)
        handle.data.normal_()
        context.handles[layer] = handle
        bound.append(impl.build(spec, context))
    shape = (batch.num_tokens, case.heads, case.dim)
    q = torch.randn(shape, dtype=torch.bfloat16, device=where)
    for one in bound:
        if one.plan is not None:
            one.plan(batch)
    return replay_seconds([partial(one.run, q, batch) for one in bound], where, least=seconds)


def installed(plugins: Plugins, device: Device) -> dict[str, OpImpl]:
    """Implementations of attention that take the cases' shapes; says why others do not. One that
    can split sequences in several ways is tried in all of them."""
    found: dict[str, OpImpl] = {}
    for op, impl in plugins.op_impls(device):
        if op != "attention.paged":
            continue
        verdict = impl.supports(CASES[0].spec(0), device)
        name = short_name(impl.name)
        if isinstance(verdict, Reject):
            print(f"{name}: {verdict.reason}")
            continue
        found[name] = impl
        if any(item.name == "splits" for item in fields(impl)):
            found |= {f"{name}/{n}": replace(impl, splits=n) for n in (0, 1, 32)}
    return found


def variants(case: Case, device: Device) -> dict[str, OpImpl]:
    spec = case.spec(0)
    found: dict[str, OpImpl] = {"default": PagedAttention()}
    if case.queries == 1:
        base = decode_tiles(spec, device)
        for block, warps, stages, share in itertools.product(
            (32, 64, 128), (2, 4), (2, 3, 4), (2, 4)
        ):
            tiles = replace(base, block=block, warps=warps, stages=stages, share=share)
            found[f"b{block} w{warps} s{stages} x{share}"] = PagedAttention(decode=tiles)
    else:
        base = prefill_tiles(spec)
        for rows, block, warps, stages in itertools.product((64, 128), (64, 128), (4, 8), (2, 3)):
            tiles = Tiles(rows=rows, block=block, warps=warps, stages=stages, share=base.share)
            found[f"r{rows} b{block} w{warps} s{stages}"] = PagedAttention(prefill=tiles)
    return found


def show(case: Case, limit: float, rows: list[tuple[float, str]], tiles: bool) -> None:
    """One line: the limit, then the time and the fraction of it; of tiles the best four."""
    if tiles:
        rows = rows[:1] + sorted(rows[1:])[:4]
    shown = "  ".join(f"{name} {took * 1e6:.1f} {limit / took:.0%}" for took, name in rows)
    print(f"{case.name:<24}{limit * 1e6:>8.1f} us | {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--seconds", type=float, default=90, help="for all cases together")
    parser.add_argument("--tiles", action="store_true", help="the Triton kernel's tiles")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    plugins = Plugins()
    device, _ = open_device(plugins, args.device)
    where = device.info.torch_device
    bandwidth, rate = copy_bandwidth(where), product_rate(where)
    print(f"{device.info.name}: copy {bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.0f} TFLOP/s")
    others = {} if args.tiles else installed(plugins, device)
    chosen = [case for case in CASES if args.only in case.name]
    end = time.perf_counter() + args.seconds
    for index, case in enumerate(chosen):
        limit = max(case.nbytes / bandwidth, case.operations / rate)
        until = time.perf_counter() + (end - time.perf_counter()) / (len(chosen) - index)
        rows: list[tuple[float, str]] = []
        with torch.inference_mode():
            for name, impl in (variants(case, device) if args.tiles else others).items():
                if args.tiles and rows and time.perf_counter() > until:
                    break
                if "/" in name and case.queries > 1:
                    continue  # ways to split decode
                try:
                    rows.append((measure(case, impl, device, 0.02), name))
                except Exception as error:
                    print(f"  {case.name} {name}: {type(error).__name__}: {str(error)[:300]}")
        show(case, limit, rows, args.tiles)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps({"case": case.name, "limit": limit, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
