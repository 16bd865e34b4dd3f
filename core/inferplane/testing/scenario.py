"""What one seed of the simulation means: the model's shape, the sizes of pools and queues, and how
often what happens. Half of the pools are so small that requests must be retracted."""

import random
from dataclasses import dataclass

from inferplane.scheduling.pages import KVGroupPages


@dataclass(slots=True, kw_only=True)
class Scenario:
    """Drawn once from the seed."""

    page_size: int
    groups: list[KVGroupPages]
    max_running: int
    max_queue: int
    max_batch_tokens: int
    max_model_len: int
    prefix_cache: bool
    arrival: float
    burst: float
    abort: float
    fail: float
    flush: float
    longest_answer: int
    extend: float


def draw_scenario(rng: random.Random) -> Scenario:
    page_size = rng.choice([1, 2, 4, 4, 8])
    max_model_len = rng.randint(12, 80)
    most = -(-max_model_len // page_size)
    max_running = rng.randint(1, 12)
    layouts: list[list[int | None]] = [
        [None],
        [None],
        [None, rng.randint(1, 3 * page_size)],
        [None, rng.randint(1, 24)],
        [rng.randint(1, 9), None, rng.randint(8, 24)],
        [rng.randint(1, 24)],
    ]
    groups = [
        KVGroupPages(
            f"g{index}", 1 + rng.randint(max(1, most // 2), most * rng.choice([1, 1, 2, 4])), window
        )
        for index, window in enumerate(rng.choice(layouts))
    ]
    return Scenario(
        page_size=page_size,
        groups=groups,
        max_running=max_running,
        max_queue=rng.choice([1, 3, 8, 20]),
        max_batch_tokens=rng.choice([1, 4, 16, 16, 64]),
        max_model_len=max_model_len,
        prefix_cache=rng.random() < 0.85,
        arrival=rng.choice([0.05, 0.1, 0.2, 0.5]),
        burst=rng.choice([0, 0, 0.02, 0.1]),
        abort=rng.choice([0, 0, 0.02, 0.1]),
        fail=rng.choice([0, 0, 0, 0.01, 0.05]),
        flush=rng.choice([0, 0, 0.02]),
        longest_answer=rng.choice([2, 10, 40, 80]),
        extend=rng.choice([0, 0, 0.1, 0.4]),
    )
