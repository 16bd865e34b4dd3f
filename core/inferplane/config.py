"""Every setting of inferplane in one frozen dataclass; the command line is generated from it."""

from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

from inferplane.errors import ConfigError


def setting(help: str, default: Any = MISSING, *, choices: tuple[str, ...] = ()) -> Any:
    """A field whose help text goes to the command line and to docs/configuration.md."""
    metadata = {"help": help, "choices": choices}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of one engine and its server. Automatic choices return a changed copy (`decide`)
    and record who chose."""

    model: str = setting("folder, .gguf file, hub id, or smollm2 for the demo model")
    revision: str | None = setting("revision of a hub model", None)
    served_model_name: str | None = setting("name that clients use; default: MODEL", None)
    chat_template: str | None = setting("file with a Jinja chat template to use instead", None)
    tool_call_parser: str = setting(
        "how the model writes tool calls: auto asks its chat template; none; or a name (tools.md)",
        "auto",
    )
    reasoning_parser: str = setting(
        "how it marks its reasoning: auto; none; a name (tools.md); or its tags as OPEN...CLOSE",
        "auto",
    )
    device: str = setting("auto, or a backend's device: NAME or NAME:1", "auto")
    dtype: str = setting(
        "type of weights and activations",
        "auto",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    load_format: str = setting(
        "auto reads the weights; dummy fills them with random numbers",
        "auto",
        choices=("auto", "dummy"),
    )
    quantization: str = setting(
        "auto keeps the checkpoint's scheme where the device has kernels for it; none makes "
        "weights dense; others quantize them when they are loaded",
        "auto",
        choices=("auto", "none", "fp8", "fp8-block", "int8", "int4"),
    )
    input_quantization: str = setting(
        "inputs of products with quantized weights: auto does as the scheme and the backend say, "
        "none leaves them in --dtype, int8 also rounds those of weight-only integer schemes",
        "auto",
        choices=("auto", "none", "int8"),
    )
    max_model_len: int | None = setting("longest sequence, prompt and output, in tokens", None)
    max_running: int = setting("sequences computed at the same time", 256)
    max_queue: int = setting("requests that may wait; more are refused with 429", 1024)
    max_batch_tokens: int = setting("token budget of one step; longer prompts are chunked", 2048)
    page_size: int | None = setting("tokens per KV page; default: the backend's choice", None)
    kv_cache_dtype: str = setting(
        "type of keys and values in the cache; auto: as --dtype",
        "auto",
        choices=("auto", "fp8_e4m3", "int8"),
    )
    attention_backend: str = setting(
        "implementation of attention: auto takes the best one; others are named by explain, such "
        "as reference",
        "auto",
    )
    kv_cache_tokens: int | None = setting(
        "size of the KV cache in tokens; default: from --memory-fraction", None
    )
    memory_fraction: float = setting("part of the free device memory for weights and KV cache", 0.9)
    disable_prefix_cache: bool = setting("compute every prompt from its first token", False)
    disable_overlap: bool = setting("wait for each step before planning the next", False)
    grammar_backend: str = setting(
        "library for structured output; auto takes one that supports the constraint exactly",
        "auto",
        choices=("auto", "llguidance", "xgrammar"),
    )
    json_whitespace: str = setting(
        "white space in JSON that a schema constrains: none, or up to 16 characters at a place",
        "compact",
        choices=("compact", "flexible"),
    )
    disable_jump_forward: bool = setting("sample also the text that a grammar forces", False)
    disable_graphs: bool = setting("run every step eagerly", False)
    enable_deterministic_inference: bool = setting(
        "batch-invariant ops: the same bits whatever else is in the batch", False
    )
    threads: int | None = setting(
        "host threads that compute, on devices that do so; default: one per physical core that "
        "the process may use",
        None,
    )
    op: list[str] = setting("NAME=IMPLEMENTATION, e.g. linear=reference or '*=reference'", [])
    require_native: bool = setting("a fallback to a reference op is an error", False)
    host: str = setting("address to listen on", "127.0.0.1")
    port: int = setting("port to listen on", 8000)
    api_key_file: str | None = setting(
        "file with the key that clients must send; or set INFERPLANE_API_KEY", None
    )
    log_level: str = setting(
        "how much to log", "info", choices=("debug", "info", "warning", "error")
    )

    chosen_by: dict[str, str] = field(default_factory=dict, metadata={"internal": True})
    """who set a field that the user left open: field name -> reason"""

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "max_model_len": (1, 2**30),
            "max_running": (1, 65536),
            "max_queue": (0, 2**30),
            "max_batch_tokens": (1, 2**24),
            "page_size": (1, 4096),
            "threads": (1, 4096),
            "kv_cache_tokens": (1, 2**40),
            "memory_fraction": (0.01, 1.0),
            "port": (0, 65535),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{flag(name)} is {value}, must be from {low} to {high}")
        for item in settings():
            choices = item.metadata["choices"]
            value = getattr(self, item.name)
            if choices and value not in choices:
                raise ConfigError(f"{flag(item.name)} is {value!r}, must be one of {choices}")

    def decide(self, reason: str, **values: Any) -> "Config":
        """A copy with automatic choices filled in, remembering the reason for each."""
        chosen = self.chosen_by | dict.fromkeys(values, reason)
        return replace(self, chosen_by=chosen, **values)


def settings() -> list[Field[Any]]:
    """The fields that a user can set, in order."""
    return [f for f in fields(Config) if not f.metadata.get("internal")]


def flag(name: str) -> str:
    """The command line spelling of a field."""
    return "--" + name.replace("_", "-")
