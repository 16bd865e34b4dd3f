"""One process of gpu_sanitize.py: what the sanitizer watches."""

import random
import traceback
from typing import Any

from inferplane.hw import Device, Reject
from inferplane.plugins import BACKENDS, Plugins, open_device
from inferplane.testing.op_cases import conformance_cases
from inferplane.testing.ops import check_op

DTYPES = ("bfloat16", "float16", "float32")
UNSEEN = {"initcheck": ("cuda.cublaslt",)}
"""implementations that are left out: the tool does not see the stores of their library's kernels,
and finds a fault where their results are read"""


def accelerator(plugins: Plugins) -> Device:
    for loaded in plugins.load_all(BACKENDS):
        accelerates = loaded.info is not None and loaded.info.is_accelerator
        if accelerates and plugins.probe(loaded).devices:
            return open_device(plugins, loaded.name)[0]
    raise SystemExit("no accelerator")


def work(name: str, cases: int, tool: str) -> int:
    """Exit status."""
    if name.startswith("control-"):
        from ci.suites import gpu_sanitize_controls

        gpu_sanitize_controls.run(name.removeprefix("control-"))
        return 0
    if name.startswith("model-"):
        return model(recorded=name == "model-recorded")
    return op(name, cases, UNSEEN.get(tool, ()))


def op(name: str, cases: int, without: tuple[str, ...]) -> int:
    """A few specs of each type and strength for each implementation, against the oracle."""
    plugins = Plugins()
    device = accelerator(plugins)
    impls = [impl for known, impl in plugins.op_impls(device) if known == name]
    impls = [impl for impl in impls if impl.name not in without]
    checked = failed = 0
    for impl in impls:
        for dtype in DTYPES:
            served = [
                (seed, spec)
                for seed, spec in enumerate(conformance_cases(name, (dtype,)))
                if not isinstance(impl.supports(spec, device), Reject)
            ]
            for seed, spec in random.Random(0).sample(served, min(cases, len(served))):
                try:
                    check_op(device, name, impl, spec, seed=seed)
                    checked += 1
                except Exception:
                    failed += 1
                    print(f"{impl.name} {spec}")
                    traceback.print_exc()
    print(f"worker: {checked} specs of {len(impls)} implementations, {failed} failed")
    return 1 if failed else 0


def model(recorded: bool) -> int:
    from inferplane.testing.workload import requests, serve, tiny_engine

    plugins = Plugins()
    backend = accelerator(plugins).info.backend
    tokens = 0
    for name, dtype in (("llama", "bfloat16"), ("gemma3", "float32")):
        settings: dict[str, Any] = {"dtype": dtype, "disable_graphs": not recorded}
        core = tiny_engine(name, Plugins(), backend, **settings)
        answers, stats = serve(core, requests()[:8])
        tokens += sum(len(answer.tokens) for answer in answers.values())
        if stats.failed:
            return 1
    print(f"worker: {tokens} tokens")
    return 0
