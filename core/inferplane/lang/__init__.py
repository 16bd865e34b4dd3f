"""SGLang's frontend language: programs that call a model many times, as Python functions.

import inferplane.lang as sgl
"""

from typing import Any

from inferplane.lang.anthropic import Anthropic
from inferplane.lang.choices import (
    greedy_token_selection,
    token_length_normalized,
    unconditional_likelihood_normalized,
)
from inferplane.lang.default import flush_cache, get_server_info, set_default_backend
from inferplane.lang.endpoint import RuntimeEndpoint
from inferplane.lang.expressions import (
    assistant,
    assistant_begin,
    assistant_end,
    gen,
    gen_int,
    gen_string,
    image,
    select,
    separate_reasoning,
    system,
    system_begin,
    system_end,
    user,
    user_begin,
    user_end,
)
from inferplane.lang.openai import OpenAI
from inferplane.lang.program import function

__all__ = [
    "Anthropic",
    "Engine",
    "OpenAI",
    "RuntimeEndpoint",
    "assistant",
    "assistant_begin",
    "assistant_end",
    "flush_cache",
    "function",
    "gen",
    "gen_int",
    "gen_string",
    "get_server_info",
    "greedy_token_selection",
    "image",
    "select",
    "separate_reasoning",
    "set_default_backend",
    "system",
    "system_begin",
    "system_end",
    "token_length_normalized",
    "unconditional_likelihood_normalized",
    "user",
    "user_begin",
    "user_end",
]


def Engine(model: str, **config: Any) -> Any:
    """An inferplane.Engine, which is a backend as it is."""
    from inferplane.offline import Engine as Local

    return Local(model, **config)
