"""How the tokens of one request are chosen. Knows nothing about text, HTTP or devices."""

import json
import math
from typing import Any, Literal

import msgspec

from inferplane.errors import RequestError

MAX_LOGPROBS = 20
MAX_LOGPROB_TOKEN_IDS = 1024
MAX_WANTED_LOGPROBS = 2**20
"""logprobs of logprob_token_ids over all positions of a sequence"""
MAX_SAMPLES = 128
MAX_STOP_STRINGS = 16
MAX_STOP_TOKENS = 64
MAX_CONSTRAINT_CHARS = 256 * 1024
MAX_MARKER_CHARS = 64

Kind = Literal["json_schema", "regex", "ebnf", "structural_tag"]
KINDS: tuple[Kind, ...] = ("json_schema", "regex", "ebnf", "structural_tag")


class Constraint(msgspec.Struct, frozen=True):
    """What the output must be. The kinds are the fields of SamplingParams; see there.

    `after`: the constraint begins behind the first occurrence of this text in the output, such as
    the end of a reasoning section. "": at once.
    """

    kind: Kind
    text: str
    after: str = ""

    def fields(self) -> dict[str, Any]:
        """The fields of SamplingParams that demand it: structs.replace(params, **c.fields())."""
        others: dict[str, Any] = dict.fromkeys(KINDS)
        return {**others, self.kind: self.text, "constrain_after": self.after}


def json_schema_constraint(schema: dict[str, Any] | bool) -> Constraint:
    """Output must be JSON that the schema (drafts 4 to 2020-12) allows."""
    return Constraint("json_schema", json.dumps(schema, ensure_ascii=False))


def json_object_constraint() -> Constraint:
    """Output must be any one JSON object."""
    return json_schema_constraint({"type": "object"})


class Tag(msgspec.Struct, frozen=True):
    """`begin`, then JSON that `schema` allows, then `end`."""

    begin: str
    schema: dict[str, Any] | bool
    end: str


def structural_tag_constraint(
    tags: list[Tag], triggers: list[str], *, required: bool = False, many: bool = True
) -> Constraint:
    """Free text in which every `trigger` begins one of the tags, which then must be completed:
    "free text, then <tool_call>{json}</tool_call>". Each tag's `begin` starts with one trigger.

    `required`: the output begins with a tag, and has no free text. `many`: after a tag there may
    be more of them. Without `many` the output ends with the first tag.
    """
    spec = {
        "structures": [{"begin": t.begin, "schema": t.schema, "end": t.end} for t in tags],
        "triggers": triggers,
        "at_least_one": required,
        "stop_after_first": not many,
    }
    return Constraint("structural_tag", json.dumps(spec, ensure_ascii=False))


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sampling settings; field names and meanings follow vLLM and SGLang.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 switch their filter off. `logprobs` None
    returns none, 0 only that of the chosen token, n also the n most likely. Logprobs are of the
    raw distribution, before temperature, penalties and bias. `prompt_logprobs` is the same for the
    prompt, from its token `prompt_logprobs_start` on: those before may come from the prefix cache,
    except for the one that it follows. `logprob_token_ids` are tokens whose logprobs are wanted
    wherever one of these two scores a position. Penalties: repetition as in CTRL
    (arXiv 1909.05858) over prompt and output; frequency and presence as in OpenAI's API, over the
    output alone. Without a `seed` each request draws its own.

    At most one of `json_schema` (a schema as JSON text), `regex` (the whole output matches),
    `ebnf` (a grammar in GBNF or Lark notation) and `structural_tag` (JSON text, see
    structural_tag_constraint) restricts the output, from the first token or from behind the first
    occurrence of the text `constrain_after`. `constraint` is what they say.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: list[str] = []
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    prompt_logprobs_start: int = 0
    logprob_token_ids: list[int] = []
    json_schema: str | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: str | None = None
    constrain_after: str = ""

    @property
    def constraint(self) -> Constraint | None:
        for kind in KINDS:
            text = getattr(self, kind)
            if text is not None:
                return Constraint(kind, text, self.constrain_after)
        return None

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )

    def verify(self, vocab_size: int) -> None:
        """Check every range; raises RequestError naming the field."""
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_k", self.top_k, -1, 2**31 - 1)
        _in_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        _in_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("n", self.n, 1, MAX_SAMPLES)
        _in_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _in_range("prompt_logprobs_start", self.prompt_logprobs_start, 0, 2**31 - 1)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**64 - 1)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens is {self.min_tokens}, more than max_tokens {self.max_tokens}",
                    param="min_tokens",
                )
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _in_range(name, count, 0, MAX_LOGPROBS)
        self._verify_lists(vocab_size)
        self._verify_wanted()
        self.verify_constraint()

    def _verify_lists(self, vocab_size: int) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(
                f"stop has {len(self.stop)} strings, at most {MAX_STOP_STRINGS}", param="stop"
            )
        if any(not s or len(s) > 1024 for s in self.stop):
            raise RequestError("stop strings must have 1 to 1024 characters", param="stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKENS:
            raise RequestError(
                f"stop_token_ids has {len(self.stop_token_ids)} ids, at most {MAX_STOP_TOKENS}",
                param="stop_token_ids",
            )
        if len(self.logit_bias) > 1024:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries, at most 1024", param="logit_bias"
            )
        for name, ids in (
            ("stop_token_ids", self.stop_token_ids),
            ("logit_bias", list(self.logit_bias)),
            ("logprob_token_ids", self.logprob_token_ids),
        ):
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise RequestError(
                        f"{name} has token id {token}, outside the vocabulary of {vocab_size}",
                        param=name,
                    )
        for value in self.logit_bias.values():
            _in_range("logit_bias", value, -100.0, 100.0)

    def _verify_wanted(self) -> None:
        count = len(self.logprob_token_ids)
        if count > MAX_LOGPROB_TOKEN_IDS:
            why = f"has {count} ids, at most {MAX_LOGPROB_TOKEN_IDS}"
        elif count and self.logprobs is None and self.prompt_logprobs is None:
            why = "needs logprobs or prompt_logprobs, which say where they are wanted"
        else:
            return
        raise RequestError(f"logprob_token_ids {why}", param="logprob_token_ids")

    def verify_wanted_size(self, prompt_len: int, max_tokens: int) -> None:
        """RequestError if logprob_token_ids would give too many figures for such a sequence."""
        scored = 0 if self.logprobs is None else max_tokens
        if self.prompt_logprobs is not None:
            scored += max(0, prompt_len - self.prompt_logprobs_start)
        ids = len(self.logprob_token_ids)
        if ids * scored > MAX_WANTED_LOGPROBS:
            raise RequestError(
                f"logprob_token_ids has {ids} ids for up to {scored} tokens, more than"
                f" {MAX_WANTED_LOGPROBS} figures: send fewer ids, lower max_tokens or score less of"
                " the prompt",
                param="logprob_token_ids",
            )

    def verify_constraint(self) -> None:
        """The part of `verify` that is about the output's form."""
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) > 1:
            raise RequestError(
                f"{given[0]} and {given[1]} exclude each other: send one of them", param=given[1]
            )
        for kind in given:
            size = len(getattr(self, kind))
            if size > MAX_CONSTRAINT_CHARS:
                raise RequestError(
                    f"{kind} has {size} characters, at most {MAX_CONSTRAINT_CHARS}", param=kind
                )
        if len(self.constrain_after) > MAX_MARKER_CHARS or (self.constrain_after and not given):
            raise RequestError(
                f"constrain_after must have at most {MAX_MARKER_CHARS} characters, and needs one"
                f" of {', '.join(KINDS)}",
                param="constrain_after",
            )


def _in_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        left = "(" if open_low else "["
        raise RequestError(f"{name} is {value}, outside {left}{low}, {high}]", param=name)
