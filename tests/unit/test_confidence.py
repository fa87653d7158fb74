"""The report's section on probabilities, and what adapters do with a temperature and a threshold."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from typer.testing import CliRunner

from rankwise import Classifier, ModelError, UsageError, evaluate
from rankwise.cli.app import app
from rankwise.commands.cut import cut
from rankwise.commands.predict import predict_file
from rankwise.models import peft_format
from rankwise.models.tokenizer import Tokenizer
from rankwise.report import build
from rankwise.report.confidence import confidence
from rankwise.report.html import run_page
from rankwise.report.run import Run, load
from rankwise.report.verdict import recommend
from rankwise.stats.calibration import usable_temperature
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.made import made_run
from tests.unit.page import Page

TEXTS = tiny.texts(12, seed=5)
PLAIN: dict[str, Any] = {"device": "cpu", "precision": "float32"}


# A temperature in an adapter folder


@pytest.fixture(scope="module")
def warm(adapter: Path, gpt2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the adapter with a temperature of 2."""
    folder = tmp_path_factory.mktemp("warm") / "r4-s110"
    saved = replace(peft_format.load(adapter), temperature=2.0)
    config = files.read_object(gpt2_base / "config.json")
    peft_format.save(folder, saved, config, Tokenizer.load(gpt2_base).files())
    return folder


def test_a_temperature_divides_the_logits_and_changes_no_label(warm: Path, classifier: Classifier) -> None:
    found = Classifier.load(warm, device="cpu", precision="float32")
    assert (found.temperature, peft_format.stored_temperature(warm)) == (2.0, 2.0)
    np.testing.assert_array_equal(found.logits(TEXTS), classifier.logits(TEXTS))
    np.testing.assert_allclose(
        found.predict_proba(TEXTS), softmax(found.logits(TEXTS) / 2.0, axis=1), atol=1e-6
    )
    assert found.predict(TEXTS) == classifier.predict(TEXTS)


def test_an_adapter_without_a_temperature_is_as_before(
    adapter: Path, gpt2_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cold"
    saved = replace(peft_format.load(adapter), temperature=None)
    peft_format.save(folder, saved, files.read_object(gpt2_base / "config.json"), [])
    assert "temperature" not in (folder / "classifier.json").read_text("utf-8")
    assert peft_format.stored_temperature(folder) is None
    found = Classifier.load(folder, device="cpu", precision="float32")
    expected = softmax(found.logits(TEXTS).astype(np.float64), axis=-1)
    np.testing.assert_array_equal(found.predict_proba(TEXTS), expected)


def test_evaluate_measures_with_the_temperature(warm: Path, adapter: Path, data_folder: Path) -> None:
    found, plain = (evaluate(each, data_folder / "test.csv", **PLAIN) for each in (warm, adapter))
    assert found.confusion == plain.confusion
    assert found.log_loss != pytest.approx(plain.log_loss, abs=1e-4)


def test_a_cut_adapter_has_no_temperature(warm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    cut(warm, 2, folder)
    assert peft_format.stored_temperature(folder) is None
    assert json.loads((folder / "classifier.json").read_text("utf-8"))["rankwise"]["rank"] == 2


@pytest.mark.parametrize("value", ['"warm"', "0", "-1", "true", "1e9", "[2]"])
def test_a_damaged_temperature_is_refused(warm: Path, tmp_path: Path, value: str) -> None:
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in warm.iterdir():
        if path.name != files.DIGESTS:
            files.copy(path, folder / path.name)
    text = (folder / "classifier.json").read_text("utf-8")
    (folder / "classifier.json").write_text(text.replace('"temperature": 2.0', f'"temperature": {value}'))
    with pytest.raises(ModelError, match=r"classifier\.json: temperature must be a number"):
        Classifier.load(folder)


def test_a_sweep_stores_what_the_validation_texts_show(run: RunFolder) -> None:
    finished = load(run)
    targets = finished.predictions["validation"].targets
    for row in finished.results.adapters:
        expected = usable_temperature(targets, finished.logits(row.name))
        assert row.temperature == peft_format.stored_temperature(run.adapters / row.name) == expected


# Abstaining


def test_a_classifier_abstains_below_a_threshold(classifier: Classifier) -> None:
    best = classifier.predict_proba(TEXTS).max(axis=1)
    least = float(np.median(best))
    found = classifier.predict(TEXTS, abstain_below=least)
    assert [label is None for label in found] == (best < least).tolist()
    assert {label for label in found} >= {None}
    labels = classifier.predict(TEXTS)
    assert all(label in (None, whole) for label, whole in zip(found, labels, strict=True))
    assert classifier.predict(TEXTS, abstain_below=0.0) == labels
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match="not a probability"):
            classifier.predict(TEXTS, abstain_below=bad)


def test_files_have_empty_labels_and_a_note(classifier: Classifier, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("\n".join(TEXTS) + "\n", "utf-8")
    least, notes = float(np.median(classifier.predict_proba(TEXTS).max(axis=1))), list[str]()
    predict_file(classifier, source, target, abstain_below=least, on_note=notes.append)
    with target.open(encoding="utf-8", newline="") as file:
        labels = [row["predicted_label"] for row in csv.DictReader(file)]
    assert labels == [label or "" for label in classifier.predict(TEXTS, abstain_below=least)]
    empty = labels.count("")
    assert 0 < empty < len(TEXTS)
    assert notes == [f"{empty} of {len(TEXTS)} texts have no label: its probability is below {least:g}"]
    with pytest.raises(UsageError, match="not a probability"):
        predict_file(classifier, source, tmp_path / "other.csv", abstain_below=2.0)
    assert not (tmp_path / "other.csv").exists()


def test_the_command_line_abstains(adapter: Path) -> None:
    words = ["predict", str(adapter), *TEXTS[:3], "--precision", "float32", "--abstain-below", "1"]
    shown = CliRunner().invoke(app, [*words, "--json"])
    assert [each["label"] for each in json.loads(shown.stdout)] == [None] * 3
    assert "3 of 3 texts have no label" in shown.stderr
    assert CliRunner().invoke(app, words).exit_code == 0
    assert CliRunner().invoke(app, [*words[:-1], "2"]).exit_code == 2


def test_evaluate_measures_the_answers(classifier: Classifier, adapter: Path, data_folder: Path) -> None:
    whole = evaluate(classifier, data_folder / "test.csv")
    assert whole.abstaining is None
    found = evaluate(classifier, data_folder / "test.csv", abstain_below=0.6).abstaining
    assert found and found.accuracy is not None and found.accuracy_low is not None
    part = [each for each in whole.reliability if each.low >= 0.6]  # 0.6 is the edge of a bin
    assert found.answered == sum(each.texts for each in part)
    right = sum(each.texts * each.accuracy for each in part)
    assert found.accuracy == pytest.approx(right / found.answered)
    assert found.coverage == found.answered / whole.texts and found.accuracy_low < found.accuracy
    nothing = evaluate(classifier, data_folder / "test.csv", abstain_below=1.0).abstaining
    assert nothing and (nothing.answered, nothing.accuracy) == (0, None)
    words = ["evaluate", str(adapter), str(data_folder / "test.csv"), "--abstain-below", "0.6"]
    shown = CliRunner().invoke(app, [*words, "--precision", "float32"]).stdout
    assert f"{found.answered} of {whole.texts} texts" in " ".join(shown.split())


# The report


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with the temperatures that a sweep would store."""
    run = made_run(
        tmp_path_factory.mktemp("made") / "run",
        accuracies={1: 0.86, 4: 0.92},
        sizes={"validation": 900, "test": 400},
    )
    finished = load(run)
    targets = finished.predictions["validation"].targets
    rows = [
        row.model_copy(update={"temperature": usable_temperature(targets, finished.logits(row.name))})
        for row in finished.results.adapters
    ]
    results = finished.results.model_copy(update={"adapters": rows})
    run.results.write_text(results.model_dump_json(), "utf-8")
    return run


def of(run: Run, target: float | None = None) -> tuple[dict[str, list[str]], str]:
    """Title -> the first column's cells of each table, and the text of all."""
    found = confidence(run, recommend(run), target)
    assert found
    tables = [found.scaling, found.thresholds, *([found.signals] if found.signals else [])]
    text = " ".join([found.about_scaling, found.about_thresholds, *(each.note for each in tables)])
    return {each.title: [row[0] for row in each.rows] for each in tables}, text


def test_the_page_has_the_section_with_its_figures(made: RunFolder) -> None:
    build.rebuild(made)
    shown = Page((made.path / "report.html").read_text("utf-8"))
    assert "Probabilities and abstaining" in [title for _, title in shown.headings]
    assert "ECE by chance" in shown.text and "--abstain-below" in shown.text
    for split in ("validation", "test"):
        assert (made.path / "figures" / f"risk-coverage-{split}.svg").is_file()


def test_a_row_for_each_seed_and_split(made: RunFolder) -> None:
    run = load(made)
    choice = recommend(run)
    tables, text = of(run)
    (names, targets, signals) = tables.values()
    assert names == [row.name for row in choice.adapters for _ in range(2)]
    assert targets == ["90", "95", "99"]
    assert signals == ["validation"] * 2 + ["test"] * 2
    assert f"for the {len(run.results.adapters)} adapters" in text and "other 2 seeds with" in text


def test_scaling_lowers_the_log_loss(made: RunFolder) -> None:
    found = confidence(load(made), recommend(load(made)))
    assert found
    for row in found.scaling.rows:
        if row[2] != "none":
            assert float(row[4].split()[0]) < float(row[3].split()[0])


def test_a_target_of_ones_own(made: RunFolder) -> None:
    tables, _ = of(load(made), 0.85)
    assert tables["Thresholds for a target accuracy"] == ["85"]
    trust = build.tell(load(made), target_accuracy=0.85).confidence
    assert trust and trust.thresholds.rows[0][0] == "85"
    for bad in (0.0, 1.0, 95.0):
        with pytest.raises(UsageError, match="not an accuracy"):
            confidence(load(made), recommend(load(made)), bad)


def test_why_there_is_no_temperature(tmp_path: Path) -> None:
    """Runs of an earlier version have none, 60 texts show none, and three are too few."""
    earlier = made_run(tmp_path / "earlier", accuracies={4: 0.75}, seeds=(0,), sizes={"validation": 2000})
    few = made_run(tmp_path / "few", accuracies={4: 0.9}, seeds=(0,), sizes={"validation": 60})
    three = made_run(tmp_path / "three", accuracies={4: 0.9}, seeds=(0,), sizes={"validation": 3})
    assert "a version of rankwise that fitted none" in of(load(earlier))[1]
    assert "does not show that it helps" in of(load(few))[1]
    assert "3 validation texts are too few" in of(load(three))[1]


def test_one_seed_has_no_disagreement(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={4: 0.9}, seeds=(0,))
    assert "Signals of errors" not in of(load(made))[0]


def test_a_run_without_logits_has_no_section(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={4: 0.9}, seeds=(0,))
    files.remove(made.logits)
    story = build.tell(load(made))
    assert story.confidence is None
    assert "Probabilities and abstaining" not in run_page(story)
