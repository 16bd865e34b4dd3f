"""llama.cpp by its C interface, in the manner of llama-batched-bench: one decode call a step with a
token of each sequence. The next token is numpy's argmax of the logits, cheaper than its sampler."""

import time
from importlib.metadata import version
from typing import Any

import llama_cpp
import numpy as np
from drive import Generate, Job, Prompts, main, stamped


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: Any) -> None:
    pass


class Context:
    """For a number of sequences. Its batch is filled in place."""

    def __init__(self, model: Any, job: Job, sequences: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * -(-job["context"] // 256) * 256
        params.n_seq_max = sequences
        params.n_batch = max(2048, sequences * job["prompt"])
        params.n_threads = params.n_threads_batch = job["threads"]
        self.sequences = sequences
        self.held = llama_cpp.llama_init_from_model(model, params)
        if not self.held:
            raise RuntimeError("llama.cpp made no context")
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)
        vocab = llama_cpp.llama_model_get_vocab(model)
        self.vocab = llama_cpp.llama_vocab_n_tokens(vocab)

    def step(self, tokens: Prompts, position: int) -> Prompts:
        """The tokens of each sequence from `position` on -> the token after them."""
        at, last = 0, []
        for sequence, own in enumerate(tokens):
            for offset, token in enumerate(own):
                self.batch.token[at], self.batch.pos[at] = token, position + offset
                self.batch.n_seq_id[at], self.batch.seq_id[at][0] = 1, sequence
                self.batch.logits[at] = offset == len(own) - 1
                at += 1
            last.append(at - 1)
        self.batch.n_tokens = at
        status = llama_cpp.llama_decode(self.held, self.batch)
        if status:
            raise RuntimeError(f"llama_decode gave {status}")
        return [[self.best(row)] for row in last]

    def best(self, row: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self.held, row)
        return int(np.ctypeslib.as_array(logits, (self.vocab,)).argmax())

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.batch)
        llama_cpp.llama_free(self.held)


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(job["model"].encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {job['model']}")
    contexts: dict[str, Context] = {}

    def generate(prompts: Prompts, count: int) -> Any:
        context = contexts.get("current")
        if context is None or context.sequences != len(prompts):
            if context is not None:
                context.close()
            context = contexts["current"] = Context(model, job, len(prompts))
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context.held), True)
        begin, arrivals = time.perf_counter(), []
        tokens, position = prompts, 0
        for _ in range(count):
            length = len(tokens[0])
            tokens = context.step(tokens, position)
            position += length
            arrivals.append(time.perf_counter())
        return stamped(len(prompts), begin, arrivals)

    return generate, {"llama-cpp-python": version("llama-cpp-python")}


if __name__ == "__main__":
    main(load)
