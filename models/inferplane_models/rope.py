"""Reading rotary embedding settings from a Hugging Face configuration."""

import math
from typing import Any

from inferplane.errors import ModelError
from inferplane.hw.ops.rope import RopeSpec


def rope_spec(
    config: dict[str, Any], head_dim: int, max_position: int, dtype: str, layer_type: str = ""
) -> RopeSpec:
    """The spec for one kind of layer. Old files keep `rope_theta` and `rope_scaling` at the top,
    new ones put all in `rope_parameters`, possibly one set per layer type.

    Raises ModelError for a scaling that no reference exists for.
    """
    settings = config.get("rope_parameters") or {}
    if layer_type in settings:
        settings = settings[layer_type]
    elif not config.get("rope_parameters"):
        settings = dict(config.get("rope_scaling") or {})
        settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    part = settings.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    known: dict[str, Any] = {
        "default": ("none", ()),
        "linear": ("linear", ("factor",)),
        "llama3": (
            "llama3",
            ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        ),
        "yarn": ("yarn", ("factor",)),
    }
    if kind not in known:
        raise ModelError(f"rope scaling {kind!r} is not supported; known are {', '.join(known)}")
    scaling, names = known[kind]
    missing = [name for name in names if settings.get(name) is None]
    if missing:
        raise ModelError(f"rope scaling {kind!r} lacks {', '.join(missing)} in config.json")
    parameters = tuple(float(settings[name]) for name in names)
    if kind == "yarn":
        if settings.get("truncate") is False:
            raise ModelError("rope scaling 'yarn' without truncate is not supported")
        original = settings.get("original_max_position_embeddings")
        parameters += (
            float(settings.get("beta_fast") or 32),
            float(settings.get("beta_slow") or 1),
            float(original or config["max_position_embeddings"]),
            _attention_factor(settings),
        )
    return RopeSpec(
        head_dim=head_dim,
        rotary_dim=int(head_dim * part),
        max_position=max_position,
        theta=float(settings.get("rope_theta", config.get("rope_theta", 10000.0))),
        dtype=dtype,
        scaling=scaling,
        parameters=parameters,
    )


def _attention_factor(settings: dict[str, Any]) -> float:
    """YaRN's factor for cos and sin: 0.1 ln(s) + 1, adjusted where a model gives mscale."""
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    factor = float(settings["factor"])

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if settings.get("mscale") and settings.get("mscale_all_dim"):
        return mscale(float(settings["mscale"])) / mscale(float(settings["mscale_all_dim"]))
    return mscale(1.0)
