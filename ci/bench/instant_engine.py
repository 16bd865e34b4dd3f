"""The engine process of ci/bench/api.py: makes its tokens in no time, without a model."""

from collections.abc import Callable

from inferplane.config import Config
from inferplane.ipc import engine_process
from inferplane.testing.fake_engine import Behaviour, FakeEngineCore


def build(config: Config, progress: Callable[[str], None]) -> FakeEngineCore:
    """Every answer has the same tokens, for it takes time to draw others."""
    behaviour = Behaviour(vocab_size=1 << 20, max_model_len=8192, answer=list(range(300, 420)))
    return FakeEngineCore(config, progress, behaviour)


if __name__ == "__main__":
    engine_process.main(build)
