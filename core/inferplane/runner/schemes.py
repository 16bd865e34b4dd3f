"""Which scheme the weights of each product get, from what is stored, what the user asks for and
what the device has kernels for. Decided when the model is built and shown by `explain`."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from inferplane.config import Config
from inferplane.errors import ConfigError
from inferplane.hw.op import Reject, describe
from inferplane.hw.quantization import Scheme, common, weight_only
from inferplane.resolver import Resolver

log = logging.getLogger(__name__)

INT4_GROUPS = (128, 64, 32)
INPUT_GROUP = 64
"""inputs that share a scale, at most, where those of weight-only integers are rounded to int8: one
scale for a token raises SmolLM2-135M's perplexity by 5 %, groups of 64 or 32 by 0.5 to 2 %"""


def scheme_named(quantization: str, in_features: int) -> Scheme:
    """What a value of --quantization makes of dense weights."""
    if quantization == "fp8":
        return Scheme(weight="float8_e4m3fn", activation="float8_e4m3fn")
    if quantization == "fp8-block":
        blocks = Scheme(weight="float8_e4m3fn", rows=128, group=128)
        return replace(blocks, activation="float8_e4m3fn", activation_group=128)
    if quantization == "int8":
        return Scheme(weight="int8", activation="int8")
    group = next((g for g in INT4_GROUPS if in_features % g == 0), 0)
    return Scheme(weight="int4", group=group, asymmetric=True)


def refuse_hardware(asked: str, resolver: Resolver, op: str, spec: Any) -> None:
    """ConfigError for a type that the hardware lacks, if no kernel serves it for that reason and
    the user did not ask for the reference."""
    verdicts = [verdict for _, verdict in resolver.kernels(op, spec)]
    lacks = [v.reason for v in verdicts if isinstance(v, Reject) and v.code == "hardware"]
    native = any(not isinstance(verdict, Reject) for verdict in verdicts)
    if lacks and not native and not {op, "*"} & set(resolver.overrides):
        why = "; ".join(dict.fromkeys(lacks))
        raise ConfigError(
            f"{asked} needs what {resolver.device.info.name} has no hardware for ({why}): "
            f"leave it out, choose another, or compute it slowly with --op {op}=reference"
        )


@dataclass(slots=True)
class SchemeChooser:
    """Stored schemes stay where the device has a kernel for them; elsewhere the weights become
    dense when they are loaded, because a dense kernel is faster than the reference of a scheme. A
    scheme that the user asks for stays in any case."""

    config: Config
    resolver: Resolver
    kept: dict[str, int] = field(default_factory=dict)
    """scheme -> products that are stored so and have it"""
    given_up: dict[str, int] = field(default_factory=dict)
    """reason -> products that were stored quantized and become dense"""
    known: dict[tuple[str, Any], str | None] = field(default_factory=dict)

    def choose(
        self, op: str, spec: Any, stored: Sequence[Scheme | None], sizes: Sequence[int], width: int
    ) -> Scheme | None:
        """The scheme of each part of a product: `stored` has what the checkpoint says of each,
        `sizes` their out_features, `width` is in_features."""
        asked = self.config.quantization
        if asked == "none":
            return None
        present = [scheme for scheme in stored if scheme is not None]
        shared = common(present, width) if present and len(present) == len(stored) else None
        if asked != "auto" and op != "logits":
            wanted = scheme_named(asked, width)
            if shared is not None and shared.weight == wanted.weight:
                wanted = shared  # as stored is better than rounded once more
            named = self._with_inputs(wanted)
            for scheme in named:
                if self._lack(op, spec, scheme, sizes) is None:
                    return scheme
            refuse_hardware(
                f"--quantization {asked}",
                self.resolver,
                op,
                replace(spec, scheme=named[0].merged(sizes)),
            )
            return named[0]
        if not present:
            return self._head(spec, sizes, width) if op == "logits" else None
        if shared is None:
            self._give_up("weights of one product are stored in different ways")
            return None
        named = self._with_inputs(shared)
        for scheme in named:
            if self._lack(op, spec, scheme, sizes) is None:
                shown = describe(scheme)
                self.kept[shown] = self.kept.get(shown, 0) + 1
                return scheme
        lacking = self._lack(op, spec, named[0], sizes)
        self._give_up(f"no kernel for {describe(named[0])}" + (f" ({lacking})" if lacking else ""))
        return None

    def _head(self, spec: Any, sizes: Sequence[int], width: int) -> Scheme | None:
        """Of a dense output head. Where products of integers are what the device does best, int8
        is read in half the time, and its values differ too little to be told from noise."""
        if self.config.quantization not in ("int8", "int4"):
            return None
        if self.config.input_quantization != "int8":
            return None
        wanted = scheme_named("int8", width)
        return wanted if self._lack("logits", spec, wanted, sizes) is None else None

    def record(self, config: Config) -> Config:
        """The configuration with what became of a quantized checkpoint; called once all is
        built. Nothing to record for a dense one."""
        words = [f"{count} products stay {shown}" for shown, count in self.kept.items()]
        words += [f"{count} become dense: {reason}" for reason, count in self.given_up.items()]
        if not words:
            return config
        log.info("quantized weights: %s", "; ".join(words))
        if config.quantization != "auto":
            return config
        return config.decide("; ".join(words), quantization="auto" if self.kept else "none")

    def _with_inputs(self, scheme: Scheme) -> list[Scheme]:
        """The scheme with the inputs that are wanted, best first."""
        inputs = self.config.input_quantization
        if inputs == "none":
            return [weight_only(scheme)]
        named = [scheme]
        if inputs == "int8" and scheme.weight != "float8_e4m3fn" and not scheme.activation:
            per_token = replace(scheme, activation="int8")
            group = max(32, scheme.group) if 0 < scheme.group < INPUT_GROUP else INPUT_GROUP
            named = [replace(per_token, activation_group=group), per_token]
        by_user = inputs == "int8" and "input_quantization" not in self.config.chosen_by
        return named if by_user else list(dict.fromkeys([*named, weight_only(scheme)]))

    def _give_up(self, reason: str) -> None:
        self.given_up[reason] = self.given_up.get(reason, 0) + 1

    def _lack(self, op: str, spec: Any, scheme: Scheme, sizes: Sequence[int]) -> str | None:
        """What keeps the device's kernels from a scheme besides that they lack it; None if one
        has it."""
        spec = replace(spec, scheme=scheme.merged(sizes))
        if (op, spec) not in self.known:
            verdicts = self.resolver.kernels(op, spec)
            rejects = [(name, v) for name, v in verdicts if isinstance(v, Reject)]
            reasons = [f"{name}: {v.reason}" for name, v in rejects if v.code != "feature"]
            native = len(rejects) < len(verdicts)
            self.known[op, spec] = None if native else "; ".join(reasons)
        return self.known[op, spec]
