"""transformers' generate on the weights that inferplane reads: static batches of equal lengths.

python -m ci.bench.transformers_baseline smollm2 --concurrency 1 8 32
"""

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from inferplane.checkpoint.source import open_model


def load(name: str, dtype: torch.dtype) -> Any:
    """The model of transformers with the tensors of our reader, converted one by one."""
    source = open_model(name)
    config = dict(source.config)
    kind = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(kind, dtype=dtype)
    tensors = source.tensors()
    state = {name: tensors[name].to(dtype) for name in tensors.names()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    tied = {"lm_head.weight"} if kind.tie_word_embeddings else set()
    if set(missing) - tied or unexpected:
        raise SystemExit(f"weights do not match: missing {missing}, unexpected {unexpected}")
    rotary = model.model.rotary_emb  # buffers are not in a checkpoint: make them anew
    model.model.rotary_emb = type(rotary)(config=kind)
    return model.eval()


@torch.inference_mode()
def measure(model: Any, size: int, batches: int, work: argparse.Namespace) -> dict[str, Any]:
    """Tokens per second over `batches` batches, after a short unmeasured one."""
    rng = random.Random(work.seed)
    ids = range(model.config.vocab_size // 10, model.config.vocab_size)

    def batch() -> torch.Tensor:
        return torch.tensor([rng.choices(ids, k=work.input_len) for _ in range(size)])

    def generate(prompt: torch.Tensor, tokens: int) -> None:
        made = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        if made.shape != (size, work.input_len + tokens):
            raise SystemExit(f"transformers gave {tuple(made.shape)}")

    generate(batch(), 8)
    prompts = [batch() for _ in range(batches)]
    start = time.perf_counter()
    for prompt in prompts:
        generate(prompt, work.output_len)
    seconds = time.perf_counter() - start
    tokens = size * batches * work.output_len
    return {
        "concurrency": size,
        "requests": size * batches,
        "input_len": work.input_len,
        "output_len": work.output_len,
        "seconds": seconds,
        "output_tokens": tokens,
        "output_tokens_per_second": tokens / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json")
    work = parser.parse_args()
    model = load(work.model, getattr(torch, work.dtype))
    levels = []
    for size in work.concurrency:
        levels.append(measure(model, size, max(work.batches, 4 // size), work))
        rate = levels[-1]["output_tokens_per_second"]
        print(f"transformers, batch {size}: {rate:.1f} output tok/s", flush=True)
    if work.json:
        found = {"target": "transformers", "levels": levels}
        Path(work.json).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
