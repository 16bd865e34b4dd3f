"""What this card reaches, measured: the limits that other figures are compared with."""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch


def seconds(call: Callable[[], object], torch_device: str, repeats: int = 10) -> float:
    """Median time of one call, device work included; two calls warm it up."""
    module = torch.get_device_module(torch_device)
    times = []
    for _ in range(repeats + 2):
        module.synchronize()
        begin = time.perf_counter()
        call()
        module.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[2:])


def copy_bandwidth(torch_device: str, nbytes: int = 2**31) -> float:
    """Bytes read and written per second by a large copy on the device."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=torch_device)
    target = torch.empty_like(source)
    copy = partial(target.copy_, source)
    took = seconds(copy, torch_device)
    del source, target, copy
    # else what is allocated next and kept, such as a workspace, keeps all of that memory
    torch.get_device_module(torch_device).empty_cache()
    return 2 * nbytes / took


def product_rate(torch_device: str, size: int = 8192) -> float:
    """Operations per second of a bf16 matrix product [size, size] x [size, size]."""
    a, b = (torch.randn(size, size, dtype=torch.bfloat16, device=torch_device) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, torch_device)
