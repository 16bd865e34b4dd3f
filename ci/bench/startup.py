"""From the start of `inferplane serve` to the first token, and the memory of its two processes.

    python -m ci.bench.startup smollm2

Memory is the proportional set size (PSS) after the first answer: pages that both processes map
count once, among them files such as torch's libraries and the checkpoint. `anonymous` is the part
that is no file. It is taken of a run with a KV cache so small that it cannot blur the figure; that
cache and the weights are subtracted. The PSS of the run with the default cache is printed too.
"""

import argparse
import json
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ci.bench.machine import INFERPLANE, append, describe

PROMPT = "The sea is"
SMALL = ["--kv-cache-tokens", "1024"]
DEADLINE = 300
POLL = 0.02


def first_token(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Ask for one token until the server gives it."""
    body = json.dumps({"prompt": PROMPT, "max_tokens": 1, "temperature": 0}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}")
        try:
            with urllib.request.urlopen(request) as answer:
                answer.read()
            return
        except urllib.error.URLError:  # not listening yet, or 503 while it loads
            time.sleep(POLL)
    raise SystemExit(f"no token after {DEADLINE} s")


def children(pid: int) -> list[int]:
    """Child processes, and theirs."""
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *children(child)]
    return found


def memory(pid: int) -> dict[str, int]:
    """Bytes of one process."""
    facts = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, value = line.split(":")
        facts[key] = int(value.split()[0]) * 1024
    return {"rss": facts["Rss"], "pss": facts["Pss"], "anonymous": facts["Pss_Anon"]}


def budget(command: list[str]) -> tuple[int, int]:
    """(bytes of the weights, bytes of the KV cache), as explain tells."""
    run = subprocess.run([*command, "--json"], check=True, stdout=subprocess.PIPE)
    found = json.loads(run.stdout)
    return found["weights_bytes"], found["memory"]["kv"]


def measure(command: list[str], port: int) -> tuple[float, list[dict[str, Any]]]:
    start = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        first_token(f"http://127.0.0.1:{port}", process)
        seconds = time.perf_counter() - start
        processes = [memory(pid) for pid in [process.pid, *children(process.pid)]]
    finally:
        process.terminate()
        process.wait()
    return seconds, processes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--results", type=Path, default=Path("docs/results/cpu.jsonl"))
    asked = parser.parse_args()
    options = [asked.model, "--device", asked.device]
    weights, kv = budget([*INFERPLANE, "explain", *options, *SMALL])
    machine, serve = describe(), [*INFERPLANE, "serve", *options]
    rounds = [measure(serve, asked.port) for _ in range(asked.rounds)]
    _, small = measure([*serve, *SMALL], asked.port)
    seconds = statistics.median(r[0] for r in rounds)
    print(f"\n{machine}\nstart to first token: {seconds:.2f} s (median of {asked.rounds})")
    keys = ("rss", "pss", "anonymous")
    default = {key: sum(p[key] for p in rounds[-1][1]) for key in keys}
    total = {key: sum(p[key] for p in small) for key in keys}
    beyond = total["pss"] - weights - kv
    for name, value in (*total.items(), ("weights", weights), ("KV", kv), ("beyond", beyond)):
        print(f"{name}: {value / 1e6:.0f} MB")
    print(f"pss with the default KV cache: {default['pss'] / 1e6:.0f} MB")
    record = {
        "benchmark": "startup",
        "model": asked.model,
        "first_token_s": round(seconds, 2),
        "rounds_s": [round(r[0], 2) for r in rounds],
        "processes": small,
        "weights": weights,
        "kv": kv,
        "pss_beyond_weights_and_kv": beyond,
        "with_default_kv": default,
        "machine": machine,
    }
    append(asked.results, record)


if __name__ == "__main__":
    main()
