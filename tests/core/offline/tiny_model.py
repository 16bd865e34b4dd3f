"""A model whose answers are known, and backends that run on any machine, as installed packages.

After a lower-case letter the model says the next one, after z the end of sequence, after anything
else a: "abc" is completed with "defghijklmnopqrstuvwxyz". Its vocabulary is bytes.
"""

import json
import string
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.core.server.byte_model import EOS, TEMPLATE, VOCAB_SIZE, byte_tokenizer

HIDDEN, INNER, HEADS = 288, 16, 4
ALPHABET = string.ascii_lowercase
CONFIG = {
    "model_type": "llama",
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": 1,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": EOS,
    "torch_dtype": "float32",
}
WEIGHTS = 4 * (2 * VOCAB_SIZE * HIDDEN + 3 * HIDDEN + 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER)
"""bytes"""


def next_token(token: int) -> int:
    letter = chr(token) if token < 128 else ""
    if letter == "z":
        return EOS
    return token + 1 if letter and letter in ALPHABET else ord("a")


def write_model(folder: Path) -> Path:
    """Layers of zeros, so that the last token alone decides."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.0}))
    (folder / "tokenizer.json").write_text(byte_tokenizer()._backend.to_str())
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    embedding = torch.eye(VOCAB_SIZE, HIDDEN)
    head = torch.zeros(VOCAB_SIZE, HIDDEN)
    for token in range(VOCAB_SIZE):
        head[next_token(token), token] = 1.0
    layer, attention, mlp = "model.layers.0", {}, {}
    for name in "qkvo":
        attention[f"{layer}.self_attn.{name}_proj.weight"] = torch.zeros(HIDDEN, HIDDEN)
    for name, shape in (
        ("gate", (INNER, HIDDEN)),
        ("up", (INNER, HIDDEN)),
        ("down", (HIDDEN, INNER)),
    ):
        mlp[f"{layer}.mlp.{name}_proj.weight"] = torch.zeros(shape)
    norms = ("model.norm", f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm")
    tensors = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        **{f"{name}.weight": torch.ones(HIDDEN) for name in norms},
        **attention,
        **mlp,
    }
    save_file(tensors, folder / "model.safetensors")
    return folder


PLAIN = '''
from inferplane.hw import BackendInfo, DeviceInfo, Reject, Support, TorchDevice, impl
from inferplane.hw.ops import TABLE


class Norm:
    """The reference under another name."""

    def __init__(self, name, only=None):
        self.name, self.only = name, only

    def supports(self, spec, device):
        if self.only and spec.dtype != self.only:
            return Reject("dtype", f"only {self.only}")
        return Support(priority=60, invariance="batch", notes="of the test")

    def build(self, spec, ctx):
        return TABLE["norm.rms"].reference.build(spec, ctx)


@impl
def backend_info():
    return BackendInfo(name="plain", version="1.5", devices=("plain", "simple"), rank=0)


@impl
def probe():
    return [DeviceInfo(backend="plain", torch_device="cpu", name="Plain One")]


@impl
def create_device(info, options):
    return TorchDevice(info, ("float32", "bfloat16"))


@impl
def op_impls(device):
    if device.info.backend == "plain":
        return [("norm.rms", Norm("plain.norm")), ("norm.rms", Norm("plain.half", "float16"))]
    return ()


@impl
def diagnostics(device):
    return {"colour": "grey"}
'''
ABSENT = PLAIN.replace('"plain"', '"absent"').replace(
    'return [DeviceInfo(backend="absent", torch_device="cpu", name="Plain One")]',
    "from inferplane.hw import Unavailable\n"
    '    return Unavailable("no_hardware", "no such card", "plug one in")',
)
BROKEN = "import a_package_that_nobody_has\n"
MODULES = {"plain": PLAIN, "absent": ABSENT, "broken": BROKEN}


def install_backends(folder: Path) -> Path:
    """What pip would leave behind: put the folder on the import path."""
    for name, text in MODULES.items():
        (folder / f"{name}_backend.py").write_text(text)
        facts = folder / f"{name}_backend-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}-backend\nVersion: 1.0\n"
        )
        (facts / "entry_points.txt").write_text(f"[inferplane.backends]\n{name} = {name}_backend\n")
    return folder
