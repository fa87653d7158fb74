"""Adapters saved by rankwise and PEFT give the same logits in the other library."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rankwise import Classifier, ModelError, cut, sweep
from rankwise.models import base as bases
from rankwise.models import peft_format as adapters
from rankwise.models.base import load_backbone
from rankwise.models.registry import FAMILIES
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import Bank
from rankwise.nn.inference import bank_logits
from tests import tiny

TOLERANCE = 1e-4
TEXTS = [*tiny.texts(5, seed=3), "x", "naïve 日本", "scared " * 20]
# attn.c_proj is square: a transposed weight would raise no error, only give wrong logits.
RECIPES: dict[str, dict[str, Any]] = {
    "gpt2-default": {"alpha": 0.8},
    "gpt2-ratio": {"alpha": 2.0, "alpha_mode": "ratio", "targets": ("all-linear",)},
    "gpt2-rslora": {"alpha": 3.0, "alpha_mode": "rslora", "targets": ("attn.c_proj",)},
    "gpt2-last": {"alpha": 16.0, "last_layers": 1, "targets": ("c_attn", "mlp.c_fc")},
    "llama-default": {"alpha": 0.8},
    "llama-ratio": {"alpha": 2.0, "alpha_mode": "ratio", "targets": ("all-linear",)},
    "llama-rslora": {"alpha": 3.0, "alpha_mode": "rslora", "targets": ("o_proj", "down_proj")},
    "qwen2-default": {"alpha": 0.8},
    "gpt_neox-default": {"alpha": 0.8},
    "gpt_neox-last": {"alpha": 4.0, "last_layers": 1, "targets": ("all-linear",)},
    "opt-default": {"alpha": 0.8},
    "opt-last": {"alpha": 4.0, "last_layers": 1, "targets": ("all-linear",)},
    "llama-last": {"alpha": 16.0, "last_layers": 1, "targets": ("q_proj",)},
}


def peft_logits(model: Any, folder: Path) -> NDArray[np.float32]:
    """(texts, classes); one text at a time, since GPT-2 has no pad token."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.eval()
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in TEXTS]
    found: NDArray[np.float32] = np.stack(rows)
    return found


def our_logits(folder: Path, **options: Any) -> NDArray[np.float32]:
    return Classifier.load(folder, device="cpu", precision="float32", **options).logits(TEXTS)


def in_peft(folder: Path) -> Any:
    """Load the adapter as PEFT users do, with label names from the folder's classifier.json."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses deprecated transformers names
        return peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, **label_names(folder))


def label_names(folder: Path) -> dict[str, Any]:
    """The arguments of `from_pretrained` that name the classes."""
    config = json.loads((folder / "classifier.json").read_text("utf-8"))
    labels = {int(number): label for number, label in config["id2label"].items()}
    return {"num_labels": config["num_labels"], "id2label": labels, "label2id": config["label2id"]}


@pytest.mark.parametrize("case", RECIPES)
def test_our_adapters_in_peft(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, data_folder: Path
) -> None:
    base = request.getfixturevalue(f"{case.split('-')[0]}_base")
    changes = {"epochs": 1, "learning_rate": 0.1, **RECIPES[case]}
    results = sweep(tiny.recipe(base, data_folder, **changes), tmp_path / "run")
    for row in results.adapters:
        folder = tmp_path / "run" / "adapters" / row.name
        model = in_peft(folder)
        assert model.config.id2label == dict(enumerate(results.labels))
        assert model.config.label2id == {label: i for i, label in enumerate(results.labels)}
        theirs, ours = peft_logits(model, folder), our_logits(folder)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, err_msg=row.name)
        adapted = [p for name, p in model.named_parameters() if "lora_" in name or "modules_to_save" in name]
        if row.rank:  # rank 0 is stored as rank 1 with zero factors
            assert sum(p.numel() for p in adapted) == row.trainable_params
            trained = adapters.load(folder).state
            assert all(t.abs().max() > 1e-3 for name, t in trained.items() if name.endswith("lora_B"))


@pytest.mark.parametrize("case", RECIPES)
def test_cut_adapters_in_peft(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, data_folder: Path
) -> None:
    """PEFT gives the logits of a cut adapter, which differ from those of its source."""
    base = request.getfixturevalue(f"{case.split('-')[0]}_base")
    changes = {"epochs": 1, "learning_rate": 0.1, "ranks": (4,), "baselines": False, **RECIPES[case]}
    sweep(tiny.recipe(base, data_folder, **changes), tmp_path / "run")
    source = tmp_path / "run" / "adapters" / "r4-s110"
    for rank in (1, 3):
        folder = Path(cut(source, rank).folder)
        theirs, ours = peft_logits(in_peft(folder), folder), our_logits(folder)
        np.testing.assert_allclose(ours, theirs, atol=TOLERANCE, rtol=0, err_msg=folder.name)
        assert np.abs(ours - our_logits(source)).max() > 10 * TOLERANCE
        assert peft.LoraConfig.from_pretrained(str(folder)).r == rank


@pytest.mark.parametrize("name", ["r0-s110", "r4-s110"])
def test_names_stand_in_the_folder(run: Any, name: str) -> None:
    folder = run.adapters / name
    assert label_names(folder) == {
        "num_labels": 3,
        "id2label": dict(enumerate(tiny.LABELS)),
        "label2id": {label: i for i, label in enumerate(tiny.LABELS)},
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("so glad").input_ids == Tokenizer.load(folder)(["so glad"], 32)[0].tolist()
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


@pytest.mark.parametrize("name", ["r0-s110", "r4-s110"])
def test_transformers_own_loading(run: Any, name: str) -> None:
    """transformers finds the base model by itself, because the folder has no config.json."""
    folder = run.adapters / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForSequenceClassification.from_pretrained(folder, **label_names(folder))
    assert model.config.id2label == dict(enumerate(tiny.LABELS))
    np.testing.assert_allclose(our_logits(folder), peft_logits(model, folder), atol=TOLERANCE, rtol=0)


OLDEST_SETTINGS = {
    *("peft_type", "auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "r"),
    *("target_modules", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora"),
    *("modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern"),
    *("alpha_pattern", "megatron_config", "megatron_core", "loftq_config", "layer_replication"),
}
"""The settings of PEFT 0.11.1's LoraConfig; it refuses others."""


@pytest.mark.parametrize("name", ["r0-s110", "r4-s110"])
def test_older_versions_of_peft_know_the_settings(run: Any, name: str) -> None:
    stored = json.loads((run.adapters / name / "adapter_config.json").read_text())
    assert stored.keys() <= OLDEST_SETTINGS
    read = peft.LoraConfig.from_pretrained(str(run.adapters / name))
    ours = adapters.load(run.adapters / name)
    assert (read.lora_alpha, read.modules_to_save, read.bias) == (ours.spec.alpha, ["score"], "none")


def test_a_folder_of_an_older_version(run: Any, tmp_path: Path) -> None:
    """Label names and settings in config.json."""
    folder = shutil.copytree(run.adapters / "r4-s110", tmp_path / "old")
    (folder / "sha256.json").unlink()
    (folder / "classifier.json").rename(folder / "config.json")
    old, new = Classifier.load(folder, device="cpu"), Classifier.load(run.adapters / "r4-s110", device="cpu")
    assert (old.labels, old.max_length) == (new.labels, new.max_length)
    np.testing.assert_array_equal(old.logits(TEXTS), new.logits(TEXTS))
    found = Path(cut(folder, 2).folder)
    assert adapters.load(found).labels == tiny.LABELS and not (found / "config.json").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_is_unmerged(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    base: Path = request.getfixturevalue(f"{family}_base")
    save_with_peft(base, tmp_path, target_modules="all-linear")
    saved, found = adapters.load(tmp_path), bases.find(str(base))
    backbone = load_backbone(found, torch.float32, torch.device("cpu"))
    bank = Bank([saved.spec], backbone.modules(), backbone.d_model, len(saved.labels))
    bank.load(0, saved.state)
    beside = bank_logits(backbone, bank, Tokenizer.load(found.folder)(TEXTS, 64))[0]
    np.testing.assert_allclose(our_logits(tmp_path), beside, atol=1e-4, rtol=0)


def test_the_wrong_axis_would_show(gpt2_base: Path, tmp_path: Path) -> None:
    """Validates the comparison with PEFT: a transposed square weight gives different logits."""
    theirs = from_peft(gpt2_base, tmp_path / "a", target_modules=["attn.c_proj"])
    np.testing.assert_allclose(our_logits(tmp_path / "a"), theirs, atol=TOLERANCE, rtol=0)
    saved = adapters.load(tmp_path / "a")
    turned = {
        name.replace("lora_A", "lora_X")
        .replace("lora_B", "lora_A")
        .replace("lora_X", "lora_B"): t.T.contiguous()
        for name, t in saved.state.items()
        if name != "score"
    }
    config = json.loads((gpt2_base / "config.json").read_text())
    wrong = replace(saved, state=turned | {"score": saved.state["score"]})
    adapters.save(tmp_path / "b", wrong, config, [])
    assert np.abs(our_logits(tmp_path / "b") - theirs).max() > 100 * TOLERANCE


def from_peft(base: Path, folder: Path, **settings: Any) -> NDArray[np.float32]:
    """Save a random adapter with PEFT and return the logits of PEFT's model."""
    return peft_logits(save_with_peft(base, folder, **settings), base)


def save_with_peft(base: Path, folder: Path, *, pad: bool = False, **settings: Any) -> Any:
    """A PEFT model that has been saved; `pad` first adds a pad token to the base model."""
    torch.manual_seed(5)
    values: dict[str, Any] = {
        "task_type": peft.TaskType.SEQ_CLS,
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns when it sets fan_in_fan_out for GPT-2
        causal = settings.get("task_type") == peft.TaskType.CAUSAL_LM
        kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
        model = kind.from_pretrained(base, num_labels=4)
        if pad:
            model.resize_token_embeddings(model.config.vocab_size + 1)
            model.config.pad_token_id = model.config.vocab_size - 1
        wrapped: Any = peft.get_peft_model(model, peft.LoraConfig(**(values | settings)))
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"target_modules": "all-linear", "lora_alpha": 0.8},
        {"use_rslora": True, "lora_alpha": 3},
        {"layers_to_transform": [1], "init_lora_weights": "gaussian"},
    ],
    ids=["default", "all-linear", "rslora", "last"],
)
def test_pefts_adapters_here(
    family: str, settings: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    theirs = from_peft(request.getfixturevalue(f"{family}_base"), tmp_path, **settings)
    np.testing.assert_allclose(our_logits(tmp_path), theirs, atol=TOLERANCE, rtol=0)
    found = Classifier.load(tmp_path, device="cpu")
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True, "lora_alpha": 3}, {"pad": True}], ids=["default", "rslora", "pad"]
)
def test_pefts_adapters_cut_here(settings: dict[str, Any], llama_base: Path, tmp_path: Path) -> None:
    """An adapter without config.json and tokenizer is cut without its base, and loads in PEFT again."""
    source, folder = tmp_path / "theirs", tmp_path / "cut"
    model = save_with_peft(llama_base, source, **settings)
    kept = cut(source, 2, folder).kept
    assert 0.3 < kept < 0.999
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_adapter(folder, "cut")
    model.set_adapter("cut")
    theirs = peft_logits(model, llama_base)
    np.testing.assert_allclose(our_logits(folder), theirs, atol=TOLERANCE, rtol=0)
    assert np.abs(our_logits(source) - theirs).max() > 10 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_an_added_pad_token(family: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With an added pad token, which GPT-2 needs, PEFT saves all token embeddings."""
    theirs = from_peft(request.getfixturevalue(f"{family}_base"), tmp_path, pad=True)
    assert adapters.load(tmp_path).embedding is not None
    np.testing.assert_allclose(our_logits(tmp_path), theirs, atol=TOLERANCE, rtol=0)


def test_trained_embeddings_are_used(gpt2_base: Path, tmp_path: Path) -> None:
    save_with_peft(gpt2_base, tmp_path, pad=True)
    before = our_logits(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if "wte" in name)
    path.write_bytes(safetensors.torch.save(tensors | {name: tensors[name].flip(0).contiguous()}))
    assert np.abs(our_logits(tmp_path) - before).max() > 0.1


@pytest.mark.parametrize(
    "settings", [{"task_type": peft.TaskType.CAUSAL_LM}, {"task_type": None, "target_modules": "all-linear"}]
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_without_its_head(
    family: str, settings: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    save_with_peft(request.getfixturevalue(f"{family}_base"), tmp_path, **settings)
    with pytest.raises(ModelError, match="the score head is missing") as caught:
        Classifier.load(tmp_path)
    assert "SEQ_CLS" in caught.value.hint


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"use_dora": True}, "use_dora must be null, false or empty"),
    ({"rank_pattern": {"c_attn": 2}}, "rank_pattern must be null, false or empty"),
    ({"alpha_pattern": {"c_attn": 2}}, "alpha_pattern must be null, false or empty"),
    ({"bias": "all"}, "bias must be none"),
    ({"bias": "lora_only"}, "bias must be none"),
    ({"modules_to_save": ["ln_f"]}, "modules_to_save must be the score head"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices must be null, false or empty"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights must be an initialization that"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda value: str(value)[:30])
def test_other_variants_are_refused(
    settings: dict[str, Any], message: str, gpt2_base: Path, tmp_path: Path
) -> None:
    save_with_peft(gpt2_base, tmp_path, **settings)
    with pytest.raises(ModelError, match=message):
        Classifier.load(tmp_path)


TARGETS: list[dict[str, Any]] = [
    {},
    {"target_modules": ["c_attn", "c_proj"]},
    {"target_modules": ["attn.c_proj"]},
    {"target_modules": "all-linear"},
    {"target_modules": r".*\.h\.\d+\.attn\.(c_attn|c_proj)"},
    {"target_modules": ["c_attn", "c_fc"], "exclude_modules": ["h.0.mlp.c_fc"]},
    {"target_modules": ["c_attn", "c_fc"], "exclude_modules": r".*mlp.*"},
    {"target_modules": ["c_attn"], "layers_to_transform": 1},
    {"target_modules": ["c_attn"], "layers_to_transform": [0], "layers_pattern": "h"},
    {"target_modules": ["h.0.attn.c_attn", "c_fc"], "layers_to_transform": [1]},
    {"target_modules": ["transformer.h.0.attn.c_attn", "c_fc"], "layers_to_transform": [1]},
]


@pytest.mark.parametrize("settings", TARGETS, ids=str)
def test_the_modules_that_the_settings_name(
    settings: dict[str, Any], gpt2_base: Path, tmp_path: Path
) -> None:
    """They are those that PEFT trains, so an adapter that lacks one of them is refused, not applied."""
    save_with_peft(gpt2_base, tmp_path, **settings)
    saved = adapters.load(tmp_path)
    backbone = load_backbone(bases.find(str(gpt2_base)), torch.float32, torch.device("cpu"))
    assert (
        saved.config
        and saved.config.targets(list(backbone.modules()), FAMILIES["gpt2"]) == saved.spec.modules
    )
    assert len(our_logits(tmp_path)) == len(TEXTS)
    module = saved.spec.modules[-1]
    path = tmp_path / "adapter_model.safetensors"
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if f".{module}." not in k}
    if len(saved.spec.modules) > 1:
        path.write_bytes(safetensors.torch.save(tensors))
        with pytest.raises(ModelError, match=f"lacks the tensors of {module}, which target_modules names"):
            Classifier.load(tmp_path)


def test_modules_that_the_settings_do_not_name(gpt2_base: Path, tmp_path: Path) -> None:
    save_with_peft(gpt2_base, tmp_path, target_modules=["c_attn"])
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"layers_to_transform": [0]}))
    with pytest.raises(ModelError, match=r"has tensors of h\.1\.attn\.c_attn, which target_modules does not"):
        Classifier.load(tmp_path)


def test_embeddings_that_the_settings_promise(llama_base: Path, tmp_path: Path) -> None:
    theirs = from_peft(llama_base, tmp_path, modules_to_save=["embed_tokens"])
    np.testing.assert_allclose(our_logits(tmp_path), theirs, atol=TOLERANCE, rtol=0)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {k: v for k, v in safetensors.torch.load_file(path).items() if "embed_tokens" not in k}
    path.write_bytes(safetensors.torch.save(tensors))
    with pytest.raises(ModelError, match="lacks the embeddings, which modules_to_save lists"):
        Classifier.load(tmp_path)


def test_a_tokenizer_without_tokenizer_json(gpt2_base: Path, data_folder: Path, tmp_path: Path) -> None:
    """The adapter gets a tokenizer.json: vocab.json and merges.txt mean nothing without a config.json."""
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    model = json.loads((base / "tokenizer.json").read_text())["model"]
    (base / "vocab.json").write_text(json.dumps(model["vocab"]))
    (base / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"])]))
    (base / "tokenizer.json").unlink()
    (base / "tokenizer_config.json").write_text("{}")
    recipe = tiny.recipe(base, data_folder, ranks=(1,), epochs=1, baselines=False, cuts=False)
    sweep(recipe, tmp_path / "run")
    folder = tmp_path / "run" / "adapters" / "r1-s110"
    ours = Tokenizer.load(folder, base)(TEXTS, 32)
    assert [ids.tolist() for ids in ours] == [ids.tolist() for ids in Tokenizer.load(base)(TEXTS, 32)]
    theirs = AutoTokenizer.from_pretrained(folder)(TEXTS, truncation=True, max_length=32).input_ids
    assert [ids.tolist() for ids in ours] == theirs
