"""The torch ops of one recorded decode step that core issues itself, each a kernel on a device
that launches one after the other: `python ci/bench/step_ops.py`. Runs on the CPU, by reference.

The forward pass is the model's ops, of which packs have kernels of their own; so is the argmax of
`greedy`. `batch` is the reference of batch.derive; a kernel for it is one launch for each group of
layers."""

import argparse
from dataclasses import replace

import torch

from inferplane.plugins import Plugins
from inferplane.testing.null import SETTINGS, NullBackend
from inferplane.testing.recording import Entry
from inferplane.testing.workload import requests, serve, tiny_engine

PARTS = ("batch", "forward", "greedy")
"""what is recorded of a bucket first; other kinds of sampling differ in the draw alone"""


def shapes(values: object) -> str:
    flat = torch.utils._pytree.tree_leaves(values)
    found = [f"{tuple(t.shape)}" for t in flat if isinstance(t, torch.Tensor)]
    return " ".join(found)


def show(part: str, entries: list[Entry]) -> None:
    print(f"{part}: {len(entries)} ops")
    for entry in entries:
        name = str(entry.op).removeprefix("aten.")
        print(f"  {name:<24} {shapes((entry.args, entry.kwargs))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llama", choices=["llama", "gemma3"])
    parser.add_argument("--forward", action="store_true", help="list the model's ops, too")
    asked = parser.parse_args()
    backend = NullBackend(replace(SETTINGS["bucketed-recorded"], buckets=(8,)))
    plugins = Plugins()
    plugins.register("null", backend)
    engine = tiny_engine(asked.model, plugins, "null", max_running=8)
    serve(engine, requests()[:2])
    for part, tape in zip(PARTS, backend.recorder.tapes, strict=False):
        if part == "forward" and not asked.forward:
            print(f"{part}: {len(tape.entries)} ops by reference")
            continue
        show(part, tape.entries)


if __name__ == "__main__":
    main()
