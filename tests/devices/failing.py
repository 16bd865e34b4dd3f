"""What must happen to requests and processes when the device fails while an engine serves; the
same for a device that pretends to and for a real one."""

import asyncio
from typing import Any

import pytest

from inferplane.config import Config
from inferplane.errors import EngineDeadError
from inferplane.ipc.client import ProcessClient
from inferplane.messages import Submit
from tests.devices.poison import POISON, ask

MODULE = "tests.devices.poison"


async def tokens(client: ProcessClient, request: Submit) -> list[int]:
    return [t async for output in client.generate(request) for t in output.tokens]


async def first(client: ProcessClient, request: Submit, began: asyncio.Event) -> None:
    async for _ in client.generate(request):
        began.set()


async def check_failure(device: str) -> str:
    """Every open request gets an error, and the process ends. Returns what the error says."""
    client = ProcessClient(Config(model="llama", device=device), module=MODULE)
    await client.start(lambda text: None)
    try:
        assert client.ready() and len(await tokens(client, ask("before", [1, 2], 5))) == 5
        began = [asyncio.Event() for _ in range(3)]
        running = [
            asyncio.create_task(first(client, ask(f"r{i}", [1, 2, 3 + i]), event))
            for i, event in enumerate(began)
        ]
        await asyncio.gather(*(event.wait() for event in began))
        assert not any(task.done() for task in running)
        poison = asyncio.create_task(tokens(client, ask("poison", [1, POISON])))
        results: list[Any] = await asyncio.gather(poison, *running, return_exceptions=True)
        assert [type(result) for result in results] == [EngineDeadError] * 4, results
        assert not client.ready() and client.died.is_set()
        with pytest.raises(EngineDeadError):
            await tokens(client, ask("later", [1, 2]))
        code = await asyncio.wait_for(asyncio.shield(client._ended), 60)
        assert code == 1, code
        return str(results[0])
    finally:
        await client.close()
