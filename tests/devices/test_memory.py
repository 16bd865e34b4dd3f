"""What a start sets aside before the rest becomes KV cache."""

from dataclasses import replace

import pytest

from inferplane.config import Config
from inferplane.hw import DeviceInfo, Hints
from inferplane.runner.memory import recorded_tokens, step_bytes
from inferplane.testing.null import SETTINGS, NullDevice

INFO = DeviceInfo(backend="null", torch_device="cpu", name="n", shape_policy="bucketed")
HINTS = Hints(token_buckets=(1, 8, 64, 512), mixed_buckets=((128, 8), (96, 16)))
MODEL = {"hidden_size": 4, "intermediate_size": 10, "vocab_size": 100}


@pytest.mark.parametrize(
    ("config", "info", "hints", "tokens"),
    [
        ({}, {}, HINTS, 128),
        ({"max_running": 512}, {}, HINTS, 512),
        ({}, {}, replace(HINTS, mixed_buckets=()), 64),
        ({"disable_graphs": True}, {}, HINTS, 0),
        ({}, {"shape_policy": "dynamic"}, HINTS, 0),
        ({}, {}, Hints(), 0),
    ],
)
def test_recordings_have_memory_of_their_own(
    config: dict[str, int], info: dict[str, str], hints: Hints, tokens: int
) -> None:
    device = NullDevice(replace(INFO, **info), SETTINGS["bucketed"])  # type: ignore[arg-type]
    settings = Config(model="m", **({"max_running": 64} | config))  # type: ignore[arg-type]
    assert recorded_tokens(settings, device, hints) == tokens


def test_a_step_needs_activations_and_logits() -> None:
    config = Config(model="m", dtype="bfloat16", max_running=8)
    assert step_bytes(MODEL, config, 0) == 0
    assert step_bytes(MODEL, config, 32) == 32 * (32 + 30) * 2 + 3 * 8 * 100 * 4
