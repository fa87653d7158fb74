"""Exports give the adapter's logits in transformers, ONNX Runtime and PEFT; others are not written."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from typer.testing import CliRunner

from rankwise import Classifier, DataError, ModelError, UsageError, evaluate, export
from rankwise.cli.app import app
from rankwise.commands import export as command
from rankwise.exporting import decoder, graph
from rankwise.exporting.source import SCORE, Source
from rankwise.models import peft_format as adapters
from rankwise.models.base import find as find_base
from rankwise.models.base import load_backbone
from rankwise.models.registry import FAMILIES, build, family_of
from rankwise.models.tokenizer import Tokenizer
from rankwise.nn.bank import HEAD, AdapterSpec, Bank
from rankwise.nn.inference import bank_logits
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.parity.peers import CONFIGS, SMALL, StateDict, random_texts

LABELS = ("joy", "anger", "fear", "日本")
ODD = ["naïve 日本", "so <|endoftext|> glad", "scared " * 60, "x", "cross<|endoftext|>"]
TEXTS = [*tiny.texts(200, seed=3), *ODD]


def random_adapter(base: Path, folder: Path, *, rank: int = 4, **values: Any) -> Path:
    """An adapter on every linear layer, with large random weights."""
    torch.manual_seed(6)
    backbone = load_backbone(find_base(str(base)), torch.float32, torch.device("cpu"))
    modules = backbone.modules() if rank else {}
    state = {HEAD: torch.randn(len(LABELS), backbone.d_model)}
    for name, (n_in, n_out) in modules.items():
        state |= {
            f"{name}.lora_A": 0.3 * torch.randn(rank, n_in),
            f"{name}.lora_B": 0.3 * torch.randn(n_out, rank),
        }
    spec = AdapterSpec(rank, 2.0 * rank, 2.0 if rank else 0.0, 0, 0.0, tuple(modules))
    saved = adapters.SavedAdapter(spec, state, LABELS, str(base), 32)
    tokenizer = Tokenizer.load(base)
    config = files.read_object(base / "config.json")
    adapters.save(folder, replace(saved, **values), config, tokenizer.files())
    return folder


@pytest.fixture(scope="session")
def texts_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


@pytest.fixture
def ours(gpt2_base: Path, tmp_path: Path) -> Path:
    """An adapter on a base without a pad token."""
    return random_adapter(gpt2_base, tmp_path / "adapter")


def logits(adapter: Path, texts: list[str]) -> Any:
    return Classifier.load(adapter, device="cpu", precision="float32").logits(texts)


# Every family, in every library


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family: str, request: pytest.FixtureRequest, texts_file: Path, tmp_path: Path) -> None:
    """`export` compares the logits itself; that it can fail is tested below."""
    adapter = random_adapter(request.getfixturevalue(f"{family}_base"), tmp_path / "adapter")
    for to in ("merged", "onnx", "peft"):
        found = export(adapter, to, data=texts_file)
        assert found.folder == str(tmp_path / f"adapter-{to}")
        assert (found.texts, found.labels_changed) == (len(TEXTS), 0)
        assert 0 < found.largest_difference < 1e-3
        assert np.abs(logits(adapter, TEXTS)).max() > 1


def test_a_linear_probe(gpt2_base: Path, texts_file: Path, tmp_path: Path) -> None:
    adapter = random_adapter(gpt2_base, tmp_path / "adapter", rank=0)
    for to in ("merged", "onnx", "peft"):
        assert export(adapter, to, data=texts_file).labels_changed == 0


def test_embeddings_of_its_own(gpt2_base: Path, texts_file: Path, tmp_path: Path) -> None:
    """PEFT saves the embeddings if a pad token was added to them."""
    vocabulary = files.read_object(gpt2_base / "config.json")["vocab_size"]
    torch.manual_seed(8)
    adapter = random_adapter(gpt2_base, tmp_path / "adapter")
    path = adapter / adapters.WEIGHTS
    import safetensors.torch

    tensors = safetensors.torch.load_file(path)
    tensors["base_model.model.transformer.wte.weight"] = torch.randn(vocabulary + 1, 16)
    path.write_bytes(safetensors.torch.save(tensors))
    settings = files.read_object(adapter / "adapter_config.json")
    files.write_json(adapter / "adapter_config.json", settings | {"modules_to_save": ["score", "wte"]})
    (adapter / "sha256.json").unlink()
    for to in ("merged", "onnx", "peft"):
        found = export(adapter, to, data=texts_file)
        assert found.labels_changed == 0
    config = files.read_object(tmp_path / "adapter-merged" / "config.json")
    assert config["vocab_size"] == vocabulary + 1


def test_a_tokenizer_that_ends_texts_with_the_pad_token(
    llama_base: Path, texts_file: Path, tmp_path: Path
) -> None:
    """transformers classifies at the last token that is not the pad token, and so do exports."""
    base = shutil.copytree(llama_base, tmp_path / "base")
    backend = Backend.from_file(str(base / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {tiny.END}", special_tokens=[(tiny.END, 0)]
    )
    backend.save(str(base / "tokenizer.json"))
    adapter = random_adapter(base, tmp_path / "adapter")
    for to in ("merged", "onnx", "peft"):
        assert export(adapter, to, data=texts_file).labels_changed == 0


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("activation", ["", "relu", "gelu"])
def test_graphs_of_every_variant(name: str, activation: str, tmp_path: Path) -> None:
    """The graph against our own model, on random tokens, with all variants of a family."""
    key = next((key for key in ("activation_function", "hidden_act") if key in CONFIGS[name]().to_dict()), "")
    if activation and (name.startswith(("llama", "qwen2")) or not key):
        pytest.skip("the family has one activation")
    config = CONFIGS[name](**SMALL[name], **({key: activation} if activation else {}))
    torch.manual_seed(0)
    kind: Any = transformers.AutoModelForSequenceClassification
    model = kind.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.0 if parameter.dim() > 1 else 0.5, std=0.2)
    json_config = config.to_dict()
    family = family_of(json_config)
    state = StateDict(model, family.prefix)
    backbone = build(json_config, state, torch.float32)
    head = Bank([AdapterSpec(0, 1.0, 1.0, 0, 0.0, ())], backbone.modules(), backbone.d_model, 2)
    head.load(0, {HEAD: state.tensors[SCORE]})
    texts = random_texts([5, 1, 17, 30, 8], 500)
    written = decoder.classifier(
        family.decoder(family.config.from_json(json_config)),
        dict(state.tensors),
        transposed=family.fan_in_fan_out,
        pad_id=None,
    )
    path = written.save(
        tmp_path, {"input_ids": ("b", "l"), "attention_mask": ("b", "l")}, {"logits": ("b", 2)}, {}
    )
    onnx.checker.check_model(str(path), full_check=True)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    width = max(map(len, texts))
    ids, mask = np.full((len(texts), width), 7), np.zeros((len(texts), width), dtype=np.int64)
    for i, text in enumerate(texts):
        ids[i, : len(text)], mask[i, : len(text)] = text, 1
    theirs = session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    mine = bank_logits(backbone, head, texts)[0]
    np.testing.assert_allclose(theirs, mine, atol=1e-4 * max(1, np.abs(mine).max()))
    assert np.ptp(mine, axis=0).min() > 0.01


# What is in a folder


def test_merged_is_a_model_of_transformers(ours: Path, texts_file: Path, tmp_path: Path) -> None:
    """Loaded as the guide says, in a batch, on a base without a pad token."""
    export(ours, "merged", tmp_path / "model", data=texts_file)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    classify: Any = transformers.pipeline("text-classification", str(tmp_path / "model"), device="cpu")
    found = classify(ODD, truncation=True, batch_size=3)
    expected = Classifier.load(ours, device="cpu", precision="float32")(ODD)
    assert [each["label"] for each in found] == [each.label for each in expected]
    assert [each["score"] for each in found] == pytest.approx(
        [each.probability for each in expected], abs=1e-4
    )


def test_onnx_has_what_a_program_needs(ours: Path, texts_file: Path, tmp_path: Path) -> None:
    """With `tokenizers` and onnxruntime alone, as the guide says."""
    found = export(ours, "onnx", tmp_path / "model", data=texts_file)
    assert found.file_bytes.keys() == {"model.onnx", "tokenizer.json", "tokenizer_config.json"}
    session = onnxruntime.InferenceSession(str(tmp_path / "model" / "model.onnx"))
    metadata = session.get_modelmeta().custom_metadata_map
    labels = json.loads(metadata["id2label"])
    assert [labels[str(i)] for i in range(4)] == list(LABELS)
    assert metadata["max_length"] == "32"
    tokenizer = Backend.from_file(str(tmp_path / "model" / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    encoded = tokenizer.encode_batch(ODD)
    inputs = {
        "input_ids": np.array([each.ids for each in encoded]),
        "attention_mask": np.array([each.attention_mask for each in encoded]),
    }
    assert inputs["input_ids"].shape == (len(ODD), 32)
    theirs = session.run(["logits"], inputs)[0]
    np.testing.assert_allclose(theirs, logits(ours, ODD), atol=1e-3)


def test_large_models_have_a_file_of_weights(
    ours: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "LARGEST", 0)
    found = export(ours, "onnx", tmp_path / "model", data=texts_file)
    assert found.file_bytes["model.onnx.data"] > 10 * found.file_bytes["model.onnx"] / 4
    assert found.labels_changed == 0
    quantized = export(ours, "onnx", tmp_path / "int8", data=texts_file, int8=True, max_loss=100)
    assert sum(quantized.file_bytes.values()) < sum(found.file_bytes.values())


def test_peft_finds_labels_and_base(ours: Path, texts_file: Path, tmp_path: Path) -> None:
    """Without arguments; the adapter itself needs them."""
    export(ours, "peft", tmp_path / "model", data=texts_file)
    kind: Any = peft.AutoPeftModelForSequenceClassification
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT uses deprecated transformers names
        model = kind.from_pretrained(str(tmp_path / "model"))
        with pytest.raises(RuntimeError, match="size mismatch"):
            kind.from_pretrained(str(ours))
    assert model.config.id2label == dict(enumerate(LABELS))
    np.testing.assert_allclose(logits(tmp_path / "model", ODD), logits(ours, ODD), atol=1e-4)


def test_int8_is_smaller_and_its_loss_is_measured(ours: Path, texts_file: Path, tmp_path: Path) -> None:
    found = export(ours, "onnx", int8=True, max_loss=100, data=texts_file)
    assert found.folder == str(tmp_path / "adapter-onnx-int8")
    assert found.int8 and found.accuracy is None
    assert found.loss == pytest.approx(100 * found.labels_changed / found.texts)
    assert found.largest_difference > 1e-3
    assert {path.name for path in Path(found.folder).iterdir()} == set(found.file_bytes)


# Tasks

LIMITS = (0.3, 0.5, 0.8, 0.4)
SEVERAL: dict[str, Any] = {"task": "multi-label", "thresholds": LIMITS, "label_separator": "|"}


@pytest.fixture(scope="session")
def several_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with any number of labels."""
    path = tmp_path_factory.mktemp("several") / "several.jsonl"
    rows = [{"text": text, "labels": labels} for text, labels in tiny.multi_rows(210, seed=7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("to", ["merged", "onnx", "peft"])
def test_several_labels(to: str, gpt2_base: Path, several_file: Path, tmp_path: Path) -> None:
    """The accuracy is that of sets of labels, and the export says how they are decided."""
    adapter = random_adapter(gpt2_base, tmp_path / "adapter", **SEVERAL)
    found = export(adapter, to, tmp_path / "model", data=several_file)
    ours = Classifier.load(adapter, device="cpu", precision="float32")
    measured = evaluate(ours, several_file).accuracy
    assert 0 < measured < 1  # that of the largest logits would be another one
    assert (found.labels_changed, found.accuracy, found.exported_accuracy) == (0, measured, measured)
    if to == "onnx":
        session = onnxruntime.InferenceSession(str(tmp_path / "model" / "model.onnx"))
        metadata = session.get_modelmeta().custom_metadata_map
        said = metadata["problem_type"], json.loads(metadata["thresholds"])
    else:
        config = files.read_object(tmp_path / "model" / ("base" * (to == "peft")) / "config.json")
        said = config["problem_type"], config["thresholds"]
    assert said == ("multi_label_classification", list(LIMITS))
    if to == "merged":  # as the guide and the card say
        classify: Any = transformers.pipeline("text-classification", str(tmp_path / "model"), device="cpu")
        settings = classify.model.config
        thresholds = dict(zip(settings.id2label.values(), settings.thresholds, strict=True))
        texts = [text for text, _ in tiny.multi_rows(20, seed=8)]
        theirs = [
            {each["label"] for each in scores if each["score"] >= thresholds[each["label"]]}
            for scores in classify(texts, top_k=None, truncation=True)
        ]
        assert theirs == [set(labels) for labels in ours.predict_labels(texts)]
        assert len({len(labels) for labels in theirs}) > 1


def test_probabilities_next_to_thresholds(
    gpt2_base: Path, several_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding may change a label whose probability is its threshold; that is counted, and no error."""
    text = tiny.multi_rows(210, seed=7)[0][0]
    plain = random_adapter(gpt2_base, tmp_path / "plain", **SEVERAL)
    exact = Classifier.load(plain, device="cpu", precision="float32").predict_proba([text])[0]
    several = SEVERAL | {"thresholds": tuple(exact.tolist())}
    adapter = random_adapter(gpt2_base, tmp_path / "adapter", **several)
    spoil(monkeypatch, by=1 + 1e-5)
    found = export(adapter, "onnx", data=several_file)
    assert found.labels_changed > 0 and found.largest_difference < 1e-3


@pytest.mark.parametrize("to", ["merged", "onnx", "peft"])
def test_pairs(to: str, gpt2_base: Path, tmp_path: Path) -> None:
    """The columns may have other names, and without data starter texts make pairs."""
    adapter = random_adapter(gpt2_base, tmp_path / "adapter", text_columns=("premise", "hypothesis"))
    one, two = (tiny.rows(200, seed) for seed in (1, 2))
    data = {"a": [text for text, _ in one], "b": [text for text, _ in two], "label": [y for _, y in two]}
    columns = {"text_columns": ("a", "b")}
    found = export(adapter, to, tmp_path / "model", data=data, columns=columns)
    measured = evaluate(adapter, data, columns=columns, device="cpu", precision="float32").accuracy
    assert (found.labels_changed, found.accuracy, found.exported_accuracy) == (0, measured, measured)
    assert 0 < measured < 1
    if to == "merged":
        classify: Any = transformers.pipeline("text-classification", str(tmp_path / "model"), device="cpu")
        joined = [f"{a}\n{b}" for a, b in zip(data["a"][:9], data["b"][:9], strict=True)]
        ours = Classifier.load(adapter, device="cpu", precision="float32")
        given = list(zip(data["a"][:9], data["b"][:9], strict=True))
        assert [each["label"] for each in classify(joined, truncation=True)] == ours.predict(given)
        bare = export(adapter, to, tmp_path / "bare")
        assert (bare.texts, bare.texts_from) == (200, "200 pairs of starter texts")


def test_pairs_on_the_command_line(gpt2_base: Path, tmp_path: Path) -> None:
    """Without labels; single texts are refused."""
    adapter = random_adapter(gpt2_base, tmp_path / "adapter", text_columns=("premise", "hypothesis"))
    path = tmp_path / "pairs.jsonl"
    rows = [{"id": i, "a": text, "b": "so glad"} for i, text in enumerate(tiny.texts(200, seed=1))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ["export", str(adapter), "--to", "onnx", "--data", str(path)]
    done = CliRunner().invoke(app, [*words, "--text-columns", "a,b"])
    assert done.exit_code == 0, done.stderr
    assert "on 200 texts of pairs.jsonl: 0 of 200 labels changed" in done.stdout
    done = CliRunner().invoke(app, [*words, "--text-column", "a", "--output", str(tmp_path / "other")])
    assert done.exit_code == 2 and "this adapter takes pairs of premise and hypothesis" in done.stderr
    assert not (tmp_path / "other").exists()


# What is refused


def spoil(monkeypatch: pytest.MonkeyPatch, *, by: float = 1.05) -> None:
    """Let exports have slightly wrong weights."""
    right = Source.tensors

    def wrong(self: Source, *, merged: bool) -> dict[str, torch.Tensor]:
        tensors = right(self, merged=merged)
        return tensors | {self.embedding: by * tensors[self.embedding]}

    monkeypatch.setattr(Source, "tensors", wrong)


@pytest.mark.parametrize("to", ["merged", "onnx", "peft"])
def test_a_wrong_export_is_not_written(
    to: str, ours: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(
        ModelError, match=r"the export differs from the adapter: in .* logits differ by up to"
    ):
        export(ours, to, data=texts_file)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_int8_that_costs_too_much_is_not_written(
    ours: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch)
    with pytest.raises(ModelError, match=r"int8 costs .* % of the labels on 205 texts of .*; 0 is allowed"):
        export(ours, "onnx", int8=True, max_loss=0, data=texts_file)
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_labels_in_another_order_are_not_written(
    ours: Path, texts_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rankwise.exporting import folders

    swapped = {"id2label": {"0": "anger", "1": "joy", "2": "fear", "3": "日本"}}
    monkeypatch.setattr(folders, "_task", lambda source: swapped)
    with pytest.raises(ModelError, match="the export has the labels anger, joy, fear"):
        export(ours, "onnx", data=texts_file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gguf"}, "to='gguf': give one of merged, onnx, peft"),
        ({"to": "merged", "int8": True}, "int8=True is for to='onnx' only"),
        ({"to": "onnx", "max_loss": 1.0}, "max_loss is for int8=True only"),
        ({"to": "onnx", "int8": True, "max_loss": -1.0}, "max_loss=-1.0 must be from 0 to 100"),
        ({"to": "onnx", "int8": True, "max_loss": float("nan")}, "max_loss=nan must be from 0 to 100"),
    ],
)
def test_options_that_contradict(ours: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        export(ours, **options)
    assert caught.value.message == message


def test_a_folder_in_use(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        export(ours, "onnx", ours)


def test_without_the_extra(ours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs the package onnx, which is not installed") as caught:
        export(ours, "onnx")
    assert caught.value.hint == "pip install 'rankwise[export]'"


# The texts


def test_texts_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    """The run has few validation texts, so starter texts are added."""
    found = export(run.path, "onnx", tmp_path / "model")
    assert found.texts_from == f"18 validation texts of {run.path.name} and 182 starter texts"
    assert found.accuracy is None


def test_labels_of_given_texts(run: RunFolder, adapter: Path, tmp_path: Path) -> None:
    rows = tiny.rows(1200, seed=5)
    path = tiny.write_csv(tmp_path / "more.csv", rows)
    found = export(adapter, "onnx", tmp_path / "a", int8=True, max_loss=100, data=path)
    assert (found.texts, found.texts_from) == (1000, "1,000 texts of more.csv")
    assert found.accuracy is not None and found.exported_accuracy is not None
    assert found.loss == pytest.approx(100 * (found.accuracy - found.exported_accuracy))
    memory = ([text for text, _ in rows], [label for _, label in rows])
    again = export(adapter, "onnx", tmp_path / "b", int8=True, max_loss=100, data=memory)
    assert again.accuracy == found.accuracy and again.texts_from == "1,000 texts of data in memory"


def test_texts_with_other_labels(ours: Path, tmp_path: Path) -> None:
    path = tiny.write_csv(tmp_path / "other.csv", [("so glad", "bliss")] * 200)
    notes: list[str] = []
    found = export(ours, "onnx", data=path, on_note=notes.append)
    assert "no labels are used: " in notes[-1] and "'bliss' is not one of the adapter's" in notes[-1]
    assert found.texts_from == "200 texts of other.csv"
    with pytest.raises(DataError, match="bliss"):
        export(ours, "onnx", tmp_path / "b", data=path, columns={"label_column": "label"})


# The command


def test_the_command(ours: Path, texts_file: Path, tmp_path: Path) -> None:
    words = ["export", str(ours), "--to", "onnx", "--data", str(texts_file), "--output", str(tmp_path / "m")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert "verified with onnxruntime" in done.stdout and "0 of 205 labels changed" in done.stdout
    done = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "n"), "--json"])
    assert json.loads(done.stdout)["labels_changed"] == 0
    done = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "o"), "--int8", "--max-loss", "101"])
    assert done.exit_code == 2 and "--max-loss 101" in done.stderr
