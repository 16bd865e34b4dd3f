"""POST /v1/rerank, as SGLang serves it with a model that generates text.

Such a model ranks documents if it was trained to answer yes or no to "does the document fit the
query?", as Qwen3-Reranker is (arXiv 2506.05176): the score is how much likelier yes is. Its chat
template writes the question; by that the model is known.
"""

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from inferplane.errors import RequestError
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.encode import json_response
from inferplane.server.openai_fields import ShortText
from inferplane.server.sampling import MAX_ITEMS, renamed
from inferplane.server.scoring import Scorer, generates_text
from inferplane.server.service import Service, namespace

LABELS = ("yes", "no")
SIGNS = ("answer can only be", '"yes"', '"no"')
"""what the question of a reranker's template says, in any case"""

Documents = Annotated[list[str], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)]


class RerankRequest(Schema):
    """`instruct` says what makes a document fit; None: what the template says."""

    no_effect: ClassVar[tuple[str, ...]] = ("user",)

    query: str
    documents: Documents
    model: str | None = None
    top_n: Annotated[int, Field(ge=1, le=MAX_ITEMS)] | None = None
    return_documents: bool | None = None
    instruct: str | None = None
    cache_salt: ShortText | None = None
    user: ShortText | None = None

    def check(self) -> None:
        for name, texts in (("query", [self.query]), ("documents", self.documents)):
            if not all(text.strip() for text in texts):
                raise RequestError(f"'{name}' has an empty text.", param=name, code="invalid_value")


async def rerank(service: Service, request: Request) -> Response:
    """[{"score", "document", "index", "meta_info"}], the best first."""
    asked = await body.read(request, RerankRequest)
    service.check_model(asked.model)
    asked.check()
    labels = _labels(service)
    prompts = [await _prompt(service, asked, document) for document in asked.documents]
    scorer = Scorer(service, request, namespace(request, asked.cache_salt))
    with renamed(prompt="documents"):
        found = await scorer.score(prompts, labels)
    results = []
    for index, (yes, no) in enumerate(found):
        result: dict[str, Any] = {"score": 1 / (1 + math.exp(min(no - yes, 700.0)))}
        if asked.return_documents is not False:
            result["document"] = asked.documents[index]
        meta = {"prompt_tokens": len(prompts[index])}
        results.append({**result, "index": index, "meta_info": meta})
    results.sort(key=lambda result: -result["score"])
    return json_response(results[: asked.top_n])


def _labels(service: Service) -> list[int]:
    """The tokens of the two answers. RequestError if the model is no reranker."""
    tokenizer = service.generator.tokenizer
    template = tokenizer.chat_template
    text = template.source.lower() if template else ""
    if not all(sign in text for sign in SIGNS):
        raise generates_text(
            service,
            "a relevance score for documents, nor a reranker's chat template, which asks for "
            '"yes" or "no"',
            "start the server with the --chat-template of a reranker such as Qwen3-Reranker, or "
            "use /v1/score with the token ids of the labels that your prompt asks for",
        )
    labels = [tokenizer.encode(label, add_special_tokens=False) for label in LABELS]
    if any(len(ids) != 1 for ids in labels):
        raise generates_text(
            service, 'one token for each of "yes" and "no"', "use /v1/score with other labels"
        )
    return [ids[0] for ids in labels]


async def _prompt(service: Service, asked: RerankRequest, document: str) -> list[int]:
    """Templates find query and document by place, by role or by name."""
    messages = [
        {"role": "query", "content": asked.query},
        {"role": "document", "content": document},
    ]
    variables: dict[str, Any] = {"query": asked.query, "document": document}
    if asked.instruct is not None:
        messages.append({"role": "system", "content": asked.instruct})
        variables["instruct"] = asked.instruct
    with renamed(messages="documents", prompt="documents"):
        return await service.generator.encode_chat(messages, **variables)
