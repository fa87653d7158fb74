"""Exports of misclassified texts: the fields that Argilla and Label Studio read."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from rankwise.cli.app import app
from rankwise.errors import UsageError
from rankwise.report import build
from rankwise.report.errors import wrong_texts
from rankwise.report.export import argilla_records, label_studio_config, label_studio_tasks
from rankwise.report.run import load
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.unit.hostile import LABELS, TEXTS


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("made") / "run"
    return made_run(folder, accuracies={1: 0.6, 4: 0.7}, seeds=(0,), labels=LABELS, texts=TEXTS)


def test_argilla(made: RunFolder) -> None:
    """What `argilla.Record.from_dict` reads: responses by question, suggestions by question."""
    found = wrong_texts(load(made))
    records = json.loads(argilla_records(found))
    assert len(records) == len(found) == len({each["id"] for each in records})
    for record, each in zip(records, found, strict=True):
        assert record["fields"] == {"text": each.text}
        suggestion = record["suggestions"]["label"]
        assert (suggestion["value"], suggestion["agent"]) == (each.predicted, "rankwise")
        assert suggestion["score"] == pytest.approx(each.confidence, abs=1e-4)
        assert record["responses"] == {} and record["vectors"] == {}
        assert record["metadata"]["given_label"] == each.label
        assert all(isinstance(value, str | int | float) for value in record["metadata"].values())


def test_label_studio(made: RunFolder) -> None:
    """Pre-annotations fit the labeling interface: its control, its object and one of its choices."""
    found, labels = wrong_texts(load(made)), load(made).results.labels
    tree = ElementTree.fromstring(label_studio_config(labels))
    control = next(tree.iter("Choices"))
    choices = [each.get("value") for each in control]
    assert len(choices) == len(labels)
    tasks = json.loads(label_studio_tasks(found))
    for task, each in zip(tasks, found, strict=True):
        assert task["data"]["text"] == each.text
        for element in tree.iter():
            value = element.get("value", "")
            assert not value.startswith("$") or value[1:] in task["data"]
        (prediction,) = task["predictions"]
        (result,) = prediction["result"]
        assert (result["from_name"], result["to_name"]) == (control.get("name"), control.get("toName"))
        assert result["type"] == control.tag.lower()
        assert result["value"]["choices"] == [each.predicted]
        assert 0 <= prediction["score"] <= 1


def test_the_options(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.6}, seeds=(0,))
    words = ["report", str(made.path), "--argilla", "--label-studio", "--test-errors"]
    assert CliRunner().invoke(app, words).exit_code == 0
    records = json.loads((made.path / "errors-argilla.json").read_text("utf-8"))
    assert {each["metadata"]["split"] for each in records} == {"validation", "test"}
    assert (made.path / "errors-label-studio.json").exists()
    page = (made.path / "report.html").read_text("utf-8")
    assert 'href="errors-argilla.json"' in page and "validation and test texts" in page


def test_several_runs_have_no_exports(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.6}, seeds=(0,))
    with pytest.raises(UsageError, match="no other files"):
        build.report([made, made], tmp_path / "page.html", extras=build.Extras(argilla=True))
