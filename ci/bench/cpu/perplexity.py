"""Perplexity of a model in each number format, on a fixed text.

    python -m ci.bench.cpu.perplexity smollm2

`dense` computes with the stored weights in the model's type, `stored` with them as they are stored;
the others quantize them again. `weights` leaves the inputs of products alone, `kv` is of the cache.
A few hundred tokens
tell a broken scheme from a sound one, and not one sound scheme from the next.
"""

import argparse
import math
import re
from pathlib import Path

from ci.bench.machine import append, describe

from inferplane import Engine, SamplingParams

TEXT = """
The lighthouse at the end of the bay was built of grey stone that had been carried there by boat,
one block after another, over the course of four summers. The keeper and his wife lived in a small
house beside it. In the morning he cleaned the lamp and wrote the weather into a book; in the
evening, before it became dark, he climbed the hundred and twelve steps again and lit the flame.
His wife looked after the garden, which lay behind a wall because of the wind. She grew potatoes,
onions and cabbage, and along the warm side of the house a pear tree that gave more fruit than two
people could eat. What they did not need they gave to the fishermen, who brought them fish, news
and, once a week, the post from the village.

One winter there came a storm that lasted for three days. On the second night the waves reached
the door of the house, and they had to carry the stove, the bed and the clock up into the tower.
They sat there together and listened to the water beating against the stone. The keeper said that
the tower had stood for eighty years and would stand for eighty more. His wife said nothing, but
she counted the seconds between one great wave and the next, and she found that they were growing
longer. Toward morning the wind turned to the north and the sea became calm. When they opened the
door, they saw that the wall of the garden was gone, and that the pear tree was still there.

Water boils at a lower temperature on a mountain than at the shore, because the air above it weighs
less. A cook who lives high up therefore has to wait longer for an egg to become hard. The same
thing can be used the other way round: in a pot with a tight lid the pressure rises, the water
becomes hotter than it could in the open, and beans are soft in a third of the time. If the valve
of such a pot is blocked, the pressure goes on rising until something gives way, so the valve should
be cleaned after each use, and the lid should never be opened before the pot has cooled down.
"""
CASES: dict[str, dict[str, str]] = {
    "dense": {"quantization": "none"},
    "stored": {},
    "stored weights": {"input_quantization": "none"},
    "int8": {"quantization": "int8"},
    "int8 weights": {"quantization": "int8", "input_quantization": "none"},
    "int4": {"quantization": "int4"},
    "int4 weights": {"quantization": "int4", "input_quantization": "none"},
    "fp8": {"quantization": "fp8"},
    "fp8 blocks": {"quantization": "fp8-block"},
    "int8 kv": {"quantization": "none", "kv_cache_dtype": "int8"},
    "fp8 kv": {"quantization": "none", "kv_cache_dtype": "fp8_e4m3"},
    "stored int8 kv": {"kv_cache_dtype": "int8"},
}


def perplexity(model: str, device: str, dtype: str, case: dict[str, str]) -> tuple[float, int]:
    """(perplexity, number of tokens that it is taken over)"""
    text = re.sub(r"(?<!\n)\n(?!\n)", " ", TEXT.strip())
    asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    with Engine(model, device=device, dtype=dtype, kv_cache_tokens=2048, **case) as engine:
        [result] = engine.generate(text, asked)
    scored = [each.logprob for each in result.prompt_logprobs or [] if each]
    return math.exp(-sum(scored) / len(scored)), len(scored)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--device", default="xeon")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas")
    parser.add_argument("--results", type=Path, help="add a JSON line for each figure to this file")
    asked = parser.parse_args()
    machine, first = describe(), 0.0
    for name in asked.cases.split(","):
        value, tokens = perplexity(asked.model, asked.device, asked.dtype, CASES[name])
        first = first or value
        print(f"{name:16} {value:8.3f}  {value / first - 1:+7.2%}  ({tokens} tokens)", flush=True)
        if asked.results:
            record = {"benchmark": "perplexity", "model": asked.model, "case": name}
            record |= {"perplexity": round(value, 4), "tokens": tokens, "dtype": asked.dtype}
            append(asked.results, record | {"machine": machine})


if __name__ == "__main__":
    main()
