"""Who may import whom."""

import sys

import pytest

from tests.rules.source import PRODUCT, Source, imports, snippet, sources, within

CONTRACT = ("inferplane.hw", "inferplane.errors", "inferplane.testing")
BACKENDS = tuple(sorted({s.package for s in sources("backends") if s.module}))

# module prefix -> what of this project it may import, besides itself
ALLOWED = {
    "inferplane_models": ("inferplane.hw", "inferplane.errors", "inferplane.layers"),
    "inferplane.hw": ("inferplane.hw", "inferplane.errors", "inferplane.env"),
    "inferplane": ("inferplane",),
} | dict.fromkeys(BACKENDS, CONTRACT)

# only these may import the key
RESERVED = {
    "inferplane.server": ("inferplane.server", "inferplane.cli"),
    "inferplane.cli": ("inferplane.cli", "inferplane.__main__"),
    "inferplane.testing": ("inferplane.testing", *BACKENDS),
}

# never imported when the key is imported, not even under a function: see also test_imports.py
WITHOUT_TORCH = ("inferplane.scheduling", "inferplane.messages", "inferplane.config")


def is_ours(name: str) -> bool:
    return name.split(".")[0].startswith("inferplane")


def violations(source: Source) -> list[str]:
    rule = next(p for p in sorted(ALLOWED, reverse=True) if within(source.module, p))
    found = []
    for item in imports(source.tree):
        where = f"{source.path}:{item.line}: imports {item.name}"
        own = item.name.split(".")[0] == source.package and source.package != "inferplane"
        if is_ours(item.name) and not own and not within(item.name, *ALLOWED[rule]):
            found.append(f"{where}: {rule} may import only {', '.join(ALLOWED[rule])}")
        for reserved, users in RESERVED.items():
            if within(item.name, reserved) and not within(source.module, *users):
                found.append(f"{where}: only {', '.join(users)} may")
        if within(item.name, "tests", "ci"):
            found.append(f"{where}: nothing imports tests or ci")
        if within(item.name, "torch") and within(source.module, *WITHOUT_TORCH):
            found.append(f"{where}: {source.module} works without torch")
        is_plugin = source.package in BACKENDS and source.module.endswith(".plugin")
        harmless = own or within(item.name, *CONTRACT, *sys.stdlib_module_names)
        if is_plugin and item.at_top and not harmless:
            found.append(f"{where}: a plugin imports vendor libraries only inside hooks")
    return found


@pytest.mark.parametrize("source", [s for s in sources(*PRODUCT) if s.module], ids=lambda s: s.path)
def test_layers(source: Source) -> None:
    assert violations(source) == []


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("inferplane.engine", "import inferplane_models.llama"),
        ("inferplane.engine", "def f():\n    from inferplane_xeon import plugin"),
        ("inferplane.engine", "from inferplane.server import app"),
        ("inferplane.engine", "from inferplane import server"),
        ("inferplane.runner.runner", "from inferplane.testing import null"),
        ("inferplane.hw.op", "from inferplane.config import Config"),
        ("inferplane.hw.op", "if TYPE_CHECKING:\n    from inferplane.config import Config"),
        ("inferplane.scheduling.scheduler", "try:\n    pass\nexcept OSError:\n    import torch"),
        ("inferplane.scheduling.scheduler", "import tests.rules"),
        ("inferplane_models.llama", "from inferplane.runner import Runner"),
        ("inferplane_cuda.driver", "from inferplane.config import Config"),
        ("inferplane_cuda.driver", "import inferplane_rocm"),
        ("inferplane_cuda.plugin", "import torch"),
        ("inferplane_ascend.plugin", "class A:\n    import torch_npu"),
    ],
)
def test_control_each_violation_is_found(module: str, text: str) -> None:
    assert len(violations(snippet(module, text))) == 1


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("inferplane.engine", "from inferplane.scheduling.scheduler import Scheduler"),
        ("inferplane.cli.main", "from inferplane.server.app import create"),
        ("inferplane_models.llama", "from inferplane.layers import Linear\nimport torch"),
        ("inferplane_cuda.plugin", "import ctypes\ndef create_device():\n    import torch"),
        ("inferplane_cuda.plugin", "if TYPE_CHECKING:\n    from torch import Tensor"),
        ("inferplane_cuda.plugin", "from inferplane_cuda.driver import gpus"),
    ],
)
def test_control_what_is_allowed_passes(module: str, text: str) -> None:
    assert violations(snippet(module, text)) == []
