"""What the API process costs: a server whose engine makes tokens in no time, under load.

    python -m ci.bench.api smollm2 --concurrency 256

Prints output tokens a second, bounded by the client as well, and the processor time of the API
process for a token: HTTP, JSON, detokenization, messages. An engine faster than the inverse of that
is waited for in larger pieces: outputs that came meanwhile are one event of the stream.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from ci.bench.machine import INFERPLANE, append, describe, run_json
from ci.bench.startup import first_token

from inferplane.config import Config
from inferplane.server.run import serve

ROUNDS = 2  # requests for each open one


def seconds(pid: int) -> float:
    """Processor time of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2", help="whose tokenizer is used")
    parser.add_argument("--concurrency", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--port", type=int, default=8766)
    parser.add_argument("--json", type=Path, help="append a JSON line")
    parser.add_argument("--serve", action="store_true", help="only be the server")
    asked = parser.parse_args()
    if asked.serve:
        config = Config(model=asked.model, port=asked.port, max_running=4096)
        sys.exit(serve(config, module="ci.bench.instant_engine"))
    server = subprocess.Popen([sys.executable, "-m", "ci.bench.api", *sys.argv[1:], "--serve"])
    url, requests = f"http://127.0.0.1:{asked.port}", ROUNDS * asked.concurrency
    lengths = ["--input-len", "32", "--output-len", str(asked.output_len)]
    sizes = ["--concurrency", str(asked.concurrency), "--num-prompts", str(requests)]
    try:
        first_token(url, server)
        before = seconds(server.pid)
        found = run_json([*INFERPLANE, "bench", "--url", url, *lengths, *sizes])
        used = seconds(server.pid) - before
    finally:
        server.terminate()
        server.wait()
    figures = {
        "output_tokens_per_second": found["levels"][0]["output_tokens_per_second"],
        "api_us_per_token": round(used / (requests * asked.output_len) * 1e6, 1),
    }
    print(figures)
    if asked.json:
        record = {"benchmark": "api", "concurrency": asked.concurrency, **figures}
        append(asked.json, record | {"machine": describe()})


if __name__ == "__main__":
    main()
