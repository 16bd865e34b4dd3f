"""`inferplane generate` and `inferplane serve`, as processes."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from inferplane.checkpoint.source import ModelSource
from tests.core.cli.conftest import Run
from tests.core.offline.tiny_model import ALPHABET

DEVICE = ("--device", "plain", "--kv-cache-tokens", "4096")


def test_one_prompt_is_printed(run: Run, tiny_folder: Path) -> None:
    done = run("generate", str(tiny_folder), *DEVICE, "--prompt", "abc")
    assert (done.returncode, done.stdout, done.stderr) == (0, ALPHABET[3:] + "\n", "")


def test_standard_input_is_a_prompt(run: Run, tiny_folder: Path) -> None:
    done = run("generate", str(tiny_folder), *DEVICE, "--max-tokens", "1", input="wx")
    assert (done.returncode, done.stdout) == (0, "y\n")


def test_several_prompts_and_samples(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text("m")
    words = ["--prompt", "ab", "--file", str(tmp_path / "prompt"), "--n", "2", "--max-tokens", "1"]
    done = run("generate", str(tiny_folder), *DEVICE, *words)
    assert done.stdout.splitlines() == [
        "--- prompt 0, sample 0",
        "c",
        "--- prompt 0, sample 1",
        "c",
        "--- prompt 1, sample 0",
        "n",
        "--- prompt 1, sample 1",
        "n",
    ]


def test_json(run: Run, tiny_folder: Path) -> None:
    words = ["--prompt", "ab", "--prompt", "y", "--json", "--logprobs", "0", "--stop", "f"]
    words += ["--prompt-logprobs", "1"]
    done = run("generate", str(tiny_folder), *DEVICE, *words)
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["prompt"], first["text"], first["matched"]) == ("ab", "cde", "f")
    assert first["token_ids"] == list(b"cdef")
    assert [entry["token"] for entry in first["logprobs"]] == list(b"cdef")
    before, scored = first["prompt_logprobs"]
    assert (before, scored["token"], scored["rank"], scored["top"][0][0]) == (None, 98, 1, 98)
    assert first["usage"] == {"prompt_tokens": 2, "completion_tokens": 4, "cached_tokens": 0}
    assert (second["prompt_index"], second["text"], second["finish_reason"]) == (1, "z", "stop")


def test_the_seed_repeats_a_sample(run: Run, tiny_folder: Path) -> None:
    words = ["--prompt", "ab", "--temperature", "20", "--max-tokens", "12", "--ignore-eos"]
    texts = [
        run("generate", str(tiny_folder), *DEVICE, *words, "--seed", seed).stdout
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]


def test_bad_parameters_are_found_before_the_model_is_loaded(run: Run) -> None:
    done = run("generate", "/nowhere", "--prompt", "x", "--max-tokens", "0x")
    assert done.returncode == 2
    assert "--max-tokens" in done.stderr


@pytest.mark.parametrize("device", ["plain", "xeon"])
def test_the_demo_model(run: Run, demo_model: ModelSource, device: str) -> None:
    if device == "xeon":
        pytest.importorskip("inferplane_xeon._kernels")
    words = ["--prompt", "1, 2, 3, 4, 5, 6,", "--temperature", "0", "--max-tokens", "8"]
    done = run("generate", "smollm2", "--device", device, "--kv-cache-tokens", "256", *words)
    assert done.returncode == 0, done.stderr
    assert " 7, 8," in done.stdout


def test_serve_answers_and_ends_with_0(tiny_folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "inferplane", "serve", str(tiny_folder), *DEVICE]
    process = subprocess.Popen(
        [*command, "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = next(x.split()[-1] for x in process.stdout if x.startswith("serving "))
        body = json.dumps({"prompt": "abc", "temperature": 0}).encode()
        request = urllib.request.Request(
            f"{url}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["choices"][0]["text"] == ALPHABET[3:]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


def test_quantized_at_load(run: Run, tiny_folder: Path) -> None:
    words = ["--prompt", "abc", "--max-tokens", "4", "--quantization"]
    done = run("generate", str(tiny_folder), *DEVICE, *words, "int8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "defg\n", "")
    done = run("generate", str(tiny_folder), *DEVICE, *words, "int3")
    assert done.returncode == 2
    assert "'int3'" in done.stderr
    assert "int4" in done.stderr


def test_an_unknown_quantization_method(run: Run, tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "config.json").unlink()
    config = json.loads((tiny_folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quip"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = run("generate", str(tmp_path), *DEVICE, "--prompt", "abc")
    assert (done.returncode, done.stdout) == (1, "")
    assert "quantization method 'quip' of config.json is not read, supported are" in done.stderr
