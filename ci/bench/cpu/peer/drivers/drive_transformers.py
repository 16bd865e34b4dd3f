"""transformers' generate in bf16 with sdpa: static batches of equal lengths."""

import time
from typing import Any

import torch
import transformers
from drive import Generate, Job, Prompts, main, stamped


class Clock(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
    """generate() hands it the prompts and then the tokens of each step."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    def put(self, value: Any) -> None:
        self.arrivals.append(time.perf_counter())

    def end(self) -> None:
        pass


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    torch.set_num_threads(job["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["model"], dtype=torch.bfloat16, attn_implementation="sdpa"
    ).eval()

    @torch.inference_mode()
    def generate(prompts: Prompts, count: int) -> Any:
        ids, clock, begin = torch.tensor(prompts), Clock(), time.perf_counter()
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            streamer=clock,
        )
        if made.shape[1] != ids.shape[1] + count or len(clock.arrivals) != count + 1:
            raise RuntimeError(f"transformers gave {tuple(made.shape)}")
        return stamped(len(prompts), begin, clock.arrivals[1:])

    return generate, {"transformers": transformers.__version__, "torch": torch.__version__}


if __name__ == "__main__":
    main(load)
