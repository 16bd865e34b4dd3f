"""inferplane's engine in process: scheduler, forward, sampling; no text. The job's `options` are
fields of Config."""

import time
from collections.abc import Iterator
from importlib.metadata import version

from ci.bench.gpu import workloads
from drive import Generate, Job, Made, Prompts, main, streamed

from inferplane.checkpoint.source import open_model
from inferplane.config import Config
from inferplane.engine import open_engine
from inferplane.messages import Output
from inferplane.plugins import Plugins


def load(job: Job) -> tuple[Generate, dict[str, str]]:
    config = Config(model=job["model"], disable_prefix_cache=True, **job["options"])
    core = open_engine(config, open_model(job["model"]), Plugins())

    def steps() -> Iterator[dict[str, int]]:
        made: dict[str, int] = {}
        while core.has_work:
            for output in core.step():
                if not isinstance(output, Output) or output.finish_reason == "error":
                    raise RuntimeError(f"a request failed: {output}")
                made[output.request_id] = made.get(output.request_id, 0) + len(output.tokens)
            yield made

    def generate(prompts: Prompts, count: int) -> Made:
        begin = time.perf_counter()
        workloads.submit(core, prompts, [count] * len(prompts))
        return streamed(len(prompts), count, begin, steps())

    return generate, {"inferplane": version("inferplane"), "device": core.loaded.device.info.name}


if __name__ == "__main__":
    main(load)
