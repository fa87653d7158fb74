"""Malicious model and adapter folders are rejected with a ModelError, fast and with little memory.

Every folder is a valid one with one change. If a change is not rejected because it is never read, the test
shows that it has no effect.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from rankwise import Classifier, ModelError
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import load_backbone
from rankwise.models.tokenizer import Tokenizer

SECONDS = 60.0
MEGABYTES = 200


@pytest.fixture(autouse=True)
def quick_and_small() -> Iterator[None]:
    """Rejections are fast and use little memory, whatever sizes a folder declares."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - began < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1024


@pytest.fixture
def base(gpt2_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gpt2_base, tmp_path / "base")


@pytest.fixture
def llama(llama_base: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama_base, tmp_path / "llama")


@pytest.fixture
def folder(adapter: Path, tmp_path: Path) -> Path:
    """An adapter without digests: an attacker can write matching digests or none."""
    return shutil.copytree(adapter, tmp_path / "adapter", ignore=shutil.ignore_patterns("sha256.json"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused_base(folder: Path) -> str:
    """The error for a base model in a sweep's loading sequence: find, backbone, tokenizer."""
    with pytest.raises(ModelError) as caught:
        found = bases.find(str(folder))
        load_backbone(found, torch.float32, torch.device("cpu"))
        Tokenizer.load(found.folder)
    assert len(caught.value.message) < 2000
    return caught.value.message


def refused_adapter(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Classifier.load(folder, device="cpu")
    assert len(caught.value.message) < 2000
    return caught.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_embd", 1 << 40),
        ("n_embd", 1 << 23),
        ("n_embd", -16),
        ("n_embd", 16.0),
        ("n_embd", "16"),
        ("n_embd", True),
        ("n_embd", [16]),
        ("n_layer", 10**9),
        ("n_layer", 1025),
        ("n_layer", 0),
        ("n_head", 10**6),
        ("n_positions", 10**12),
        ("n_inner", 10**7),
        ("vocab_size", 10**9),
        ("vocab_size", 10**4000),
        ("n_layer", 3),  # one layer too many
        ("vocab_size", 10**7),  # larger than the file: only the header is read, nothing is allocated
        ("layer_norm_epsilon", "1e-5"),
        ("layer_norm_epsilon", -1),
        ("attn_pdrop", 1.5),
        ("activation_function", "__import__('os').system('true')"),
        ("activation_function", ["gelu"]),
        ("model_type", "../../evil"),
        ("model_type", {"a": 1}),
        ("model_type", "x" * 500_000),
        ("architectures", "GPT2LMHeadModel"),
        ("bos_token_id", "0"),
        ("use_cache", 1),
        ("quantization_config", {"quant_method": "custom"}),
    ],
)
def test_settings_of_a_base(base: Path, key: str, value: Any) -> None:
    change(base / "config.json", **{key: value})
    assert refused_base(base)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_key_value_heads", 3),
        ("head_dim", 1 << 30),
        ("head_dim", 7),
        ("rope_parameters", {"rope_type": "llama3", "factor": "8"}),
        ("rope_parameters", {"rope_type": "custom"}),
        ("rope_parameters", [1]),
        ("rope_parameters", {"rope_theta": -1.0}),
        ("intermediate_size", -1),
        ("hidden_act", "os.system"),
    ],
)
def test_settings_of_a_llama(llama: Path, key: str, value: Any) -> None:
    change(llama / "config.json", **{key: value})
    assert refused_base(llama)


CONFIGS: dict[str, str] = {
    "a bomb of nesting": "[" * 200_000,
    "a nested object": '{"a":' * 50_000,
    "more than its limit": '{"a": "' + "x" * (1 << 20) + '"}',
    "a key twice": '{"model_type": "gpt2", "model_type": "llama"}',
    "not a number": '{"model_type": "gpt2", "n_embd": NaN}',
    "infinity": '{"model_type": "gpt2", "n_embd": Infinity}',
    "a number of digits": '{"model_type": "gpt2", "n_embd": 1' + "0" * 10_000 + "}",
    "no object": "[]",
    "a number": "1e999",
    "surrogates": '{"model_type": "\\ud800"}',
    "nothing": "",
}


@pytest.mark.parametrize("text", CONFIGS.values(), ids=CONFIGS)
def test_json_of_a_base(base: Path, text: str) -> None:
    (base / "config.json").write_text(text)
    assert refused_base(base)


HARMLESS = ("more than its limit", "surrogates")  # the limit is higher there, and the key is ignored
FILES = [
    (name, kind)
    for name in ("adapter_config.json", "classifier.json", "tokenizer_config.json", "sha256.json")
    for kind in CONFIGS
    if not (name in ("classifier.json", "tokenizer_config.json") and kind in HARMLESS)
]


@pytest.mark.parametrize(("name", "kind"), FILES)
def test_json_of_an_adapter(folder: Path, name: str, kind: str) -> None:
    (folder / name).write_text(CONFIGS[kind])
    assert refused_adapter(folder)


# Code


def code(folder: Path) -> Path:
    """Python files that leave a marker file if imported."""
    mark = folder / "ran"
    text = f"open({str(mark)!r}, 'w').close()\nclass Evil: ...\nclass EvilConfig: ...\n"
    for name in ("evil.py", "modeling_gpt2.py", "tokenization_gpt2.py", "configuration_gpt2.py"):
        (folder / name).write_text(text)
    return mark


def test_auto_map_in_a_config_is_not_read(base: Path) -> None:
    mark = code(base)
    change(
        base / "config.json",
        auto_map={"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.Evil", "AutoTokenizer": "evil.Evil"},
        trust_remote_code=True,
        custom_pipelines={"text-classification": {"impl": "evil.Evil"}},
        attn_implementation="somebody/kernel",
        _attn_implementation_internal="somebody/kernel",
    )
    found = bases.find(str(base))
    load_backbone(found, torch.float32, torch.device("cpu"))
    assert Tokenizer.load(found.folder)(["so glad"], 9)
    assert not mark.exists()
    assert not any("auto_map" in key or "impl" in key for key in bases.config(str(base)))


def test_what_runs_code_is_not_handed_on(base: Path, adapter: Path, tmp_path: Path) -> None:
    """An adapter's folder has nothing of the base model's config.json, and no config.json of its own."""
    config = json.loads((base / "config.json").read_text()) | {
        "auto_map": {"AutoConfig": "evil.Evil"},
        "x": 1,
    }
    saved = adapters.load(adapter)
    adapters.save(tmp_path / "new", saved, config, [])
    stored = json.loads((tmp_path / "new" / "classifier.json").read_text())
    assert stored.keys() == {"num_labels", "id2label", "label2id", "rankwise"}
    assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": ["evil.Evil", None]}, ["evil.Evil", None], "evil.Evil"]
)
def test_a_tokenizer_with_code(base: Path, auto_map: Any) -> None:
    mark = code(base)
    change(base / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil", trust_remote_code=True)
    assert "requires custom code" in refused_base(base)
    assert not mark.exists()


def test_files_that_a_tokenizer_names_are_not_opened(base: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would block forever
    names = ("tokenizer_file", "vocab_file", "merges_file", "gguf_file", "chat_template_file", "name_or_path")
    values = dict.fromkeys(names, str(tmp_path / "pipe"))
    change(base / "tokenizer_config.json", **values, init_inputs=[str(tmp_path / "pipe")])
    assert Tokenizer.load(base)(["so glad"], 9)


def test_labels_that_a_tokenizer_never_needs(base: Path) -> None:
    """transformers would expand this to a dictionary with a billion names."""
    change(base / "config.json", num_labels=10**9)
    assert Tokenizer.load(base)(["so glad"], 9)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_pickles(base: Path, name: str) -> None:
    (base / "model.safetensors").rename(base / name)
    assert "has only pickled weights" in refused_base(base)


def test_a_pickle_by_another_name(base: Path, folder: Path) -> None:
    mark = base / "ran"
    evil = b"cos\nsystem\n(S'touch " + str(mark).encode() + b"'\ntR."
    for path in (base / "model.safetensors", folder / "adapter_model.safetensors"):
        path.write_bytes(evil)
    assert "damaged" in refused_base(base)
    assert "damaged" in refused_adapter(folder)
    torch.save({"wte.weight": torch.ones(2)}, base / "model.safetensors")
    assert "damaged" in refused_base(base)
    assert not mark.exists()


# Headers of safetensors


def tensors_file(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


A, B, SCORE = (
    "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight",
    "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight",
    "base_model.model.score.weight",
)
HEADERS: dict[str, bytes] = {
    "a length that lies": tensors_file({}, length=1 << 60),
    "a length of more than 100 MB": tensors_file({}, length=1 << 28),
    "a length of all bits": b"\xff" * 8 + b"{}",
    "offsets that overlap": tensors_file(
        {A: entry(0, 256, [4, 16]), SCORE: entry(0, 192, [3, 16])}, b"\0" * 256
    ),
    "offsets past the end": tensors_file({SCORE: entry(0, 1 << 40, [1 << 34, 16])}, b"\0" * 64),
    "offsets backwards": tensors_file({SCORE: entry(192, 0, [3, 16])}, b"\0" * 192),
    "offsets below zero": tensors_file({SCORE: entry(-192, 0, [3, 16])}, b"\0" * 192),
    "a hole": tensors_file({SCORE: entry(64, 256, [3, 16])}, b"\0" * 256),
    "bytes left over": tensors_file({SCORE: entry(0, 192, [3, 16])}, b"\0" * 999),
    "a type that lies": tensors_file({SCORE: entry(0, 192, [3, 16], "F64")}, b"\0" * 192),
    "a type that is none": tensors_file({SCORE: entry(0, 192, [3, 16], "PICKLE")}, b"\0" * 192),
    "a shape that overflows": tensors_file({SCORE: entry(0, 0, [1 << 33, 1 << 33])}),
    "a negative shape": tensors_file({SCORE: entry(0, 192, [-3, -16])}, b"\0" * 192),
    "a shape of strings": tensors_file({SCORE: entry(0, 192, ["3", "16"])}, b"\0" * 192),
    "no shape": tensors_file({SCORE: {"dtype": "F32"}}, b"\0" * 192),
    "nesting": tensors_file(b"[" * 100_000),
    "no UTF-8": tensors_file(b'{"\xff": 1}'),
    "a header that is no object": tensors_file(b"[]"),
    "names twice": tensors_file(
        json.dumps({SCORE: entry(0, 192, [3, 16])})[:-1].encode()
        + b", "
        + json.dumps({SCORE: entry(192, 384, [3, 16])})[1:].encode(),
        b"\0" * 384,
    ),
    "a hundred thousand tensors": tensors_file({f"t{i}": entry(0, 0, [0]) for i in range(100_000)}),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_headers(base: Path, folder: Path, data: bytes) -> None:
    (base / "model.safetensors").write_bytes(data)
    assert refused_base(base)
    (folder / "adapter_model.safetensors").write_bytes(data)
    assert refused_adapter(folder)


def tensors_of(base: Path) -> dict[str, Tensor]:
    """Copies of a base's tensors: some versions of safetensors map the file, which the tests write again."""
    stored = safetensors.torch.load_file(base / "model.safetensors")
    return {name: tensor.clone() for name, tensor in stored.items()}


def test_tensors_of_other_types(base: Path) -> None:
    tensors = tensors_of(base)
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn):
        changed = {name: tensor.to(dtype) for name, tensor in tensors.items()}
        safetensors.torch.save_file(changed, base / "model.safetensors")
        assert "quantized weights are not supported" in refused_base(base)


def test_a_base_with_no_numbers_in_it(base: Path) -> None:
    tensors = tensors_of(base)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = float("nan")
    safetensors.torch.save_file(tensors, base / "model.safetensors", {"format": "pt"})
    assert "h.1.mlp.c_fc.weight has non-finite values" in refused_base(base)


# Paths and sizes


@pytest.mark.parametrize(
    "shard", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors", "~/x", "."]
)
def test_an_index_that_leads_out(base: Path, shard: str) -> None:
    (base / "model.safetensors").rename(base.parent / "secret.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": shard}}))
    assert "is not the name of a safetensors file" in refused_base(base)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "merges.txt", "added_tokens.json", "tokenizer_config.json"]
)
def test_a_link_out_of_the_folder_is_not_copied_beside_adapters(
    base: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "secret").write_text("{}")
    (base / name).unlink(missing_ok=True)
    (base / name).symlink_to(tmp_path / "secret")
    assert "a link that leads out of its folder" in refused_base(base)


def test_the_links_of_the_hub_s_cache_are_followed(base: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(base.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(blobs / str(number))
    assert Tokenizer.load(bases.find(str(snapshot)).folder)(["so glad"], 9)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"])
def test_a_tokenizer_of_two_gigabytes(base: Path, name: str) -> None:
    with (base / name).open("wb") as file:
        file.truncate(2 << 30)  # sparse, uses no disk space
    assert "larger than" in refused_base(base)


def test_weights_of_a_terabyte(folder: Path) -> None:
    with (folder / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    assert "larger than" in refused_adapter(folder)


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "classifier.json", "adapter_model.safetensors", "sha256.json"]
)
def test_pipes_are_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert refused_adapter(folder)


@pytest.mark.parametrize(
    "text",
    [
        '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}',
        '{"version": "9.9", "model": {"type": "Evil"}}',
        "[" * 100_000,
        '{"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}}',
    ],
)
def test_tokenizers_that_cannot_be(base: Path, text: str) -> None:
    (base / "tokenizer.json").write_text(text)
    assert refused_base(base)


# Adapters


@pytest.mark.parametrize(
    "values",
    [
        {"r": 10**9},
        {"r": 4097},
        {"r": -4},
        {"r": 4.0},
        {"r": True},
        {"r": "4"},
        {"r": 8},  # the tensors have rank 4
        {"lora_alpha": 1e300},
        {"lora_alpha": True},
        {"lora_dropout": -1},
        {"lora_dropout": 2},
        {"use_rslora": "yes"},
        {"peft_type": "../evil"},
        {"peft_type": ["LORA"]},
        {"base_model_name_or_path": ["gpt2"]},
        {"base_model_name_or_path": "../" * 20 + "etc"},
        {"base_model_name_or_path": "/dev/zero"},
        {"base_model_name_or_path": "a\0b"},
        {"layers_pattern": None, "layer_replication": [[0, 10**9]]},
        {"init_lora_weights": ["pissa"]},
        {"corda_config": {}, "init_lora_weights": "corda"},
    ],
)
def test_settings_of_an_adapter(folder: Path, values: dict[str, Any]) -> None:
    change(folder / "adapter_config.json", **values)
    assert refused_adapter(folder)


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+(a+)+(a+)+$", "(.|.)" * 40 + "x", "a?" * 40 + "a" * 40, ".*.*.*.*.*x", "(a", r"(a)\1", "x" * 2000],
)
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules"])
def test_patterns_that_would_take_forever(folder: Path, key: str, pattern: str) -> None:
    change(folder / "adapter_config.json", **{key: pattern})
    assert f"{key} must be a list of module names, or a simple" in refused_adapter(folder)


def test_modules_that_an_adapter_names_are_not_imported(folder: Path) -> None:
    mapping = {"base_model_class": "Popen", "parent_library": "subprocess"}
    change(folder / "adapter_config.json", auto_mapping=mapping)
    assert adapters.load(folder).spec.rank == 4
    change(folder / "adapter_config.json", custom_modules={"Linear": "os.system"})
    assert "'custom_modules' is not supported" in refused_adapter(folder)


Labels = dict[str, Any]
LABELS: dict[str, Callable[[], Labels]] = {
    "a million": lambda: {str(i): f"l{i}" for i in range(1_000_000)},
    "more than the head has": lambda: {str(i): f"l{i}" for i in range(1000)},
    "escape sequence": lambda: {"0": "a", "1": "\x1b]0;evil\x07", "2": "c"},
    "line end": lambda: {"0": "a", "1": "b\nc", "2": "c"},
    "NUL": lambda: {"0": "a", "1": "b\0", "2": "c"},
    "C1 control": lambda: {"0": "a", "1": "b\x9b", "2": "c"},
    "half a surrogate pair": lambda: {"0": "a", "1": "\ud800", "2": "c"},
    "numbers": lambda: {"0": 0, "1": 1, "2": 2},
    "nested": lambda: {"0": {"0": "a"}, "1": "b", "2": "c"},
    "twice": lambda: {"0": "a", "1": "a", "2": "a"},
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_label_names(folder: Path, labels: Callable[[], Labels]) -> None:
    change(folder / "classifier.json", id2label=labels())
    words = ("id2label", "larger than", "surrogates not allowed")
    assert any(word in refused_adapter(folder) for word in words)


def test_a_head_of_a_million_classes(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    tensors[SCORE] = torch.zeros(1_000_000, 1)
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    assert "a classifier needs 2 to 65536" in refused_adapter(folder)
