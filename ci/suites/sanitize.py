"""The C++ kernels and their threads under AddressSanitizer, UndefinedBehaviorSanitizer and
ThreadSanitizer, as programs of their own without Python.

    python ci/suites/sanitize.py                 what CI runs: the same shapes every time
    python ci/suites/sanitize.py --cases 1000    many more shapes
    python ci/suites/sanitize.py --only threads  one of the programs below

Every kernel of each instruction set that this processor runs, over random shapes, in buffers of
exact size; the thread team with many jobs, sizes and callers; and the kernels on that team. Needs
g++ or another compiler in CXX. Exit status 1: a sanitizer or a program found a fault.
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
BACKEND = ROOT / "backends/xeon"
PROGRAMS = ROOT / "tests/backends/xeon/native"
SHORT = 12
"""cases of each kernel that CI runs"""
FLAGS = (
    "-std=c++17 -O1 -g1 -fno-omit-frame-pointer -Wall -Wextra -Wno-uninitialized "
    "-Wno-maybe-uninitialized -fno-strict-aliasing -ffp-contract=off -fno-math-errno -pthread"
).split()
MEMORY = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
THREAD = ("-fsanitize=thread",)
OPTIONS = {
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@dataclass(frozen=True)
class Unit:
    """A source file with the flags of one object."""

    source: Path
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    units: tuple[Unit, ...]
    sanitizers: tuple[str, ...]
    per_case: int
    """the program's argument is so many times the number of cases"""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Name -> compiler flags, as CMakeLists.txt has them."""
    text = (BACKEND / "CMakeLists.txt").read_text()
    found = re.findall(r"^kernel_table\((\w+)([^)]*)\)", text, re.MULTILINE)
    return {name: tuple(flags.split()) for name, flags in found}


def emulated_tiles() -> Unit:
    """The kernels on matrix tiles, without their instructions."""
    flags = (*instruction_sets()["avx512_bf16"], "-DIPX_TILES", "-DIPX_EMULATE_TILES")
    return Unit(BACKEND / "csrc/tiles.cpp", (*flags, "-DIPX_ISA=amx_emulated"))


def programs() -> dict[str, Program]:
    def tables(*names: str) -> tuple[Unit, ...]:
        sets = instruction_sets()
        source = BACKEND / "csrc/isa.cpp"
        return tuple(Unit(source, (*sets[name], f"-DIPX_ISA={name}")) for name in names)

    threads = Unit(BACKEND / "csrc/threads.cpp")
    pool, kernels = Unit(PROGRAMS / "pool.cpp"), Unit(PROGRAMS / "kernels.cpp")
    with_pool = Unit(PROGRAMS / "kernels.cpp", ("-DIPX_WITH_POOL",))
    return {
        "kernels": Program((*tables(*instruction_sets()), emulated_tiles(), kernels), MEMORY, 1),
        "pool": Program((pool, threads), MEMORY, 60),
        "threads": Program((pool, threads), THREAD, 60),
        "kernels-on-threads": Program((*tables("avx2"), with_pool, threads), THREAD, 1),
    }


def compile_unit(compiler: str, unit: Unit, sanitizers: tuple[str, ...], to: Path) -> str:
    """What the compiler said, if it failed."""
    include = f"-I{BACKEND / 'csrc'}"
    command = [compiler, *FLAGS, *sanitizers, include, *unit.flags, "-c", unit.source, "-o", to]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr if done.returncode else ""


def build(compiler: str, wanted: dict[str, Program], folder: Path, jobs: int) -> list[str]:
    """Compile and link every program into `folder`; the compiler's complaints."""
    with ThreadPoolExecutor(jobs) as pool:
        running = [
            pool.submit(compile_unit, compiler, unit, made.sanitizers, folder / f"{name}-{i}.o")
            for name, made in wanted.items()
            for i, unit in enumerate(made.units)
        ]
        faults = [text for task in running if (text := task.result())]
    for name, made in wanted.items() if not faults else ():
        objects = [folder / f"{name}-{i}.o" for i in range(len(made.units))]
        link = [compiler, *made.sanitizers, "-pthread", *objects, "-o", folder / name]
        done = subprocess.run(link, capture_output=True, text=True)
        faults += [done.stderr] if done.returncode else []
    return faults


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="the C++ kernels under sanitizers")
    parser.add_argument("--cases", type=int, default=SHORT, help=f"of each kernel ({SHORT})")
    parser.add_argument("--only", choices=programs(), action="append")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        print("no C++ compiler: install g++, or name one in CXX", file=sys.stderr)
        return 1
    wanted = {n: p for n, p in programs().items() if n in (options.only or programs())}
    with tempfile.TemporaryDirectory() as name:
        folder, begun = Path(name), time.monotonic()
        faults = build(compiler, wanted, folder, options.jobs)
        print(f"built in {time.monotonic() - begun:.0f} s", *faults, sep="\n", flush=True)
        for program, made in wanted.items() if not faults else ():
            begun = time.monotonic()
            count = str(options.cases * made.per_case)
            done = subprocess.run([folder / program, count], env=os.environ | OPTIONS)
            print(
                f"{program}: exit {done.returncode}, {time.monotonic() - begun:.0f} s", flush=True
            )
            faults += [program] if done.returncode else []
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
