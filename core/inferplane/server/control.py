"""SGLang's endpoints about the server itself: what it serves, its cache, and its open requests."""

import dataclasses
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

import inferplane
from inferplane.errors import RequestError
from inferplane.server import body
from inferplane.server.body import Schema
from inferplane.server.encode import json_response
from inferplane.server.openai_fields import RequestId
from inferplane.server.service import Service, tenant

SHOWN_SETTINGS = (
    "model",
    "served_model_name",
    "device",
    "dtype",
    "max_running",
    "max_queue",
    "max_batch_tokens",
    "disable_prefix_cache",
    "disable_overlap",
    "disable_graphs",
    "enable_deterministic_inference",
)
"""the settings that /server_info tells: none that names a file, an address or a key"""


class AbortRequest(Schema):
    """`rid` is the whole name of a request, `abort_all` means all of the asking tenant's."""

    rid: RequestId | None = None
    abort_all: bool | None = None


async def model_info(service: Service, request: Request) -> Response:
    info = service.client.info
    return json_response(
        {
            "model_path": service.config.model,
            "tokenizer_path": service.config.model,
            "served_model_name": service.names[0],
            "is_generation": True,
            "model_type": info.architecture,
            "has_image_understanding": False,
            "has_audio_understanding": False,
            "preferred_sampling_params": dict(service.defaults) or None,
            "vocab_size": info.vocab_size,
            "context_length": info.max_model_len,
            "weight_version": "default",
        }
    )


async def server_info(service: Service, request: Request) -> Response:
    info = service.client.info
    settings = dataclasses.asdict(service.config)
    shown: dict[str, Any] = {name: settings[name] for name in SHOWN_SETTINGS}
    stats = service.client.stats
    shown |= {"device": info.device, "dtype": info.dtype}
    return json_response(
        {
            "version": inferplane.__version__,
            "model_path": service.config.model,
            **shown,
            "context_length": info.max_model_len,
            "max_total_num_tokens": info.kv_tokens,
            "max_running_requests": info.max_running,
            "disable_radix_cache": service.config.disable_prefix_cache,
            "tp_size": 1,
            "dp_size": 1,
            "status": "ready" if service.client.ready() else "not ready",
            "internal_states": [{"running": stats.running, "waiting": stats.waiting}],
        }
    )


async def flush_cache(service: Service, request: Request) -> Response:
    """Drops every cached prefix that no running request uses."""
    await service.client.flush_cache()
    return Response("Cache flushed.\n", media_type="text/plain")


async def abort_request(service: Service, request: Request) -> Response:
    """Ends the asking tenant's sequences of that name; how many that were is in the answer."""
    asked = await body.read(request, AbortRequest)
    if not asked.abort_all and asked.rid is None:
        raise RequestError(
            "send the 'rid' of a request, or 'abort_all'.",
            param="rid",
            code="missing_required_parameter",
        )
    owner = tenant(request)
    if asked.abort_all:
        ids = service.open_requests.of(owner)
    else:
        ids = service.open_requests.named(owner, asked.rid or "")
    for identity in ids:
        service.client.abort(identity)
    return json_response({"aborted": len(ids)})
