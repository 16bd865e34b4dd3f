"""Proves the kernels of Intel Extension for PyTorch in the xeon backend, in their own environment.

    python ci/suites/ipex.py

The library is end of life and works with torch 2.8 alone, so a virtual environment in ~/.cache
gets both (2.4 GB, of which 1 GB is downloaded once), inferplane and the xeon backend. The package
index has torch 2.8 for CUDA only: instead of 4 GB of CUDA libraries, its folder gets libraries of
the same names that have no device. Checked there: the conformance of each op, a small model against
our own kernels, and what `inferplane explain` says.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
TORCH = LIBRARY = "2.8.0"
PACKAGES = [f"torch=={TORCH}", f"intel-extension-for-pytorch=={LIBRARY}"]
CACHE = Path.home() / ".cache/inferplane/ipex"
LAZY = ("libcaffe2_nvrtc.so", "libtorch_cuda_linalg.so")
"""libraries of torch that are loaded when a device needs them"""
UNVERSIONED = {
    "libnccl.so.2": "nccl",
    "libcufile.so.0": "cuFile",
    "libcusparseLt.so.0": "cusparseLt",
}
"""CUDA libraries whose symbols carry no version, and how those begin"""
NO_DEVICE = 100
"""what every function of the stand-ins returns: cudaErrorNoDevice"""
OURS, THEIRS = [], ["linear=ipex.linear", "attention.paged=ipex.attention"]
LIMITS = {"float32": 1e-4, "bfloat16": 0.15}
"""largest difference of a logprob between our kernels and theirs; they are 5 to 20"""


def clean() -> dict[str, str]:
    """The environment, without the packages of whoever runs this."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def call(*command: object, text: str | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), input=text, env=clean(), text=True, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"exit status {done.returncode}: {' '.join(map(str, command))}")
    return done.stdout


def environment() -> Path:
    """A Python with torch, the library, and this checkout's inferplane and xeon backend."""
    python = CACHE / f"venv-{TORCH}/bin/python"
    pip = (python, "-m", "pip", "install", "-qq", "--disable-pip-version-check")
    with tempfile.TemporaryDirectory() as wheels, ThreadPoolExecutor() as pool:
        compiled = pool.submit(compile_backend, Path(wheels))  # while torch is downloaded
        if not (CACHE / "complete").exists():
            venv.create(python.parents[1], with_pip=True, clear=True)
            call(*pip, "--no-deps", *PACKAGES)
            (site,) = python.parents[1].glob("lib/python*/site-packages")
            stand_in(site / "torch/lib")
            forget_cuda(site / f"torch-{TORCH}.dist-info/METADATA")
            (CACHE / "complete").touch()
        call(*pip, REPO, "psutil")  # which the library is said to need
        call(*pip, "--no-deps", "--force-reinstall", *compiled.result())
    return python


def compile_backend(folder: Path) -> list[Path]:
    wheel = ("wheel", "-qq", "--disable-pip-version-check", "--no-deps", "-w", folder)
    call(sys.executable, "-m", "pip", *wheel, REPO / "backends/xeon")
    return list(folder.glob("*.whl"))


def forget_cuda(metadata: Path) -> None:
    """Or pip would install the CUDA packages with the next package that needs torch."""
    needs = re.compile(r"^Requires-Dist: (nvidia-|triton).*\n", re.MULTILINE)
    metadata.write_text(needs.sub("", metadata.read_text()))


def stand_in(folder: Path) -> None:
    """CUDA libraries without a device, which torch's own in `folder` find beside them."""
    needed: set[str] = set()
    symbols: set[str] = set()
    for library in folder.glob("lib*.so*"):
        if library.name not in LAZY:
            needed |= set(re.findall(r"NEEDED.*\[(.*)\]", call("readelf", "-dW", library)))
            undefined = call("nm", "-D", "--undefined-only", library)
            symbols |= {line.split()[-1] for line in undefined.splitlines()}
    for name in sorted(needed):
        if name.startswith(("libcu", "libnccl")):
            prefix = UNVERSIONED.get(name)
            versioned = {s.partition("@")[0] for s in symbols if s.endswith(f"@{name}")}
            plain = {s for s in symbols if prefix and s.startswith(prefix)}
            compile_library(folder / name, versioned | plain, bool(versioned))


def compile_library(path: Path, functions: set[str], versioned: bool) -> None:
    lines = [f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in sorted(functions)]
    text = "\n".join(lines).replace(
        f"int cudaGetErrorString(void) {{ return {NO_DEVICE}; }}",
        'const char* cudaGetErrorString(int code) { return "no device: a stand-in library"; }',
    )
    command: list[object] = ["gcc", "-shared", "-fPIC", "-w", "-x", "c", "-", "-o", path]
    command.append(f"-Wl,-soname,{path.name}")
    with tempfile.NamedTemporaryFile("w", suffix=".map") as versions:
        versions.write(f"{path.name} {{ global: *; }};\n")
        versions.flush()
        if versioned:
            command.append(f"-Wl,--version-script={versions.name}")
        call(*command, text=text)


# ---- in that environment ----


def conformance() -> None:
    """Every case of the contract that the kernels say they serve."""
    from inferplane.hw import DeviceInfo, Support
    from inferplane.testing.ops import check_op, conformance_cases
    from inferplane_xeon import ipex, plugin

    info = DeviceInfo(backend="xeon", torch_device="cpu", name="this", arch="avx2")
    device = plugin.create_device(info, {})
    for op, impl in ipex.implementations():
        served = 0
        for spec in conformance_cases(op):
            if op == "attention.paged":
                spec = replace(spec, kv=replace(spec.kv, layout="head_major"))
            verdict = check_op(device, op, impl, spec, seed=0, layout=plugin.HEAD_MAJOR)
            served += isinstance(verdict, Support)
        print(f"{impl.name}: {served} cases conform", flush=True)
        if served < 10:
            raise SystemExit(f"{impl.name} serves {served} cases only")


def write_model(folder: Path) -> str:
    from safetensors.torch import save_file

    from inferplane.testing.tiny import TinySource
    from tests.core.server.byte_model import byte_tokenizer

    made = TinySource("wide")
    (folder / "config.json").write_text(json.dumps(made.config))
    (folder / "tokenizer.json").write_text(byte_tokenizer()._backend.to_str())
    save_file(dict(made.tensors()), folder / "model.safetensors")
    return str(folder)


Scored = list[tuple[int, float]]


def logprobs(model: str, dtype: str, op: list[str]) -> list[Scored]:
    """(token, logprob) of long and short prompts, computed in one batch, and of what follows."""
    from inferplane.offline import Engine

    prompts = [[(7 * i + n) % 250 + 1 for i in range(n)] for n in (3, 40, 150)]
    eager: dict[str, Any] = {"disable_graphs": True, "kv_cache_tokens": 4096}
    params = {"max_tokens": 12, "temperature": 0.0, "logprobs": 0, "prompt_logprobs": 0}
    with Engine(model, device="xeon", dtype=dtype, op=op, **eager) as engine:
        done = engine.generate(prompts, params | {"ignore_eos": True})
    scored = [[*(each.prompt_logprobs or ()), *each.logprobs] for each in done]
    return [[(t.token, t.logprob) for t in tokens if t is not None] for tokens in scored]


def differences(ours: Scored, theirs: Scored) -> Iterator[float]:
    """Up to and with the first token that they chose differently."""
    for (token, logprob), (other, its) in zip(ours, theirs, strict=True):
        yield abs(logprob - its)
        if token != other:
            break


def small_model(model: str) -> None:
    for dtype, limit in LIMITS.items():
        ours, theirs = (logprobs(model, dtype, op) for op in (OURS, THEIRS))
        found = [d for a, b in zip(ours, theirs, strict=True) for d in differences(a, b)]
        most = max(found)
        print(f"small model, {dtype}: {len(found)} logprobs, largest difference {most:.2g}")
        if not 0 < most <= limit:
            raise SystemExit(f"the largest difference must be above 0 and at most {limit}")


def explained(model: str) -> None:
    from inferplane.cli.main import main

    def lines(*words: str) -> str:
        import contextlib
        import io

        with contextlib.redirect_stdout(io.StringIO()) as text:
            if main(["explain", model, "--device", "xeon", *words]):
                raise SystemExit("explain failed")
        return text.getvalue()

    plain, chosen = (
        lines("--disable-graphs"),
        lines("--op", "linear=ipex.linear", "--disable-graphs"),
    )
    recorded = lines()
    wanted = [
        (recorded, "not ipex.linear: rejected[capture]: cannot be recorded; --disable-graphs"),
        (plain, "not ipex.linear: passed over: priority 40, xeon.linear has 80"),
        (plain, "not ipex.attention: passed over: priority 40, xeon.attention has 80"),
        (chosen, "ipex.linear  Intel Extension for PyTorch, which is end of life"),
    ]
    for text, line in wanted:
        if line not in text:
            raise SystemExit(f"explain does not say {line!r}:\n{text}")
    print(f"explain: {len(wanted)} lines as they should be")


def inside() -> None:
    sys.path.insert(0, str(REPO))  # for the tests' tokenizer
    conformance()
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        small_model(model)
        explained(model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    if parser.parse_args().inside:
        inside()
        return 0
    done: Any = subprocess.run([environment(), __file__, "--inside"], env=clean())
    return int(done.returncode)


if __name__ == "__main__":
    sys.exit(main())
