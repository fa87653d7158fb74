"""Adapter folders round-trip; invalid or untrusted ones are rejected with a clear message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from typer.testing import CliRunner

from rankwise import Classifier, ModelError, UsageError, evaluate
from rankwise.cli.app import app
from rankwise.models import peft_format as adapters
from rankwise.nn.bank import AdapterSpec
from rankwise.store.run_folder import RunFolder
from tests import tiny

CONFIG = {"model_type": "gpt2", "n_embd": 4, "n_layer": 2, "n_head": 2, "vocab_size": 9}
MODULES = ("h.0.attn.c_proj", "h.1.attn.c_proj")


def saved_adapter(rank: int = 2, *, scale: float = 0.4, alpha: float = 0.8) -> adapters.SavedAdapter:
    """An adapter with random weights for a GPT-2 of width 4."""
    torch.manual_seed(rank)
    modules = MODULES if rank else ()
    state: dict[str, Tensor] = {}
    for module in modules:
        state |= {f"{module}.lora_A": torch.randn(rank, 4), f"{module}.lora_B": torch.randn(4, rank)}
    spec = AdapterSpec(rank, alpha, scale if rank else 0.0, 3, 0.1 if rank else 0.0, modules)
    return adapters.SavedAdapter(spec, state | {"score": torch.randn(3, 4)}, tiny.LABELS, "some/base", 77)


@pytest.mark.parametrize("rank", [0, 1, 2, 5])
def test_there_and_back(tmp_path: Path, rank: int) -> None:
    before = saved_adapter(rank, scale=0.8 / max(rank, 1))
    adapters.save(tmp_path / "a", before, CONFIG, [])
    after = adapters.load(tmp_path / "a")
    assert after.spec == before.spec
    assert (after.labels, after.base, after.max_length) == (tiny.LABELS, "some/base", 77)
    assert after.state.keys() == before.state.keys()
    assert all(torch.equal(after.state[name], tensor) for name, tensor in before.state.items())
    assert after.embedding is None


@pytest.mark.parametrize("rank", [2, 3, 7, 4096])
def test_rank_stabilised_scale_is_noted(tmp_path: Path, rank: int) -> None:
    scale = 0.8 / rank**0.5
    adapters.save(tmp_path / "a", saved_adapter(rank, scale=scale), CONFIG, [])
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["use_rslora"] is True
    assert adapters.load(tmp_path / "a").spec.scale == pytest.approx(scale, rel=1e-12)


def test_targets_are_named_shortly_where_that_names_just_them(run: RunFolder, tmp_path: Path) -> None:
    stored = json.loads((run.adapters / "r4-s110" / "adapter_config.json").read_text())
    assert stored["target_modules"] == ["c_attn"]
    assert (stored["fan_in_fan_out"], stored["modules_to_save"]) == (True, ["score"])
    adapters.save(tmp_path / "a", saved_adapter(), CONFIG, [])
    stored = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert stored["target_modules"] == list(MODULES)  # "c_proj" alone would also match the MLP
    assert stored["lora_alpha"] == 0.8


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    with pytest.raises(UsageError, match="already exists"):
        adapters.save(tmp_path, saved_adapter(), CONFIG, [])


def test_label_names_of_any_kind(tmp_path: Path) -> None:
    labels = ("0", "joy; \"or\" 'so'", "日本")
    before = saved_adapter()
    named = adapters.SavedAdapter(before.spec, before.state, labels, "b", 5)
    adapters.save(tmp_path / "a", named, CONFIG, [])
    assert adapters.load(tmp_path / "a").labels == labels


# Rejected adapters


@pytest.fixture
def copy(adapter: Path, tmp_path: Path) -> Path:
    """A copy of a valid adapter, to be modified; without digests, as written by PEFT."""
    return shutil.copytree(adapter, tmp_path / "copy", ignore=shutil.ignore_patterns("sha256.json"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


Tensors = dict[str, Tensor]


def rewrite(folder: Path, edit: Callable[[Tensors], Tensors]) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(safetensors.torch.save(edit(safetensors.torch.load_file(path))))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        Classifier.load(folder, device="cpu")
    assert str(folder) in caught.value.message
    return caught.value.message


@pytest.mark.parametrize(
    "values",
    [
        {"use_dora": True},
        {"rank_pattern": {"c_attn": 8}},
        {"alpha_pattern": {"c_attn": 8}},
        {"layer_replication": [[0, 1]]},
        {"lora_bias": True},
        {"alora_invocation_tokens": [1]},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"peft_type": "LOHA"},
        {"r": "4"},
        {"r": 0},
        {"r": None},
        {"r": 5000},
        {"lora_alpha": 1e7},
        {"lora_alpha": "big"},
        {"lora_dropout": [0.1]},
    ],
)
def test_other_kinds_of_lora(copy: Path, values: dict[str, Any]) -> None:
    change(copy / "adapter_config.json", **values)
    assert next(iter(values)) in refusal(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", '"x"', "\xff", "{}"])
def test_a_damaged_adapter_config(copy: Path, content: str) -> None:
    (copy / "adapter_config.json").write_text(content, encoding="latin-1")
    refusal(copy)


def test_no_adapter_folder(tmp_path: Path, gpt2_base: Path) -> None:
    for folder in (tmp_path / "none", tmp_path, gpt2_base):
        assert "this is not an adapter folder" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"\x00" * 40, b"\x10\0\0\0\0\0\0\0{", b"x" * 1000])
def test_damaged_tensors(copy: Path, content: bytes) -> None:
    (copy / "adapter_model.safetensors").write_bytes(content)
    assert "damaged or unreadable" in refusal(copy)


def test_truncated_tensors(copy: Path) -> None:
    path = copy / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged or unreadable" in refusal(copy)


def test_missing_tensors(copy: Path) -> None:
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    assert "no adapter_model.safetensors" in refusal(copy)
    (copy / "adapter_model.safetensors").mkdir()
    refusal(copy)


def test_without_its_head(copy: Path) -> None:
    rewrite(copy, lambda tensors: {name: t for name, t in tensors.items() if "score" not in name})
    assert "the score head is missing" in refusal(copy)


A = "base_model.model.transformer.h.1.attn.c_attn.lora_A.weight"
B = "base_model.model.transformer.h.1.attn.c_attn.lora_B.weight"
SCORE = "base_model.model.score.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t | {"base_model.model.transformer.ln_f.weight": torch.ones(16)}, "unexpected tensor"),
        (lambda t: t | {A.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(48)}, "unexpected"),
        (lambda t: {"x" + name: tensor for name, tensor in t.items()}, "score head is missing"),
        (lambda t: {name: tensor for name, tensor in t.items() if name != B}, "must come in pairs"),
        (lambda t: {name: tensor for name, tensor in t.items() if name != A}, "must come in pairs"),
        (lambda t: {SCORE: t[SCORE]}, "must come in pairs"),
        (lambda t: t | {A: t[A].T.contiguous()}, "do not fit"),
        (lambda t: t | {B: t[B][:16].contiguous()}, "do not fit"),
        (lambda t: t | {A: t[A][:2].contiguous()}, "do not fit"),
        (lambda t: t | {A: t[A].flatten()}, "not a matrix"),
        (lambda t: t | {A: t[A] * float("nan")}, "not a matrix of finite numbers"),
        (lambda t: t | {SCORE: torch.ones(3, 15)}, "does not fit a model of width 16"),
        (lambda t: t | {SCORE: torch.ones(16)}, "not a matrix"),
        (lambda t: t | {SCORE: torch.ones(1, 16)}, "a classifier needs 2"),
        (lambda t: t | {SCORE: torch.ones(4, 16)}, "name each of 4 classes"),
        (lambda t: t | {name.replace("h.1", "h.2"): t[name] + 1 for name in (A, B)}, "no linear layer h.2"),
        (lambda t: t | {"base_model.model.transformer.wte.weight": torch.ones(5, 16)}, "embeddings (5, 16)"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_belong(copy: Path, edit: Callable[[Tensors], Tensors], message: str) -> None:
    rewrite(copy, edit)
    assert message in refusal(copy)


@pytest.mark.parametrize(
    "names",
    [
        {"0": "a", "1": "b"},
        {"0": "a", "1": "b", "2": "b"},
        {"1": "a", "2": "b", "3": "c"},
        {"0": "a", "1": "b", "2": None},
        {"0": "a", "1": "b", "2": ["c"]},
        ["a", "b", "c"],
        "abc",
    ],
)
def test_label_names_that_do_not_fit_the_head(copy: Path, names: Any) -> None:
    change(copy / "classifier.json", id2label=names)
    assert "id2label must name each of 3 classes" in refusal(copy)


def test_settings_of_the_wrong_kind_are_passed_over(copy: Path) -> None:
    change(copy / "classifier.json", rankwise=["x"])
    assert adapters.load(copy).spec.rank == 4
    change(copy / "classifier.json", rankwise={"rank": "0", "seed": "x", "max_length": -5})
    found = adapters.load(copy)
    assert (found.spec.rank, found.spec.seed, found.max_length) == (4, 0, 1)


def test_a_damaged_model_config(copy: Path) -> None:
    (copy / "classifier.json").write_text("{")
    assert "cannot be read as JSON" in refusal(copy)


def test_no_base(copy: Path, gpt2_base: Path) -> None:
    change(copy / "adapter_config.json", base_model_name_or_path=None)
    assert "does not say which base model" in refusal(copy)
    assert Classifier.load(copy, base=str(gpt2_base), device="cpu").labels == tiny.LABELS


# Folders that are not adapters


def test_a_folder_above_adapters(adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(adapter, tmp_path / "out" / "checkpoint-500")
    assert "not an adapter folder, but checkpoint-500 in it is one" in refusal(tmp_path / "out")
    shutil.copytree(adapter, tmp_path / "out" / "checkpoint-1000")
    assert "checkpoint-1000 and checkpoint-500 in it are" in refusal(tmp_path / "out")
    with pytest.raises(ModelError) as caught:
        Classifier.load(tmp_path / "out")
    assert caught.value.hint.startswith(f"pass {tmp_path / 'out'}/checkpoint-")
    shutil.copytree(adapter, tmp_path / "out" / "checkpoint-1500")
    assert "3 folders in it are" in refusal(tmp_path / "out")


def test_other_things_than_adapters(gpt2_base: Path, tmp_path: Path) -> None:
    assert "but a whole model" in refusal(gpt2_base)
    assert "is a file" in refusal(gpt2_base / "config.json")
    assert "no such folder" in refusal(tmp_path / "none")


def test_the_folder_of_a_run(run: RunFolder, tmp_path: Path, data_folder: Path) -> None:
    """It means the best adapter of the rank that the verdict recommends."""
    from rankwise.report.ranks import compare
    from rankwise.report.run import load
    from rankwise.report.verdict import chosen

    finished = load(run)
    best = chosen(finished.results, compare(finished)).best
    found = evaluate(run.path, data_folder / "test.csv", device="cpu", precision="float32")
    assert best.test and found.confusion == best.test.confusion
    copy = shutil.copytree(run.path, tmp_path / "unfinished")
    (copy / "results.json").unlink()
    assert "a run that did not finish, not an adapter folder" in refusal(copy)


# Settings of PEFT


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bias": "all"}, "bias must be none (trained biases are not supported), not 'all'"),
        ({"bias": "lora_only"}, "bias must be none"),
        ({"modules_to_save": ["score", "ln_f"]}, "modules_to_save must be the score head"),
        ({"modules_to_save": "score"}, "modules_to_save must be the score head"),
        ({"target_modules": 3}, "target_modules must be a list of module names"),
        ({"layers_to_transform": "1"}, "layers_to_transform must be a whole number"),
        ({"some_new_feature": {"x": 1}}, "'some_new_feature' is not supported, and is {'x': 1}"),
        ({"qalora_group_size": 16, "use_qalora": True}, "use_qalora must be null"),
    ],
)
def test_settings_that_would_change_the_answers(copy: Path, values: dict[str, Any], message: str) -> None:
    change(copy / "adapter_config.json", **values)
    assert message in refusal(copy)


def test_settings_without_effect(copy: Path) -> None:
    """Those of the newest PEFT at their defaults, and settings of other versions that are empty."""
    import peft

    defaults = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in peft.LoraConfig().to_dict().items()  # type: ignore[no-untyped-call]
    }
    stored = json.loads((copy / "adapter_config.json").read_text())
    change(copy / "adapter_config.json", **defaults | {"some_new_feature": None, "other": {}} | stored)
    assert adapters.load(copy).spec.rank == 4


def test_tensors_that_the_settings_promise(copy: Path) -> None:
    rewrite(copy, lambda tensors: {name: t for name, t in tensors.items() if name not in (A, B)})
    assert "lacks the tensors of h.1.attn.c_attn, which target_modules names" in refusal(copy)
    change(copy / "adapter_config.json", layers_to_transform=[0])
    assert Classifier.load(copy, device="cpu").labels == tiny.LABELS


@pytest.mark.parametrize("number", [1e300, -1e300, 1e39])
def test_numbers_that_float32_cannot_hold(copy: Path, number: float) -> None:
    rewrite(copy, lambda tensors: tensors | {B: torch.full((48, 4), number, dtype=torch.float64)})
    assert "is not a matrix of finite numbers below 3.4e+38" in refusal(copy)


def test_logits_that_are_not_finite(copy: Path) -> None:
    """Each weight is finite, but their product is not: no probability of NaN."""
    rewrite(copy, lambda tensors: tensors | {A: torch.full((4, 16), 1e30), B: torch.full((48, 4), 1e30)})
    classifier = Classifier.load(copy, device="cpu", precision="float32")
    with pytest.raises(ModelError, match="the logits are not finite"):
        classifier(["so glad"])


# Label names


@pytest.fixture
def unnamed(copy: Path) -> Path:
    """An adapter without label names, like PEFT's."""
    (copy / "classifier.json").unlink()
    return copy


def test_label_names_for_an_adapter_without_them(unnamed: Path) -> None:
    assert Classifier.load(unnamed, device="cpu").labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert Classifier.load(unnamed, labels=["x", "y", "z"], device="cpu").labels == ("x", "y", "z")


def test_label_names_on_the_command_line(unnamed: Path, adapter: Path, data_folder: Path) -> None:
    options = ["--data", str(data_folder / "test.csv"), "--device", "cpu", "--json"]
    named = CliRunner().invoke(app, ["evaluate", str(adapter), *options])
    given = CliRunner().invoke(app, ["evaluate", str(unnamed), "--labels", "joy, anger,fear", *options])
    assert (given.exit_code, given.stdout) == (0, named.stdout)
    given = CliRunner().invoke(app, ["predict", str(unnamed), "--labels", '"a, b",c,d', "--json", "so glad"])
    assert json.loads(given.stdout)[0]["probabilities"].keys() == {"a, b", "c", "d"}


@pytest.mark.parametrize("labels", [["x", "y"], ["x", "x", "y"], ["x", "y", "z\x07"], []])
def test_label_names_that_cannot_be(unnamed: Path, labels: list[str]) -> None:
    with pytest.raises(UsageError, match="labels: give 3 names, all different"):
        Classifier.load(unnamed, labels=labels, device="cpu")


def test_label_names_of_the_adapter_are_not_replaced(adapter: Path) -> None:
    assert Classifier.load(adapter, labels=tiny.LABELS, device="cpu").labels == tiny.LABELS
    with pytest.raises(UsageError, match="has label names of its own: joy, anger, fear"):
        Classifier.load(adapter, labels=["anger", "joy", "fear"], device="cpu")


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ({"0": "x", "1": "y", "2": "z"}, True),
        ({"0": "x", "1": "y"}, False),
        ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, False),
        ({"0": "x", "1": "y", "5": "z"}, False),
        (["x", "y", "z"], False),
    ],
)
def test_label_names_of_the_base(
    unnamed: Path, gpt2_base: Path, tmp_path: Path, names: Any, used: bool
) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    change(base / "config.json", id2label=names)
    notes: list[str] = []
    found = Classifier.load(unnamed, base=str(base), device="cpu", on_note=notes.append)
    assert found.labels == (("x", "y", "z") if used else ("LABEL_0", "LABEL_1", "LABEL_2"))
    (note,) = notes
    said = f"the label names are those of {base}: x, y, z" if used else f"{unnamed}: has no label names"
    assert note.startswith(said)


# The base that an adapter was trained on


def test_a_base_that_has_changed(adapter: Path, gpt2_base: Path, tmp_path: Path) -> None:
    """Other weights or settings are noticed; other names, files and heads are not a change."""
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    notes: list[str] = []

    def load() -> list[str]:
        notes.clear()
        Classifier.load(adapter, base=str(base), device="cpu", on_note=notes.append)
        return notes

    change(base / "config.json", attn_pdrop=0.3, dtype="float32", num_attention_heads=2, id2label={"0": "x"})
    tensors = safetensors.torch.load_file(base / "model.safetensors")
    safetensors.torch.save_file(tensors | {"lm_head.bias": torch.ones(3)}, base / "model.safetensors")
    assert load() == []
    change(base / "config.json", n_head=4, num_attention_heads=4)
    assert load() == [f"{adapter}: was trained on another version of {base}, so its predictions may be wrong"]
    change(base / "config.json", n_head=2, num_attention_heads=2)
    assert load() == []
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    tensors[name][0, 0] += 0.001
    safetensors.torch.save_file(tensors, base / "model.safetensors")
    assert len(load()) == 1


def test_a_changed_base_is_a_warning_in_python(adapter: Path, gpt2_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(gpt2_base, tmp_path / "base")
    change(base / "config.json", layer_norm_epsilon=0.1)
    with pytest.warns(UserWarning, match="was trained on another version of"):
        Classifier.load(adapter, base=str(base), device="cpu")
