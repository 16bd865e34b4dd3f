"""transformers as the oracle: tiny random models of each family, their logits, and how much these
differ from themselves when they are computed in another way."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.utils.logging import disable_progress_bar

from inferplane.checkpoint.source import ModelSource, open_model
from tests.models.serving import Answer, Served

FLOOR = 1e-4

disable_progress_bar()


def randomize(model: PreTrainedModel, seed: int) -> None:
    """Weights that make every part of the model count: attention far from uniform, logits of
    standard deviation 3, norm weights and biases that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    centre = 0.0 if "gemma" in model.config.model_type else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "norm" in name:
                weight.copy_(centre + 0.2 * noise)
            elif weight.ndim == 1:
                weight.copy_(0.3 * noise)
            else:
                gain = 3.0 if "embed" in name or "lm_head" in name else 1.0
                gain = 1.5 if "q_proj" in name or "k_proj" in name else gain
                weight.copy_(gain / weight.shape[-1] ** 0.5 * noise)


@dataclass
class Oracle:
    """A transformers model in float32 with its logits by token sequence."""

    model: PreTrainedModel
    chunk: int = 48
    floor: float = FLOOR
    known: dict[tuple[int, ...], tuple[torch.Tensor, float]] = field(default_factory=dict)
    widest: float = 0.0
    """largest difference that `check` has seen"""

    @property
    def bounds(self) -> str:
        """Smallest and largest bound so far."""
        found = [bound for _, bound in self.known.values()] or [self.floor]
        return f"{min(found):.1e} to {max(found):.1e}"

    def logits(self, ids: list[int], attention: str = "eager", chunk: int = 0) -> torch.Tensor:
        """f32[T, V] on the CPU; `chunk`: so many tokens at a time through a KV cache."""
        self.model.set_attn_implementation(attention)
        with torch.inference_mode():
            given = torch.tensor([ids], device=self.model.device)
            if not chunk:
                return self.model(given, use_cache=False).logits[0].cpu()
            cache = DynamicCache(config=self.model.config)
            parts = [
                self.model(part, past_key_values=cache).logits[0] for part in given.split(chunk, 1)
            ]
        return torch.cat(parts).cpu()

    def expect(self, ids: list[int]) -> tuple[torch.Tensor, float]:
        """The logits, and the bound for ours: the floor, or twice what transformers differs from
        itself between eager and sdpa, and between chunked and whole."""
        key = tuple(ids)
        if key not in self.known:
            plain = self.logits(ids)
            own = float((self.logits(ids, "sdpa") - plain).abs().max())
            own = max(own, float((self.logits(ids, chunk=self.chunk) - plain).abs().max()))
            self.known[key] = plain, max(self.floor, 2 * own)
        return self.known[key]

    def check(self, served: Served, name: str, answer: Answer) -> None:
        """Every position that was computed for a greedy request, and every token that it chose."""
        ids = answer.computed
        expected, bound = self.expect(ids)
        ours = served.logits(name)
        assert sorted(ours) == list(range(answer.cached_tokens, len(ids)))
        rows = torch.stack([ours[position] for position in sorted(ours)])
        off = (rows - expected[answer.cached_tokens :]).abs().amax(-1)
        self.widest = max(self.widest, float(off.max()))
        where = answer.cached_tokens + int(off.argmax())
        assert off.max() <= bound, f"{name}: position {where} is off by {off.max()} > {bound}"
        for index, token in enumerate(answer.tokens):
            row = expected[len(answer.prompt) - 1 + index]
            best = row.topk(2).values
            if token != row.argmax():
                assert best[0] - best[1] < 2 * bound, f"{name}: token {index} is {token}"


def make(folder: Path, config: Any, seed: int = 0) -> tuple[Oracle, ModelSource]:
    """A random model for a configuration, and the same read from its files by us."""
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    return Oracle(model), open_model(str(folder))
