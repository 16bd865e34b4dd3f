"""Every op of a decode step on the CPU backend, at the sizes of whole models.

    python -m ci.bench.cpu.ops --model smollm2 --rows 1,8,32

Linear and logits in each scheme, attention over cached tokens, norm, rope with the write of keys
and values, gated activation, sampling. A step with `rows` sequences has so many rows in each. For
each op: the median time of a call, bytes and operations a second, and what part of the ceiling that
is: the larger of its bytes over the bandwidth and its operations over the peak, divided by its
time. Ceilings are measured in the same run (ci/bench/cpu/peer/ceilings.py), the bandwidth again for
each number of rows.

Weights, keys and values are read from memory: calls walk through copies that exceed the cache.
What norms, activations and sampling read was just written in a model, and is in the cache here, so
that they can exceed the memory's bandwidth.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ci.bench.cpu import linears
from ci.bench.cpu.linears import Case
from ci.bench.cpu.peer.ceilings import product_rates, read_rate
from ci.bench.cpu.peer.limits import Ceiling
from ci.bench.gpu.models import SHAPES
from ci.bench.machine import append, describe
from torch import Tensor

from inferplane.hw import LayerKV
from inferplane.hw.kv import KVSpec
from inferplane.hw.ops.activation import GluSpec
from inferplane.hw.ops.attention import AttentionSpec
from inferplane.hw.ops.attention_inputs import paged_batch
from inferplane.hw.ops.kv import RopeWriteSpec
from inferplane.hw.ops.norm import RMSNormSpec
from inferplane.hw.ops.rope import RopeSpec
from inferplane.hw.ops.sampling import SamplingSpec
from inferplane.plugins import Plugins, open_device
from inferplane.testing.op_run import OneOp
from inferplane_xeon import kernels
from inferplane_xeon.ops import implementations
from inferplane_xeon.plugin import HEAD_MAJOR

MODELS = {"smollm2": "smollm2-135m", "qwen3-0.6b": "qwen3-0.6b"}
SCHEMES = ("bf16", "w8a8", "w8a8-g32", "w4a8-g32", "w4a8-g32-offset", "w4a8-g128")
PAGE = 16
MOST_LAYERS = 512
BF16 = "bfloat16"


@dataclass
class Op:
    """`moved`: bytes; `peak`: which peak its operations are held against."""

    case: Case
    moved: int
    operations: int
    peak: str = "bf16"

    def part(self, ceiling: Ceiling) -> float:
        rate = ceiling.int8 if self.peak == "int8" else ceiling.bf16
        limit = max(self.moved / ceiling.read, self.operations / rate)
        return limit / statistics.median(self.case.times)


class Deck:
    """The ops of a model's decode step for a number of sequences."""

    def __init__(self, model: str, rows: int) -> None:
        shape = SHAPES[MODELS[model]]
        self.model, self.rows = model, rows
        self.hidden, self.vocab = shape["hidden_size"], shape["vocab_size"]
        self.inner, self.heads = shape["intermediate_size"], shape["num_attention_heads"]
        dim = shape.get("head_dim") or self.hidden // self.heads
        self.kv = KVSpec(
            num_kv_heads=shape["num_key_value_heads"], head_dim=dim, dtype=BF16, page_size=PAGE
        )
        self.normed = shape["model_type"] == "qwen3"
        self.device, _ = open_device(Plugins(), "xeon")
        self.context = OneOp(self.device)
        self.found = dict(implementations())

    def ops(self, contexts: list[int], schemes: list[str]) -> Iterator[Op]:
        for inputs, outputs in linears.MODELS[self.model]:
            for scheme in schemes:
                yield self.linear(scheme, inputs, outputs)
        for context in contexts:
            yield self.attention(context)
        yield self.norm()
        yield self.rope()
        yield self.glu()
        yield self.draw("greedy", 0.0)
        yield self.draw("sampled", 0.8)

    def run(self, op: str, spec: Any) -> Callable[..., Any]:
        return self.found[op].build(spec, self.context).run

    def warm(self, name: str, call: Callable[[], Any], moved: int, operations: int = 0) -> Op:
        """An op whose inputs are in the cache."""
        return Op(Case(name, lambda i: call(), moved, 1, []), moved, operations)

    def linear(self, scheme: str, inputs: int, outputs: int) -> Op:
        kind = torch.float32 if outputs == self.vocab else torch.bfloat16
        x, out = self.random(inputs), torch.empty(self.rows, outputs, dtype=kind)
        case = linears.case(scheme, inputs, outputs, x, out)
        moved = case.nbytes + linears.size(x) + linears.size(out)
        what = "logits" if outputs == self.vocab else "linear"
        case.name = f"{what} {inputs}x{outputs} {scheme}"
        peak = "bf16" if scheme == "bf16" else "int8"
        return Op(case, moved, 2 * self.rows * inputs * outputs, peak)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(self.rows, *shape).bfloat16()

    def layers(self, pages: int) -> int:
        """Give the context handles of layers, more than the cache holds; how many."""
        count = linears.BEYOND_CACHE // (HEAD_MAJOR.page_bytes(self.kv) * pages) + 1
        for layer in range(min(count, MOST_LAYERS)):
            data = HEAD_MAJOR.alloc(pages, self.kv, self.device).fill_(0.25)
            self.context.handles[layer] = LayerKV(HEAD_MAJOR, self.kv, data)
        return min(count, MOST_LAYERS)

    def attention(self, cached: int) -> Op:
        dim = self.kv.head_dim
        plain = AttentionSpec(
            layer=0, group=0, num_heads=self.heads, kv=self.kv, dtype=BF16, scale=dim**-0.5
        )
        lengths = [(1, cached)] * self.rows
        narrow = KVSpec(num_kv_heads=1, head_dim=1, dtype=BF16, page_size=PAGE)
        spec = AttentionSpec(layer=0, group=0, num_heads=1, kv=narrow, dtype=BF16, scale=1.0)
        batch, pages = paged_batch(lengths, spec, torch.Generator().manual_seed(0))
        count, q = self.layers(pages.shape[1]), self.random(self.heads, dim)
        runs = [self.run("attention.paged", replace(plain, layer=layer)) for layer in range(count)]
        moved = 4 * self.rows * cached * self.kv.num_kv_heads * dim
        case = Case(f"attention {cached}", lambda i: runs[i](q, batch), moved, count, [])
        return Op(case, moved, 4 * self.rows * cached * self.heads * dim)

    def rope(self) -> Op:
        dim, kv = self.kv.head_dim, self.kv.num_kv_heads
        turn = RopeSpec(head_dim=dim, rotary_dim=dim, max_position=8192, theta=1e5, dtype=BF16)
        norm = RMSNormSpec(dim=dim, dtype=BF16, epsilon=1e-6) if self.normed else None
        spec = RopeWriteSpec(layer=0, num_heads=self.heads, kv=self.kv, rope=turn, norm=norm)
        self.layers(self.rows + 1)
        run = self.run("qk_norm_rope_kvwrite", spec)
        fused = self.random(self.heads + 2 * kv, dim)
        q, k, v = fused.split([self.heads, kv, kv], dim=1)
        position = torch.full((self.rows,), 300, dtype=torch.int32)
        slot = torch.arange(self.rows, dtype=torch.int32) * PAGE + PAGE
        weights = [torch.ones(dim).bfloat16()] * 2 if self.normed else []
        moved = 2 * linears.size(fused)
        return self.warm("rope and write", lambda: run(q, k, v, position, slot, *weights), moved)

    def norm(self) -> Op:
        run = self.run("norm.add_rms", RMSNormSpec(dim=self.hidden, dtype=BF16, epsilon=1e-5))
        x, residual = self.random(self.hidden), self.random(self.hidden)
        ones = torch.ones(self.hidden).bfloat16()
        return self.warm("add and norm", lambda: run(x, residual, ones), 4 * linears.size(x))

    def glu(self) -> Op:
        run = self.run("activation.glu", GluSpec(size=self.inner, dtype=BF16))
        x = self.random(2 * self.inner)
        return self.warm("glu", lambda: run(x), 3 * linears.size(x) // 2)

    def draw(self, name: str, temperature: float) -> Op:
        run = self.run("sampling.draw", SamplingSpec(vocab=self.vocab))
        rows, greedy = self.rows, temperature == 0.0
        logits, ones = torch.randn(rows, self.vocab), torch.ones(rows)
        none, seed = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, 2, dtype=torch.int32)
        top_p = ones if greedy else ones * 0.9
        given = (logits, ones * temperature, none, top_p, ones * 0.0, seed, none, none)

        def call() -> Any:
            return run(*given, greedy=greedy, unfiltered=greedy)

        return self.warm(f"draw {name}", call, linears.size(logits))


def report(op: Op, asked: argparse.Namespace, rows: int, ceiling: Ceiling, machine: Any) -> None:
    median = statistics.median(op.case.times)
    figures = {
        "us": round(median * 1e6, 1),
        "gb_s": round(op.moved / median / 1e9, 2),
        "gop_s": round(op.operations / median / 1e9, 1),
        "of_ceiling": round(op.part(ceiling), 3),
    }
    print(f"  {op.case.name:34}", "  ".join(f"{k} {v:>9}" for k, v in figures.items()), flush=True)
    if asked.json:
        record = {"benchmark": "ops", "model": asked.model, "op": op.case.name, "rows": rows}
        append(asked.json, record | figures | {"machine": machine})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--rows", default="1,2,4,8,16,32", help="numbers of rows, with commas")
    parser.add_argument("--contexts", default="256,1024,4096", help="cached tokens, with commas")
    parser.add_argument("--schemes", default=",".join(SCHEMES), help="names, with commas")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each op")
    parser.add_argument("--json", type=Path, help="append a JSON line for each op")
    asked = parser.parse_args()
    library = kernels.library()
    bf16, int8 = product_rates()
    machine = describe() | {"threads": library.threads(), "kernels": library.isa()}
    print(json.dumps(machine))
    contexts = [int(text) for text in asked.contexts.split(",")]
    for rows in map(int, asked.rows.split(",")):
        ceiling = Ceiling(read=read_rate(), bf16=bf16, int8=int8)
        told = {name: round(value / 1e9, 1) for name, value in asdict(ceiling).items()}
        print(f"\n{asked.model}, {rows} rows; ceilings, G/s: {told}")
        for op in Deck(asked.model, rows).ops(contexts, asked.schemes.split(",")):
            with torch.inference_mode():
                linears.measure([op.case], asked.seconds)
            report(op, asked, rows, ceiling, machine | {"ceilings": told})


if __name__ == "__main__":
    main()
