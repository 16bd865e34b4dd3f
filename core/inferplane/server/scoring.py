"""POST /v1/score, and /v1/embeddings, which a model that generates text refuses.

A score is the probability that a label's token comes next after a text, as SGLang computes it.
"""

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.generation import MAX_SEQUENCES
from inferplane.sampling_params import SamplingParams
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.encode import json_response
from inferplane.server.logprobs import finite
from inferplane.server.openai_fields import ShortText
from inferplane.server.prompts import prompts_of
from inferplane.server.sampling import MAX_ITEMS, renamed
from inferplane.server.service import Service, Usage, namespace
from inferplane.server.shapes import OnePrompt, Prompt

Labels = Annotated[list[int], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class EmbeddingRequest(Schema):
    no_effect: ClassVar[tuple[str, ...]] = ("user",)

    input: Prompt
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20)] | None = None
    user: ShortText | None = None


class ScoreRequest(Schema):
    """Texts or token ids: `query` is put before each of `items`, or after it (`item_first`)."""

    no_effect: ClassVar[tuple[str, ...]] = ("user",)

    query: OnePrompt
    items: Prompt
    label_token_ids: Labels
    apply_softmax: bool | None = None
    item_first: bool | None = None
    model: str | None = None
    cache_salt: ShortText | None = None
    user: ShortText | None = None


async def embeddings(service: Service, request: Request) -> Response:
    asked = await body.read(request, EmbeddingRequest)
    service.check_model(asked.model)
    prompts_of(asked.input, "input")
    raise generates_text(service, "embeddings", "serve an embedding model for that")


def generates_text(service: Service, what: str, remedy: str) -> RequestError:
    architecture = service.client.info.architecture
    return RequestError(
        f"The model '{service.names[0]}' ({architecture}) generates text and has no "
        f"{what}: {remedy}.",
        param="model",
        code="unsupported_by_model",
    )


async def score(service: Service, request: Request) -> Response:
    asked = await body.read(request, ScoreRequest)
    service.check_model(asked.model)
    prompts = await _prompts(service, asked)
    labels = asked.label_token_ids
    if len(set(labels)) != len(labels):
        raise RequestError(
            "label_token_ids has a token id more than once",
            param="label_token_ids",
            code="invalid_value",
        )
    if len(prompts) * len(labels) > MAX_SEQUENCES:
        raise RequestError(
            f"items has {len(prompts)} texts for {len(labels)} labels, more than {MAX_SEQUENCES} "
            "scores",
            param="items",
            code="invalid_value",
        )
    _check_labels(labels, service.client.info.vocab_size)
    scorer = Scorer(service, request, namespace(request, asked.cache_salt))
    with renamed(prompt="items"):
        logprobs = await scorer.score(prompts, labels)
    rows = [_row(found, asked.apply_softmax) for found in logprobs]
    return json_response(
        {
            "object": "scoring",
            "model": asked.model or service.names[0],
            "scores": rows,
            "usage": scorer.usage.body(),
        }
    )


async def _prompts(service: Service, asked: ScoreRequest) -> list[list[int]]:
    items = prompts_of(asked.items, "items")
    query = prompts_of(asked.query, "query")
    if len(query) != 1 or type(query[0]) is not type(items[0]):
        raise RequestError(
            "'query' must be one text where 'items' are texts, or one list of token ids where "
            "they are token ids.",
            param="query",
            code="invalid_type",
        )
    prompts: list[list[int]] = []
    with renamed(prompt="items"):
        for item in items:
            first, second = (item, query[0]) if asked.item_first else (query[0], item)
            if isinstance(first, str) and isinstance(second, str):
                prompts.append(await service.generator.encode(first + second))
            elif isinstance(first, list) and isinstance(second, list):
                prompts.append(first + second)
    return prompts


def _check_labels(labels: list[int], vocab_size: int) -> None:
    for label in labels:
        if not 0 <= label < vocab_size:
            raise RequestError(
                f"label_token_ids has token id {label}, outside the vocabulary of {vocab_size}",
                param="label_token_ids",
                code="invalid_value",
            )


def _row(logprobs: list[float], softmax: bool | None) -> list[float]:
    if not softmax:
        return [math.exp(logprob) for logprob in logprobs]
    top = max(logprobs)
    weights = [math.exp(logprob - top) for logprob in logprobs]
    return [weight / sum(weights) for weight in weights]


class Scorer:
    """Finds the logprobs of labels."""

    def __init__(self, service: Service, request: Request, namespace: str) -> None:
        self._service = service
        self._request = request
        self._namespace = namespace
        self.usage = Usage([])

    async def score(self, prompts: list[list[int]], labels: list[int]) -> list[list[float]]:
        """For each prompt the logprob of each label as the next token."""
        params = SamplingParams(max_tokens=1, temperature=0.0, logprobs=0, logprob_token_ids=labels)
        prepare = self._service.generator.prepare
        samples = prepare(prompts, params, namespace=self._namespace)
        self.usage = Usage(samples)
        done = await self._service.complete(self._request, samples)
        for i, completion in enumerate(done):
            self.usage.add(i, completion)
        self.usage.output = 0  # nobody asked for the tokens that these steps made
        return [[finite(logprob) for logprob in one.logprobs[0].wanted] for one in done]
