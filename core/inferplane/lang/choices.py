"""How `select` decides, given how likely the model finds the tokens of each choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Scored:
    """One token: its natural log probability (None: not known), id and text."""

    logprob: float | None
    token: int | str
    text: str | None = None

    def entry(self) -> list[Any]:
        return [self.logprob, self.token, self.text]


Tokens = Sequence[Scored]
Rule = Callable[[Sequence[Tokens], Sequence[Tokens]], list[float]]
"""(tokens of each choice after the prompt, the same after nothing) -> a score for each choice"""


@dataclass(frozen=True, slots=True)
class ChoicesMethod:
    """A way to decide. `unconditional`: it also needs the choices' tokens scored on their own."""

    name: str
    rule: Rule
    unconditional: bool = False

    def decide(
        self, tokens: Sequence[Tokens], alone: Sequence[Tokens] = ()
    ) -> tuple[int, dict[str, Any]]:
        """The best choice, the first of equals, and the figures behind it."""
        scores = self.rule(tokens, alone)
        meta: dict[str, Any] = {
            "choices_method": self.name,
            "scores": scores,
            "normalized_prompt_logprobs": [_mean(_logprobs(choice)) for choice in tokens],
            "input_token_logprobs": [[token.entry() for token in choice] for choice in tokens],
        }
        if self.unconditional:
            meta["unconditional_token_logprobs"] = [[t.entry() for t in some] for some in alone]
        return scores.index(max(scores)), meta


def _by_mean(tokens: Sequence[Tokens], alone: Sequence[Tokens]) -> list[float]:
    return [_mean(_logprobs(choice)) for choice in tokens]


def _by_greedy_tokens(tokens: Sequence[Tokens], alone: Sequence[Tokens]) -> list[float]:
    """Token by token the most likely one, among those that some remaining choice has there. A
    choice that has ended competes with the mean of its tokens. The score is 1 for who remains.

    Choices that share their tokens so far are one candidate: their logprobs may differ by rounding.
    """
    remaining = list(range(len(tokens)))
    for position in range(max(map(len, tokens))):
        if len(remaining) == 1:
            break
        best: dict[int | str | None, float] = {}
        places: dict[int | str | None, list[int]] = {}
        for index in remaining:
            choice = tokens[index]
            ended = position >= len(choice)
            key = None if ended else choice[position].token
            logprob = _mean(_logprobs(choice)) if ended else _logprobs(choice)[position]
            best[key] = max(logprob, best.get(key, logprob))
            places.setdefault(key, []).append(index)
        remaining = places[max(best, key=lambda key: best[key])]
    return [float(index in remaining) for index in range(len(tokens))]


def _by_gain(tokens: Sequence[Tokens], alone: Sequence[Tokens]) -> list[float]:
    """How much more likely the prompt makes the choice (Brown et al., arXiv 2005.14165, 2.4)."""
    return [
        _mean([a - b for a, b in zip(_logprobs(given), _logprobs(bare), strict=True)])
        for given, bare in zip(tokens, alone, strict=True)
    ]


def _logprobs(tokens: Tokens) -> list[float]:
    """What is not known counts nothing: a first token that follows nothing."""
    return [token.logprob or 0.0 for token in tokens]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


token_length_normalized = ChoicesMethod("token_length_normalized", _by_mean)
greedy_token_selection = ChoicesMethod("greedy_token_selection", _by_greedy_tokens)
unconditional_likelihood_normalized = ChoicesMethod(
    "unconditional_likelihood_normalized", _by_gain, unconditional=True
)
