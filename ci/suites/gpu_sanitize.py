"""The accelerator's kernels under NVIDIA's compute-sanitizer.

    python ci/suites/gpu_sanitize.py                        every op, memcheck
    python ci/suites/gpu_sanitize.py --tool racecheck --only attention.paged

Each op's conformance cases, some of each kind, in a process of its own; then a tiny model with
recorded and with eager steps. Outside recordings every tensor is its own allocation, so that one
element too far is a finding. `control-*` are kernels with one fault of each kind: a sanitizer that
does not find it proves nothing. Exit status 1: a finding, a failed case or a blind sanitizer.

compute-sanitizer comes with the CUDA toolkit; it is looked for in PATH and below /usr/local.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("memcheck", "racecheck", "initcheck")
CONTROLS = {"memcheck": "past_the_end", "racecheck": "race", "initcheck": "uninitialized"}
MODELS = ("model-recorded", "model-eager")
FINDING = 9
"""exit status of the sanitizer when it found something"""
SECONDS = 300
SUMMARY = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")


@dataclass(frozen=True)
class Done:
    """What became of one process."""

    tool: str
    name: str
    status: int
    findings: int
    seconds: float
    log: str

    @property
    def wrong(self) -> str:
        if self.name.startswith("control-"):
            return "" if self.findings else "the fault of the control was not found"
        if self.findings or self.status == FINDING:
            return f"{self.findings} findings"
        return f"exit status {self.status}" if self.status else ""


def sanitizer() -> str:
    """Its path, or "" where there is none."""
    found = shutil.which("compute-sanitizer")
    if found:
        return found
    places = [
        *Path("/usr/local").glob("cuda*/bin/compute-sanitizer"),
        *Path("/usr/local").glob("cuda*/compute-sanitizer/compute-sanitizer"),
        *Path("/usr/local").glob("cuda*/extras/compute-sanitizer/compute-sanitizer"),
    ]
    return str(places[0]) if places else ""


def run(path: str, tool: str, name: str, cases: int, logs: Path) -> Done:
    command = [path, "--tool", tool, "--error-exitcode", str(FINDING), "--print-limit", "20"]
    command += ["--target-processes", "all", sys.executable, __file__, "--worker", name]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if name != "model-recorded":  # recordings have a memory pool
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    log = logs / f"{tool}-{name}.log"
    begun = time.monotonic()
    with open(log, "w") as out:
        try:
            status = subprocess.run(
                [*command, "--cases", str(cases), "--tool", tool],
                cwd=ROOT,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=SECONDS,
            ).returncode
        except subprocess.TimeoutExpired:
            status = 124
    text = log.read_text()
    found = sum(int(a or b) for a, b in SUMMARY.findall(text))
    return Done(tool, name, status, found, time.monotonic() - begun, text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the accelerator's kernels under a sanitizer")
    parser.add_argument("--tool", choices=TOOLS, action="append", help="default: memcheck")
    parser.add_argument("--only", action="append", help="an op, model-recorded, control-race, ...")
    parser.add_argument("--cases", type=int, default=3, help="specs of each op and type")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--logs", type=Path, help="folder for the logs of all processes")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    sys.path[:0] = [str(ROOT)]
    if options.worker:
        from ci.suites import gpu_sanitize_work

        (tool,) = options.tool
        return gpu_sanitize_work.work(options.worker, options.cases, tool)
    path = sanitizer()
    if not path:
        print("no compute-sanitizer: install the CUDA toolkit, or add it to PATH", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        return check(path, options, options.logs or Path(scratch))


def check(path: str, options: argparse.Namespace, logs: Path) -> int:
    from inferplane.hw.ops import TABLE

    logs.mkdir(parents=True, exist_ok=True)
    tools = options.tool or ["memcheck"]
    jobs = [
        (tool, name)
        for tool in tools
        for name in (f"control-{CONTROLS[tool]}", *MODELS, *TABLE)
        if not options.only or name in options.only
    ]
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [pool.submit(run, path, *job, options.cases, logs) for job in jobs]
        done = [task.result() for task in running]
    for one in done:
        said = [line for line in one.log.splitlines() if line.startswith("worker: ")]
        told = one.wrong or (f"{one.findings} findings, as it must" if one.findings else "clean")
        print(f"{one.tool:<10} {one.name:<24} {one.seconds:4.0f} s  {told}  {' '.join(said)[8:]}")
    wrong = [one for one in done if one.wrong]
    for one in wrong:
        lines = one.log.splitlines()
        found = [i for i, line in enumerate(lines) if "=========" in line and "COMPUTE" not in line]
        begin = found[0] if found and one.findings else max(0, len(lines) - 30)
        print(f"---- {one.tool} {one.name}", *lines[begin : begin + 30], sep="\n")
    print(f"{len(done)} processes, {len(wrong)} with findings or failures")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
