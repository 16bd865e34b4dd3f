"""Every endpoint of the server, and who may call it."""

from typing import Any

from inferplane.server import control, scoring, system
from inferplane.server.anthropic import endpoints as anthropic
from inferplane.server.chat import ChatRequest, chat
from inferplane.server.completions import CompletionRequest, completions
from inferplane.server.endpoint import Access, Endpoint
from inferplane.server.errors import ANTHROPIC, OLLAMA
from inferplane.server.native import GenerateRequest, generate
from inferplane.server.ollama import endpoints as ollama
from inferplane.server.ollama import fields
from inferplane.server.openapi import openapi
from inferplane.server.reranking import RerankRequest, rerank
from inferplane.server.responses import endpoints as responses
from inferplane.server.responses.request import ResponsesRequest

KEY = Access.KEY
RESPONSE = "/v1/responses/{response_id}"
AGAIN: dict[str, dict[str, Any]] = {
    "stream": {"type": "boolean"},
    "starting_after": {"type": "integer", "minimum": 0},
}
PAGES: dict[str, dict[str, Any]] = {
    "limit": {"type": "integer", "minimum": 1, "maximum": responses.MAX_LISTED},
    "order": {"enum": ["asc", "desc"]},
    "after": {"type": "string"},
}

ENDPOINTS = (
    Endpoint("/health/live", "GET", system.live, Access.OPEN),
    Endpoint("/health/ready", "GET", system.ready, KEY),
    Endpoint("/health", "GET", system.ready, KEY),
    Endpoint("/metrics", "GET", system.metrics, KEY),
    Endpoint("/openapi.json", "GET", openapi, KEY),
    Endpoint("/v1/models", "GET", system.models, KEY),
    Endpoint("/v1/models/{model:path}", "GET", system.model, KEY),
    Endpoint("/v1/chat/completions", "POST", chat, KEY, ChatRequest),
    Endpoint("/v1/completions", "POST", completions, KEY, CompletionRequest),
    Endpoint("/v1/responses", "POST", responses.create, KEY, ResponsesRequest),
    Endpoint("/v1/responses/input_tokens", "POST", responses.count_tokens, KEY, ResponsesRequest),
    Endpoint(RESPONSE, "GET", responses.retrieve, KEY, query=AGAIN),
    Endpoint(RESPONSE, "DELETE", responses.delete, KEY),
    Endpoint(f"{RESPONSE}/cancel", "POST", responses.cancel, KEY),
    Endpoint(f"{RESPONSE}/input_items", "GET", responses.input_items, KEY, query=PAGES),
    Endpoint("/v1/embeddings", "POST", scoring.embeddings, KEY, scoring.EmbeddingRequest),
    Endpoint("/v1/rerank", "POST", rerank, KEY, RerankRequest),
    Endpoint("/v1/score", "POST", scoring.score, KEY, scoring.ScoreRequest),
    Endpoint("/v1/messages", "POST", anthropic.messages, KEY, anthropic.MessagesRequest, ANTHROPIC),
    Endpoint(
        "/v1/messages/count_tokens",
        "POST",
        anthropic.count_tokens,
        KEY,
        anthropic.CountRequest,
        ANTHROPIC,
    ),
    Endpoint("/api/chat", "POST", ollama.chat, KEY, fields.ChatRequest, OLLAMA),
    Endpoint("/api/generate", "POST", ollama.generate, KEY, fields.GenerateRequest, OLLAMA),
    Endpoint("/api/tags", "GET", ollama.tags, KEY, None, OLLAMA),
    Endpoint("/api/show", "POST", ollama.show, KEY, fields.ShowRequest, OLLAMA),
    Endpoint("/api/version", "GET", ollama.version, KEY, None, OLLAMA),
    Endpoint("/generate", "POST", generate, KEY, GenerateRequest),
    Endpoint("/abort_request", "POST", control.abort_request, KEY, control.AbortRequest),
    Endpoint("/flush_cache", "POST", control.flush_cache, Access.ADMIN),
    Endpoint("/model_info", "GET", control.model_info, KEY),
    Endpoint("/get_model_info", "GET", control.model_info, KEY),
    Endpoint("/server_info", "GET", control.server_info, KEY),
    Endpoint("/get_server_info", "GET", control.server_info, KEY),
    Endpoint("/tokenize", "POST", system.tokenize, KEY, system.TokenizeRequest),
    Endpoint("/detokenize", "POST", system.detokenize, KEY, system.DetokenizeRequest),
)
