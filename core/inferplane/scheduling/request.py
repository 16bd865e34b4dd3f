"""One sequence between its submission and its end, as the scheduler sees it.

Knows nothing about text. A token is computed once its KV is written by some scheduled step. A
sampled token that the device has not yet reported is pending:

    0 ............ computed ............ len(tokens) ............ length
    KV is written   to be computed                     pending

A request decodes once it has sampled in its present row: then computed == length - 1, and its
next input token is in the device's tables.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from inferplane.errors import RequestError
from inferplane.hw.batch import RowInit
from inferplane.messages import Submit, TokenLogprobs
from inferplane.sampling_params import SamplingParams
from inferplane.scheduling.pages import KVGroupPages
from inferplane.scheduling.prefix_cache import Node

MAX_STOP_IDS = 64


@dataclass(slots=True, eq=False)
class Request:
    """Fields above the blank line are set at submission, the others by the scheduler."""

    request_id: str
    params: SamplingParams
    tokens: "array[int]"  # prompt and reported output
    prompt_len: int
    limit: int  # the sequence's length when it must end
    stop_ids: frozenset[int]
    seed: int
    sample_index: int
    namespace: str
    order: tuple[int, int]  # (priority, arrival): who goes first
    submitted_at: float

    length: int = 0  # tokens and pending ones
    computed: int = 0
    row: int = 0  # 0: waiting or ended
    decoding: bool = False
    ended: bool = False
    node: Node | None = None  # locked end of the request's path in the prefix cache
    stored: int = 0  # pages on that path
    pages: list[list[int]] = field(default_factory=list)  # by group and column; 0: given back
    given_back: list[int] = field(default_factory=list)  # by group: leading columns that are 0
    capacity: int = 0  # tokens that the pages can hold
    reported: int = 0  # tokens that need no report: the prompt, and output already reported
    recount: bool = False  # tokens were appended that the device's penalty counts lack
    retractions: int = 0
    cached_tokens: int | None = None  # at first admission
    scored: int = 0  # prompt tokens whose successor's logprob has been reported or is not wanted
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    need: list[int] | None = None  # pages by group that it lacked when it could not be admitted
    retry_at: int = 0  # step at which the prefix cache is looked up again

    @property
    def pending(self) -> int:
        return self.length - len(self.tokens)

    @property
    def top_logprobs(self) -> int:
        """As in StepPlan.logprobs."""
        return -1 if self.params.logprobs is None else self.params.logprobs

    @property
    def match_limit(self) -> int:
        """How many tokens may come from the prefix cache: the last one is always computed, and so
        are those whose successor's logprob is still wanted."""
        if self.prompt_logprobs is not None and self.scored < self.prompt_len - 1:
            return self.scored
        return len(self.tokens) - 1

    def row_init(self) -> RowInit:
        p = self.params
        return RowInit(
            row=self.row,
            num_computed=self.computed,
            seed=self.seed,
            sample_index=self.sample_index,
            temperature=p.temperature,
            top_k=p.top_k,
            top_p=p.top_p,
            min_p=p.min_p,
            repetition_penalty=p.repetition_penalty,
            frequency_penalty=p.frequency_penalty,
            presence_penalty=p.presence_penalty,
            min_len=self.prompt_len + p.min_tokens,
            stop_ids=sorted(self.stop_ids),
            logit_bias=p.logit_bias,
            prompt_len=self.prompt_len,
            tokens=self.tokens.tolist() if p.has_penalties else [],
        )


def verify_size(
    submit: Submit, max_model_len: int, page_size: int, groups: Sequence[KVGroupPages]
) -> None:
    """RequestError for a sequence that could never run, even alone."""
    count = len(submit.prompt)
    if count == 0:
        raise RequestError("prompt has 0 tokens: give at least 1", param="prompt")
    if submit.max_tokens < 1:
        raise RequestError(
            f"max_tokens is {submit.max_tokens}, must be at least 1", param="max_tokens"
        )
    if len(submit.stop_ids) > MAX_STOP_IDS:
        raise RequestError(
            f"stop_token_ids and the model's end tokens are {len(submit.stop_ids)} ids,"
            f" at most {MAX_STOP_IDS}",
            param="stop_token_ids",
        )
    if count >= max_model_len:
        raise RequestError(
            f"prompt of {count} tokens leaves no room for an answer: shorten it to"
            f" {max_model_len - 1} or raise --max-model-len ({max_model_len})",
            param="prompt",
            code="context_length_exceeded",
        )
    length = min(count + submit.max_tokens, max_model_len) - 1  # the last token is never computed
    for group in groups:
        need, have = group.pages_for(length, page_size), group.num_pages - 1
        if need > have:
            where = f" of group {group.name}" if len(groups) > 1 else ""
            raise RequestError(
                f"prompt of {count} tokens and max_tokens {submit.max_tokens} need {need}"
                f" pages{where}, the KV cache has {have}: shorten the prompt, lower max_tokens"
                " or raise --kv-cache-tokens",
                param="prompt",
            )


def new_request(submit: Submit, max_model_len: int, arrival: int, now: float) -> Request:
    prompt_len = len(submit.prompt)
    wants_prompt = submit.params.prompt_logprobs is not None
    try:
        tokens = array("i", submit.prompt)
    except OverflowError:
        raise RequestError("prompt has a token id beyond 32 bits", param="prompt") from None
    return Request(
        request_id=submit.request_id,
        params=submit.params,
        tokens=tokens,
        prompt_len=prompt_len,
        limit=min(prompt_len + submit.max_tokens, max_model_len),
        stop_ids=frozenset(submit.stop_ids),
        seed=submit.seed,
        sample_index=submit.sample_index,
        namespace=submit.namespace,
        order=(submit.priority, arrival),
        submitted_at=now,
        length=prompt_len,
        reported=prompt_len,
        prompt_logprobs=[None] * prompt_len if wants_prompt else None,
        scored=max(0, submit.params.prompt_logprobs_start - 1),
    )
