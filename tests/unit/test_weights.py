"""Tensors of model folders: names, shards, and rejections."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rankwise.errors import ModelError
from rankwise.models.weights import Weights

GPT2 = {
    "transformer.wte.weight": torch.arange(6.0).view(3, 2),
    "transformer.h.0.attn.c_attn.weight": torch.ones(2, 6),
}
LLAMA = {
    "model.embed_tokens.weight": torch.arange(6.0).view(3, 2),
    "model.layers.0.self_attn.q_proj.weight": torch.ones(2, 2),
    "model.norm.weight": torch.ones(2),
    "lm_head.weight": torch.zeros(3, 2),
}


def folder_of(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path / "model.safetensors")
    return path


def sharded(path: Path, weight_map: dict[str, object]) -> Path:
    save_file({"model.norm.weight": torch.ones(2)}, path / "model-00001-of-00002.safetensors")
    save_file({"model.embed_tokens.weight": torch.zeros(3, 2)}, path / "model-00002-of-00002.safetensors")
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return path


SHARDS: dict[str, object] = {
    "model.norm.weight": "model-00001-of-00002.safetensors",
    "model.embed_tokens.weight": "model-00002-of-00002.safetensors",
}


def test_gpt2_names_lose_their_prefix(tmp_path: Path) -> None:
    weights = Weights(folder_of(tmp_path, GPT2), "transformer")
    assert sorted(weights) == ["h.0.attn.c_attn.weight", "wte.weight"]
    assert len(weights) == 2
    assert torch.equal(weights["wte.weight"], GPT2["transformer.wte.weight"])


def test_bare_gpt2_names_stay(tmp_path: Path) -> None:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in GPT2.items()}
    assert sorted(Weights(folder_of(tmp_path, bare), "transformer")) == [
        "h.0.attn.c_attn.weight",
        "wte.weight",
    ]


def test_llama_names_lose_their_prefix_and_the_head_keeps_its_own(tmp_path: Path) -> None:
    weights = Weights(folder_of(tmp_path, LLAMA), "model")
    assert sorted(weights) == [
        "embed_tokens.weight",
        "layers.0.self_attn.q_proj.weight",
        "lm_head.weight",
        "norm.weight",
    ]
    assert "model.norm.weight" not in weights
    with pytest.raises(KeyError):
        weights["model.norm.weight"]


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    weights = Weights(sharded(tmp_path, SHARDS), "model")
    assert sorted(weights) == ["embed_tokens.weight", "norm.weight"]
    assert torch.equal(weights.take("norm.weight", (2,)), torch.ones(2))
    assert torch.equal(weights.take("embed_tokens.weight", (3, 2)), torch.zeros(3, 2))


@pytest.mark.parametrize(
    "shard",
    ["../model.safetensors", "/etc/passwd", "sub/x.safetensors", "..\\x.safetensors", "x.bin", "", 3, None],
)
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, shard: object) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    folder_of(tmp_path, LLAMA)
    with pytest.raises(ModelError, match="is not the name of a safetensors file"):
        Weights(sharded(inside, SHARDS | {"model.norm.weight": shard}))


@pytest.mark.parametrize("index", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_entries(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ModelError, match="has no weight_map"):
        Weights(tmp_path)


def test_an_index_that_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match=r"index\.json: cannot be read as JSON"):
        Weights(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path, SHARDS)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors: no such file"):
        Weights(tmp_path)


def test_a_shard_without_a_tensor_of_the_index(tmp_path: Path) -> None:
    wrong = SHARDS | {"model.layers.0.mlp.up_proj.weight": "model-00001-of-00002.safetensors"}
    with pytest.raises(ModelError, match=r"00001-of-00002\.safetensors: lacks the tensor model\.layers"):
        Weights(sharded(tmp_path, wrong))


@pytest.mark.parametrize("keep", [0, 4, 30, -1])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    path = folder_of(tmp_path, LLAMA) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"model\.safetensors: truncated or damaged"):
        Weights(tmp_path)


def test_a_pointer_instead_of_weights(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(ModelError, match="truncated or damaged") as caught:
        Weights(tmp_path)
    assert "git-lfs" in caught.value.hint


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\)") as caught:
        Weights(tmp_path)
    assert "safetensors only" in caught.value.hint
    assert "save_pretrained" in caught.value.hint


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no model\.safetensors"):
        Weights(tmp_path)


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    twice = {"model.norm.weight": torch.ones(2), "norm.weight": torch.zeros(2)}
    with pytest.raises(ModelError, match=r"contains the tensor norm\.weight twice"):
        Weights(folder_of(tmp_path, twice), "model")


def test_take_checks_name_and_shape(tmp_path: Path) -> None:
    weights = Weights(folder_of(tmp_path, LLAMA), "model")
    assert weights.take("norm.weight", (2,)).shape == (2,)
    with pytest.raises(ModelError, match=r"tensor norm\.weight has shape \(2,\), expected \(3,\)"):
        weights.take("norm.weight", (3,))
    with pytest.raises(ModelError, match=r"lacks the tensor layers\.7\.bias, of shape \(4, 5\)"):
        weights.take("layers.7.bias", (4, 5))


def test_half_precision_is_given_as_it_is(tmp_path: Path) -> None:
    halves = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2, dtype=torch.float16)}
    weights = Weights(folder_of(tmp_path, halves))
    assert weights.take("a", (2,)).dtype == torch.bfloat16
    assert weights.take("b", (2,)).dtype == torch.float16


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_numbers_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = Weights(folder_of(tmp_path, {"a": torch.ones(2).to(dtype)}))
    with pytest.raises(ModelError, match="quantized weights are not supported"):
        weights.take("a", (2,))
