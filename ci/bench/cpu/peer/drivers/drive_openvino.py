"""OpenVINO GenAI's LLMPipeline on token ids, with its own defaults. Times of steps are its own
record of when tokens came."""

from importlib.metadata import version

import numpy as np
import openvino
import openvino_genai
from drive import Generate, Job, Made, Prompts, main


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    pipe = openvino_genai.LLMPipeline(job["model"], "CPU")

    def generate(prompts: Prompts, count: int) -> Made:
        ids = np.array(prompts, np.int64)
        tensors = (openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        config = openvino_genai.GenerationConfig(
            max_new_tokens=count, min_new_tokens=count, ignore_eos=True, do_sample=False
        )
        made = pipe.generate(openvino_genai.TokenizedInputs(*tensors), config)
        raw, later = made.perf_metrics.raw_metrics, len(prompts) * (count - 1)
        lengths = [len(tokens) for tokens in made.tokens]
        if lengths != [count] * len(prompts) or len(raw.m_durations) != later:
            raise RuntimeError(f"OpenVINO gave {lengths} tokens, {len(raw.m_durations)} times")
        # microseconds; a token of a batch has its share of a step
        return Made(raw.m_times_to_first_token[0] / 1e6, sum(raw.m_durations) / 1e6, later)

    return generate, {"openvino-genai": version("openvino-genai")}


if __name__ == "__main__":
    main(load)
