"""Constructs that this project never uses, and the environment, which only env.py touches."""

import ast
import re
from collections.abc import Iterator

import pytest

from inferplane import env
from tests.rules.source import PRODUCT, REPO, Source, imports, snippet, sources, within

MODULES = {
    "pickle": "unpickling runs code",
    "cPickle": "unpickling runs code",
    "cloudpickle": "unpickling runs code",
    "dill": "unpickling runs code",
    "joblib": "its loader unpickles",
    "marshal": "crashes on bad input",
    "shelve": "pickles",
    "abc": "Protocol for contracts, dataclass for data, ABC nowhere",
    "inferplane.utils": "modules are nouns",
    "inferplane.helpers": "modules are nouns",
}
NAMES = {
    "eval": "runs text",
    "exec": "runs text",
    "compile": "makes code of text",
    "torch.load": "unpickles; weights are safetensors or GGUF",
    "os.system": "a shell",
    "os.popen": "a shell",
    "subprocess.getoutput": "a shell",
    "subprocess.getstatusoutput": "a shell",
    "yaml.load": "builds any object; use safe_load",
    "yaml.unsafe_load": "builds any object; use safe_load",
    "jinja2.Environment": "templates come with models: use the sandbox",
    "jinja2.Template()": "templates come with models: use the sandbox",
    "jinja2.environment.Environment": "templates come with models: use the sandbox",
    "jinja2.nativetypes.NativeEnvironment": "templates come with models: use the sandbox",
    "multiprocessing.Pipe": "its connections pickle",
    "multiprocessing.Queue": "pickles",
}
ARGUMENTS = {
    ("shell", True): "a shell",
    ("allow_pickle", True): "unpickles",
    ("trust_remote_code", True): "runs the code of a model's author",
    ("weights_only", False): "unpickles",
}
ENVIRONMENT = ("os.environ", "os.environb", "os.getenv", "os.putenv", "os.unsetenv")
ENV_FILE = "core/inferplane/env.py"
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|raise NotImplementedError)\b")
VARIABLE = re.compile(r"\bINFERPLANE_[A-Z_]+\b")


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an attribute chain, "" if it does not start at a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def aliases(tree: ast.Module) -> dict[str, str]:
    """Local name -> what it was imported as."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            found |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return found


def uses(source: Source) -> Iterator[tuple[str, int]]:
    """Every name used, under the name that it was imported from; with () where it is called."""
    known = aliases(source.tree)
    for node in ast.walk(source.tree):
        called = isinstance(node, ast.Call)
        named = node.func if isinstance(node, ast.Call) else node
        if isinstance(named, ast.Name | ast.Attribute):
            first, dot, rest = dotted(named).partition(".")
            yield known.get(first, first) + dot + rest + "()" * called, named.lineno


def violations(source: Source) -> list[str]:
    found = [
        f"{source.path}:{item.line}: imports {item.name}: {MODULES[m]}"
        for item in imports(source.tree)
        for m in MODULES
        if within(item.name, m)
    ]
    for name, line in uses(source):
        if name in NAMES:
            found.append(f"{source.path}:{line}: {name}: {NAMES[name]}")
        core = not source.path.startswith("backends")
        if name in ENVIRONMENT and core and source.path != ENV_FILE:
            found.append(f"{source.path}:{line}: {name}: only {ENV_FILE} touches it")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{source.path}:{node.lineno}: relative import")
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            why = ARGUMENTS.get((node.arg or "", node.value.value))
            if why and isinstance(node.value.value, bool):
                found.append(f"{source.path}:{node.value.lineno}: {node.arg}: {why}")
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for variable in VARIABLE.findall(node.value):
                if variable not in env.VARIABLES:
                    found.append(f"{source.path}:{node.lineno}: {variable} is not in {ENV_FILE}")
    for number, line in enumerate(source.text.splitlines(), 1):
        if UNFINISHED.search(line):
            found.append(f"{source.path}:{number}: unfinished: {line.strip()}")
    return found


@pytest.mark.parametrize("source", sources(*PRODUCT), ids=lambda s: s.path)
def test_nothing_forbidden(source: Source) -> None:
    assert violations(source) == []


def test_environment_variables_are_few_and_have_readers() -> None:
    assert len(env.VARIABLES) <= 8
    text = (REPO / ENV_FILE).read_text()
    for name in env.VARIABLES:
        assert text.count(f'environ.get("{name}")') == 1, name


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from abc import ABC",
        "def f():\n    import dill",
        "x = eval('1')",
        "def f(g=exec):\n    g('1')",
        "import torch\ntorch.load('x')",
        "import torch as t\nt.load('x')",
        "from torch import load\nload('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "from os import system\nsystem('ls')",
        "import yaml\nyaml.load('x')",
        "import jinja2\njinja2.Environment()",
        "from jinja2 import Template\nTemplate('x')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "AutoConfig.from_pretrained('x', trust_remote_code=True)",
        "import os\nos.environ['X']",
        "from os import environ\nenviron.get('X')",
        "import os\nos.getenv('X')",
        "from . import config",
        "NAME = 'INFERPLANE_SECRET_SWITCH'",
        "raise NotImplementedError",
        "x = 1  # TODO: later",
    ],
)
def test_control_each_violation_is_found(text: str) -> None:
    assert len(violations(snippet("inferplane.engine", text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "import torch\ntorch.compile(f)",
        "from jinja2.sandbox import ImmutableSandboxedEnvironment\nImmutableSandboxedEnvironment()",
        "from jinja2 import Template\ndef f(template: Template): ...",
        "from inferplane import env\nenv.api_key()",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "self.load('x')",
        "NAME = 'INFERPLANE_API_KEY'",
    ],
)
def test_control_what_is_allowed_passes(text: str) -> None:
    assert violations(snippet("inferplane.engine", text)) == []


def test_control_the_environment_is_for_env_and_for_backends() -> None:
    text = "import os\nos.environ.get('X')"
    assert violations(snippet("inferplane.env", text, ENV_FILE)) == []
    assert (
        violations(snippet("inferplane_x.plugin", text, "backends/x/inferplane_x/plugin.py")) == []
    )
