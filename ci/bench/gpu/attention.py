"""Paged attention alone, at the shapes of whole models, with several tiles:
python ci/bench/gpu/attention.py --seconds 60

Each call is a layer of its own, so that keys and values come from memory and not from a cache; all
layers are recorded and replayed at once. Decode is compared with the copy bandwidth (keys and
values once), prefill with the rate of a large matrix product (4 D Hq operations a visible pair).
"""

import argparse
import itertools
import json
import random
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ceilings import copy_bandwidth, product_rate

from inferplane.hw import CANONICAL, Device, ForwardBatch, LayerKV
from inferplane.hw.kv import KVSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.plugins import Plugins, open_device
from inferplane.testing.op_run import OneOp
from inferplane_triton.attention import PagedAttention, Tiles, decode_tiles, prefill_tiles

LAYERS_BYTES = 2**28
"""keys and values of all layers of a case together, at least; the H100's L2 holds 50 MB"""


@dataclass(frozen=True, slots=True)
class Case:
    """`queries` of each of `seqs` sequences that are `context` long with them."""

    name: str
    heads: int
    kv_heads: int
    seqs: int
    queries: int
    context: int
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
    def nbytes(self) -> int:
        return 4 * self.seqs * self.context * self.kv_heads * self.dim

    @property
    def operations(self) -> int:
        past = self.context - self.queries
        pairs = self.queries * past + self.queries * (self.queries + 1) // 2
        return 4 * self.dim * self.heads * self.seqs * pairs


CASES = (
    *(Case(f"8b/decode/{n}x1k", 32, 8, n, 1, 1024) for n in (1, 8, 32, 64, 256)),
    Case("8b/decode/1x32k", 32, 8, 1, 1, 32768),
    Case("8b/decode/8x8k", 32, 8, 8, 1, 8192),
    *(Case(f"0.6b/decode/{n}x1k", 16, 8, n, 1, 1024) for n in (1, 8, 64)),
    Case("8b/prefill/8x1k", 32, 8, 8, 1024, 1024),
    Case("8b/prefill/1x1k", 32, 8, 1, 1024, 1024),
    Case("8b/prefill/1x256", 32, 8, 1, 256, 256),
    Case("8b/prefill/1x8k", 32, 8, 1, 8192, 8192),
    Case("8b/chunk/1k-of-16k", 32, 8, 1, 1024, 16384),
)


def batch_of(case: Case, device: str) -> ForwardBatch:
    """Pages in a random order, as a cache in use has them."""
    columns = -(-case.context // case.page)
    pages = list(range(1, case.seqs * columns + 1))
    random.Random(0).shuffle(pages)

    def ints(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    tokens = case.seqs * case.queries
    starts = list(range(0, tokens + 1, case.queries))
    zeros = torch.zeros(tokens, dtype=torch.int32, device=device)
    return ForwardBatch(
        num_tokens=tokens,
        num_seqs=case.seqs,
        num_decode=case.seqs if case.queries == 1 else 0,
        num_verify=0,
        token_ids=zeros,
        position=zeros,
        slot=(zeros,),
        row=zeros[: case.seqs],
        q_start=ints(starts),
        seq_len=ints([case.context] * case.seqs),
        page_table=(ints(pages).view(case.seqs, columns),),
        logit_index=zeros,
        host_q_start=starts,
        host_seq_len=[case.context] * case.seqs,
        host_exact=True,
        max_q=case.queries,
        max_kv=case.context,
    )


def measure(case: Case, impl: PagedAttention, device: Device, seconds: float) -> float:
    """Seconds of one layer."""
    where = device.info.torch_device
    batch = batch_of(case, where)
    layers = min(64, max(4, -(-LAYERS_BYTES // case.nbytes)))
    context = OneOp(device)
    bound = []
    for layer in range(layers):
        spec = case.spec(layer)
        handle = LayerKV(CANONICAL, spec.kv)
        handle.data = CANONICAL.alloc(
            case.seqs * -(-case.context // case.page) + 1, spec.kv, device
        )
        handle.data.normal_()
        context.handles[layer] = handle
        bound.append(impl.build(spec, context).run)
    shape = (case.seqs * case.queries, case.heads, case.dim)
    q = torch.randn(shape, dtype=torch.bfloat16, device=where)
    for run in bound[:2]:
        run(q, batch)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in bound:
            run(q, batch)
    graph.replay()
    torch.cuda.synchronize()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / layers)
    return statistics.median(times)


def variants(case: Case, device: Device) -> dict[str, PagedAttention]:
    spec = case.spec(0)
    found = {"default": PagedAttention()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    parser.add_argument("--seconds", type=float, default=90, help="for all cases together")
    parser.add_argument("--default-tiles", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    device, _ = open_device(Plugins(), args.device)
    where = device.info.torch_device
    bandwidth, rate = copy_bandwidth(where), product_rate(where)
    print(f"{device.info.name}: copy {bandwidth / 1e12:.2f} TB/s, {rate / 1e12:.0f} TFLOP/s")
    chosen = [case for case in CASES if args.only in case.name]
    end = time.perf_counter() + args.seconds
    for index, case in enumerate(chosen):
        limit = max(case.nbytes / bandwidth, case.operations / rate)
        until = time.perf_counter() + (end - time.perf_counter()) / (len(chosen) - index)
        rows = []
        with torch.inference_mode():
            for name, impl in variants(case, device).items():
                if name != "default" and (args.default_tiles or time.perf_counter() > until):
                    break
                try:
                    rows.append((measure(case, impl, device, 0.02), name))
                except Exception as error:
                    print(f"  {case.name} {name}: {type(error).__name__}: {str(error)[:150]}")
        default, best = rows[0][0], sorted(rows)[:4]
        shown = ", ".join(f"{name} {took * 1e6:.1f}" for took, name in best)
        of = f"{limit / default:>5.0%} of the limit"
        print(f"{case.name:<20}{default * 1e6:>9.1f} us {of}; {shown}", flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps({"case": case.name, "limit": limit, "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
