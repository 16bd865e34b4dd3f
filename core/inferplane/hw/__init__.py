"""The hardware contract: all that a backend or a model package may import from core.

A new backend reads, in this order: hookspecs.py (what to implement), device.py (what a device can
do), op.py (what an implementation of an op is), ops/ (the op table with its references), kv.py,
batch.py, graphs.py. Importing this package imports no torch.
"""

from inferplane.hw.batch import ForwardBatch, StepPlan
from inferplane.hw.device import (
    BackendInfo,
    Device,
    DeviceInfo,
    Event,
    Hints,
    Peak,
    Stream,
    Traits,
    Unavailable,
)
from inferplane.hw.graphs import Breakable, Compiler, Graph, GraphBackend
from inferplane.hw.hookspecs import impl
from inferplane.hw.host import HostThreads
from inferplane.hw.kv import CANONICAL, KVGroup, KVLayout, KVSpec, LayerKV, StridedLayout
from inferplane.hw.op import (
    Bound,
    BuildContext,
    Op,
    OpImpl,
    Packing,
    Reference,
    Reject,
    Support,
    Tolerance,
    rounding,
)
from inferplane.hw.quantization import QuantizedWeight, Scheme
from inferplane.hw.torch_device import TorchDevice
from inferplane.hw.version import CONTRACT

__all__ = [
    "CANONICAL",
    "CONTRACT",
    "BackendInfo",
    "Bound",
    "Breakable",
    "BuildContext",
    "Compiler",
    "Device",
    "DeviceInfo",
    "Event",
    "ForwardBatch",
    "Graph",
    "GraphBackend",
    "Hints",
    "HostThreads",
    "KVGroup",
    "KVLayout",
    "KVSpec",
    "LayerKV",
    "Op",
    "OpImpl",
    "Packing",
    "Peak",
    "QuantizedWeight",
    "Reference",
    "Reject",
    "Scheme",
    "StepPlan",
    "Stream",
    "StridedLayout",
    "Support",
    "Tolerance",
    "TorchDevice",
    "Traits",
    "Unavailable",
    "impl",
    "rounding",
]
