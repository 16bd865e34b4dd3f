"""What structured output costs and saves: jump-forward against masks alone, masks against nothing.

python -m ci.bench.structured smollm2
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from ci.bench.machine import append, describe

from inferplane import Engine, SamplingParams

PROMPT = "Write a JSON object that describes the configuration of a network device.\n"
FIELDS = 20
ROUNDS = 3
BATCH = 32
MASKED_TOKENS = 128


def schema() -> dict[str, Any]:
    """20 fields with long names whose values are words or booleans."""
    values = [{"type": "boolean"}, {"enum": ["enabled", "disabled", "automatic"]}]
    names = [f"configuration_of_network_interface_number_{i}_status" for i in range(FIELDS)]
    return {
        "type": "object",
        "properties": {name: values[i % 2] for i, name in enumerate(names)},
        "required": names,
        "additionalProperties": False,
    }


ENDLESS = {"type": "array", "items": {"type": "string"}, "minItems": 1000}
"""no answer of a few hundred tokens satisfies it"""


def forced(engine: Engine) -> int:
    """Tokens that were never sampled since the engine began."""
    client: Any = engine.generator.client
    return int(client.core.scheduler.stats().forced_tokens)


def jump_forward(model: str, device: str) -> dict[str, Any]:
    """Seconds for one answer at a time, with and without jump-forward."""
    params = SamplingParams(temperature=0.0, max_tokens=1200, json_schema=json.dumps(schema()))
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    tokens, share, texts = 0, 0.0, set()
    for name, disable in (("with", False), ("without", True)):
        with Engine(
            model, device=device, disable_jump_forward=disable, kv_cache_tokens=8192
        ) as engine:
            engine.generate(PROMPT, params)  # compiles the grammar
            before = forced(engine)
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                (result,) = engine.generate(PROMPT, params)
                seconds[name].append(time.perf_counter() - begun)
                tokens = result.usage.completion_tokens
                assert result.finish_reason == "stop", result.finish_reason
                texts.add(result.text)
            if not disable:
                share = (forced(engine) - before) / ROUNDS / tokens
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "tokens": tokens,
        "forced": round(share, 3),
        "seconds": median,
        "ratio": round(median["without"] / median["with"], 2),
        "same_text": len(texts) == 1,
    }


def mask_overhead(model: str, device: str) -> dict[str, Any]:
    """Tokens per second of 32 sequences, with masks and without; nothing is forced."""
    common: dict[str, Any] = {"temperature": 0.8, "max_tokens": MASKED_TOKENS, "ignore_eos": True}
    masked = SamplingParams(**common, json_schema=json.dumps(ENDLESS))
    plain = SamplingParams(**common)
    rates: dict[str, list[float]] = {"masked": [], "plain": []}
    with Engine(model, device=device, disable_jump_forward=True, kv_cache_tokens=32768) as engine:
        for round_ in range(ROUNDS + 1):
            for name, params in (("plain", plain), ("masked", masked)):
                begun = time.perf_counter()
                results = engine.generate([PROMPT] * BATCH, params)
                rate = sum(len(r.token_ids) for r in results) / (time.perf_counter() - begun)
                if round_:  # the first one compiles the grammar
                    rates[name].append(rate)
    median = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    return {
        "tokens_per_second": median,
        "overhead": round(median["plain"] / median["masked"] - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, default=Path("docs/results/cpu.jsonl"))
    asked = parser.parse_args()
    machine = describe()
    jump = jump_forward(asked.model, asked.device)
    masks = mask_overhead(asked.model, asked.device)
    print(f"\n{machine}")
    print(
        f"jump-forward: {jump['tokens']} tokens, {jump['forced']:.0%} forced:"
        f" {jump['seconds']['with']:.2f} s instead of {jump['seconds']['without']:.2f} s,"
        f" {jump['ratio']} times as fast; {'same' if jump['same_text'] else 'another'} text"
    )
    rates = masks["tokens_per_second"]
    print(
        f"masks at batch {BATCH}: {rates['masked']} tok/s instead of {rates['plain']},"
        f" overhead {masks['overhead']:.1%}"
    )
    record = {"benchmark": "structured", "model": asked.model, "jump_forward": jump}
    append(asked.results, {**record, "masks": masks, "machine": machine})


if __name__ == "__main__":
    main()
