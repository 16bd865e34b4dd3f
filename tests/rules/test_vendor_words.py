"""core/ and models/ know no vendor: not in code, strings or comments."""

import re

import pytest

from tests.rules.source import Source, snippet, sources

WORDS = frozenset(
    "nvidia cuda cudnn cublas cutlass nccl nvml ptx hopper blackwell tensorrt flashinfer "
    "amd rocm hip hipblas rccl miopen aiter instinct radeon gfx "
    "intel xeon mkl onednn avx amx vnni ipex sycl xpu oneapi epyc neon "
    "tpu xla libtpu pallas mosaic pjrt "
    "huawei ascend npu cann hccl davinci acl "
    "triton mps habana gaudi hpu trainium inferentia cerebras musa".split()
)
SPLIT = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def words(text: str) -> list[str]:
    """Words of identifiers and prose: `is_cuda`, `CudaGraph` and `torch.cuda` hold "cuda"."""
    return [word.lower() for word in SPLIT.findall(text)]


def violations(source: Source) -> list[str]:
    return [
        f"{source.path}:{number}: {word!r} in {line.strip()!r}"
        for number, line in enumerate(source.text.splitlines(), 1)
        for word in words(line)
        if word in WORDS
    ]


@pytest.mark.parametrize("source", sources("core", "models"), ids=lambda s: s.path)
def test_no_vendor_words(source: Source) -> None:
    assert violations(source) == []


@pytest.mark.parametrize(
    "line",
    [
        "torch.cuda.synchronize()",
        "class CudaGraph:",
        "def is_hip():",
        "USE_NPU = 1  # on Ascend",
        "'''Works on the TPU.'''",
        "device = 'xeon:0'",
        "import torch_xla",
        "NCCLGroup()",
    ],
)
def test_control_vendor_words_are_found(line: str) -> None:
    assert violations(snippet("inferplane.engine", line))


def test_control_other_words_are_not_found() -> None:
    text = "input_ids = sorted(ids)  # ascending, chipset, ship, hyperbolic, cannot, oracle, nputs"
    assert violations(snippet("inferplane.engine", text)) == []
