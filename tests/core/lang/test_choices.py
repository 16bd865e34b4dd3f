"""The three ways to decide, on figures made up by hand."""

import pytest

import inferplane.lang as sgl
from inferplane.lang.choices import ChoicesMethod, Scored, Tokens


def tokens(text: str) -> Tokens:
    """ "a-1 b-2" is two tokens with their logprobs."""
    pairs = [word.partition("-") for word in text.split()]
    return [Scored(-float(logprob), name) for name, _, logprob in pairs]


@pytest.mark.parametrize(
    ("method", "best"),
    [
        # sums: -3, -3.2, -2.5; means: -1.5, -0.8, -2.5
        (sgl.token_length_normalized, 1),
        # a beats c at once; then b (-1) beats the rest of the second choice (d, -1.2)
        (sgl.greedy_token_selection, 0),
    ],
)
def test_long_choices_are_not_at_a_disadvantage(method: ChoicesMethod, best: int) -> None:
    choices = [tokens("a-2 b-1"), tokens("a-2 d-1.2 e-0 f-0"), tokens("c-2.5")]
    assert method.decide(choices)[0] == best


def test_greedy_compares_a_choice_that_has_ended_by_its_mean() -> None:
    short, long = tokens("a-1 b-3"), tokens("a-1 b-3 c-1.5")
    assert sgl.greedy_token_selection.decide([short, long])[0] == 1  # -1.5 against a mean of -2
    assert sgl.greedy_token_selection.decide([short, tokens("a-1 b-3 c-2.5")])[0] == 0


def test_greedy_is_not_fooled_by_rounding_in_what_choices_share() -> None:
    first, second = tokens("a-1.0000001 b-1"), tokens("a-1 c-2")
    assert sgl.greedy_token_selection.decide([first, second])[0] == 0


def test_the_gain_over_the_choice_alone_decides() -> None:
    choices = [tokens("a-1 b-1"), tokens("c-2 d-2")]
    alone = [tokens("a-1 b-1"), [Scored(None, "c"), Scored(-9.0, "d")]]
    best, meta = sgl.unconditional_likelihood_normalized.decide(choices, alone)
    assert best == 1
    assert meta["scores"] == [0.0, 2.5]
    assert meta["unconditional_token_logprobs"][1][0] == [None, "c", None]
    assert sgl.token_length_normalized.decide(choices)[0] == 0


def test_the_first_of_equals_wins() -> None:
    same = [tokens("a-1"), tokens("b-1")]
    for method in (sgl.token_length_normalized, sgl.greedy_token_selection):
        best, meta = method.decide(same)
        assert (best, meta["normalized_prompt_logprobs"]) == (0, [-1.0, -1.0])
