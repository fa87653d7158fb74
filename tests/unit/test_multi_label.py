"""Multi-label classification from files to the report, the adapter, and predictions."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from typer.testing import CliRunner

from rankwise import Classifier, DataError, ModelError, Recipe, UsageError, evaluate, sweep, train
from rankwise.cli.app import app
from rankwise.commands.corrections import correct
from rankwise.commands.predict import predict_file
from rankwise.data import load as data
from rankwise.errors import as_keywords
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.report.verdict import recommend
from rankwise.store.run_folder import RunFolder
from rankwise.tasks.registry import task_of
from tests import tiny

ROWS = [("so glad", ["joy"]), ("cross, glad", ["joy", "anger"]), ("nothing", []), ("so scared", ["fear"])]
LABELS = [labels for _, labels in ROWS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.multi_folder(tmp_path_factory.mktemp("multi") / "data")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, llama_base: Path, folder: Path) -> RunFolder:
    """A finished run of ranks 1 and 4 and two seeds. Read-only."""
    made = RunFolder(tmp_path_factory.mktemp("runs") / "multi")
    settings: dict[str, Any] = {"ranks": (1, 4), "seeds": (1, 2), "epochs": 12, "keep": "best"}
    sweep(tiny.recipe(llama_base, folder, task="multi-label", **settings), made.path)
    return made


@pytest.fixture(scope="module")
def run(finished: RunFolder) -> Run:
    return load(finished)


@pytest.fixture(scope="module")
def adapter(finished: RunFolder, run: Run) -> Path:
    return finished.adapters / recommend(run).best.name


@pytest.fixture(scope="module")
def classifier(adapter: Path) -> Classifier:
    return Classifier.load(adapter, device="cpu", precision="float32")


def read(path: Path | Any, **settings: Any) -> list[tuple[str, list[str]]]:
    """The training texts with the names of their labels."""
    given = str(path) if isinstance(path, Path) else path
    found = data.load(Recipe(data=given, task="multi-label", validation_fraction=0.01, **settings))
    parts = [(found.train, i) for i in range(len(found.train))]
    parts += [(found.validation, i) for i in range(len(found.validation))]
    return [(split.texts[i], sorted(found.task.named(split.labels[i], found.labels))) for split, i in parts]


def expected(rows: Sequence[tuple[str, list[str]]] = ROWS) -> list[tuple[str, list[str]]]:
    return sorted((text, sorted(labels)) for text, labels in rows)


def write_csv(path: Path, separator: str = "|") -> Path:
    lines = [("text", "label"), *((text, separator.join(labels)) for text, labels in ROWS)]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def write_lists(path: Path) -> Path:
    rows = {"text": [text for text, _ in ROWS], "label": LABELS}
    made = datasets.Dataset.from_dict(rows)
    {".jsonl": made.to_json, ".parquet": made.to_parquet}[path.suffix](str(path))
    return path


class TestData:
    """Labels are read alike from lists and from joined cells."""

    @pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
    def test_lists_in_files(self, tmp_path: Path, name: str) -> None:
        assert sorted(read(write_lists(tmp_path / name))) == expected()

    @pytest.mark.parametrize("separator", ["|", ";", ", "])
    def test_joined_cells(self, tmp_path: Path, separator: str) -> None:
        path = write_csv(tmp_path / "a.csv", separator)
        assert sorted(read(path, label_separator=separator)) == expected()

    def test_class_labels_of_the_datasets_library(self, tmp_path: Path) -> None:
        names = ["anger", "fear", "joy"]
        features = datasets.Features(
            {
                "text": datasets.Value("string"),
                "label": datasets.List(datasets.ClassLabel(names=names)),
            }
        )
        ids = [[names.index(label) for label in labels] for labels in LABELS]
        made = datasets.Dataset.from_dict(
            {"text": [text for text, _ in ROWS], "label": ids}, features=features
        )
        made.to_parquet(str(tmp_path / "a.parquet"))
        for source in (made, tmp_path / "a.parquet"):
            assert sorted(read(source)) == expected()

    def test_lists_in_memory(self) -> None:
        pandas = pytest.importorskip("pandas")
        texts = [text for text, _ in ROWS]
        for source in (
            (texts, LABELS),
            {"text": texts, "label": LABELS},
            pandas.DataFrame({"text": texts, "label": LABELS}),
        ):
            assert sorted(read(source)) == expected()

    def test_repeated_labels_count_once(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label\na,x|y|x\nb,y\nc,\n", "utf-8")
        assert ("a", ["x", "y"]) in read(path)

    def test_fasttext_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_text("__label__x __label__y a\n__label__y b\n__label__x c\n", "utf-8")
        assert sorted(read(path)) == [("a", ["x", "y"]), ("b", ["y"]), ("c", ["x"])]

    def test_lists_name_the_task(self, tmp_path: Path) -> None:
        with pytest.raises(DataError) as caught:
            data.load(Recipe(data=str(write_lists(tmp_path / "a.jsonl"))))
        assert "a.jsonl:1: the label is a list: ['joy']" in str(caught.value)
        assert "task='multi-label'" in caught.value.hint

    @pytest.mark.parametrize(
        "row",
        [
            {"text": "so very glad", "label": ["O", "O", "B"]},
            {"text": ["so", "very", "glad"], "label": [0, 0, 1]},
        ],
    )
    def test_labels_of_words_are_refused_by_name(self, tmp_path: Path, row: dict[str, Any]) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps(row) + "\n", "utf-8")
        with pytest.raises(DataError, match="word") as caught:
            data.load(Recipe(data=str(path)))
        assert "AutoModelForTokenClassification" in caught.value.hint

    @pytest.mark.parametrize("content", ["{}.5", "{}{}.25"])
    def test_numbers_are_refused_by_name(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "a.csv"
        rows = [f"text {i},{content.format(i, i)}" for i in range(30)]
        path.write_text("\n".join(["text,label", *rows]) + "\n", "utf-8")
        with pytest.raises(DataError, match="30 different numbers, which looks like regression"):
            data.load(Recipe(data=str(path)))

    @pytest.mark.parametrize("repeated", [1, 2])
    def test_joined_labels_name_the_task(self, tmp_path: Path, repeated: int) -> None:
        """As a hint if a joined label has one text only, else as a note."""
        rows = [f"text {i},{'joy' if i % 2 else 'anger'}" for i in range(20)]
        rows += [f"both {i},joy;anger" for i in range(repeated)]
        path = tmp_path / "a.csv"
        path.write_text("\n".join(["text,label", *rows]))
        advice = "task='multi-label' and label_separator=';'"
        if repeated == 1:
            with pytest.raises(DataError) as refused:
                data.load(Recipe(data=str(path)))
            assert advice in str(refused.value)
        else:
            assert any(advice in as_keywords(note) for note in data.load(Recipe(data=str(path))).notes)

    def test_a_label_with_the_separator_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text('{"text": "a", "label": ["x|y"]}\n{"text": "b", "label": ["z"]}\n', "utf-8")
        with pytest.raises(DataError, match=r"the label 'x\|y' contains '\|'") as caught:
            read(path)
        assert "label_separator=';'" in caught.value.hint

    def test_every_text_with_the_same_labels_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.csv"
        path.write_text("text,label\na,x|y\nb,x|y\n", "utf-8")
        with pytest.raises(DataError, match="every text has the labels 'x', 'y'"):
            read(path)

    def test_few_texts_of_a_label_are_said(self, folder: Path) -> None:
        few = data.load(Recipe(data=str(folder), task="multi-label", validation_fraction=0.1))
        assert not any("threshold" in note for note in few.notes)
        made = data.load(Recipe(data=([text for text, _ in ROWS] * 3, LABELS * 3), task="multi-label"))
        assert any("so their threshold is 0.5: joy, anger, fear" in note for note in made.notes)

    def test_data_in_memory_is_stored_as_lists(self, tmp_path: Path, llama_base: Path) -> None:
        texts, labels = zip(*tiny.multi_rows(60, 0), strict=True)
        folder = tmp_path / "run"
        recipe = tiny.recipe(llama_base, tmp_path, task="multi-label")
        small = {"data": (list(texts), list(labels)), "ranks": (1,), "epochs": 1, "baselines": False}
        results = sweep(recipe.replace(**small), folder)
        assert results.task == "multi-label"
        again = datasets.Dataset.from_parquet(str(folder / "data" / "train.parquet"))
        assert [set(row) for row in again["label"]] == [set(each) for each in labels]


class TestRun:
    """The run folder says what the adapters do, with the statistics of the single-label task."""

    def test_it_learns(self, run: Run) -> None:
        best = recommend(run).best
        assert best.validation.macro_f1 > 0.75
        assert best.test is not None and best.test.macro_f1 > 0.75

    def test_metrics_follow_from_predictions_csv(self, run: Run) -> None:
        for row, predicted in zip(run.results.adapters, run.predictions["test"].predicted, strict=True):
            right = (predicted == (run.predictions["test"].targets == 1)).all(axis=1)
            assert row.test is not None and row.test.accuracy == right.mean()

    def test_test_texts_are_judged_by_the_stored_thresholds(
        self, run: Run, adapter: Path, folder: Path
    ) -> None:
        stored = json.loads((adapter / "classifier.json").read_text("utf-8"))
        row = next(each for each in run.results.adapters if each.name == adapter.name)
        assert row.test is not None
        assert [each.threshold for each in row.test.classes] == stored["rankwise"]["thresholds"]
        assert stored["problem_type"] == "multi_label_classification"
        again = evaluate(adapter, folder / "test.jsonl", device="cpu", precision="float32")
        assert (again.accuracy, again.macro_f1) == (row.test.accuracy, row.test.macro_f1)

    def test_the_verdict_is_by_macro_f1(self, run: Run) -> None:
        found = compare(run)
        assert found.metric == "macro-f1"
        ones = [row for row in run.results.adapters if row.rank == 1]
        mean = next(each.mean for each in found.ranks if each.rank == 1)
        assert mean == pytest.approx(np.mean([row.validation.macro_f1 for row in ones]))
        assert {each.baseline for each in found.baselines} == {
            "TF-IDF + linear SVM",
            "the linear probe (rank 0)",
        }

    @pytest.mark.parametrize("metric", ["accuracy", "log-loss"])
    def test_other_metrics(self, run: Run, metric: Any) -> None:
        assert compare(run, metric=metric).metric == metric

    def test_the_report(self, finished: RunFolder) -> None:
        page = (finished.path / "report.html").read_text("utf-8")
        assert "by macro-F1?" in page and "threshold" in page and "validation subset accuracy" in page
        assert "confusion-validation" not in page and "Most often confused" not in page
        assert "(subset accuracy)" in finished.table.read_text("utf-8")
        card = (finished.adapters / "r4-s1" / "README.md").read_text("utf-8")
        assert 'problem_type=config["problem_type"]' in card and "sigmoid" in card

    def test_baselines(self, run: Run) -> None:
        found = {row.name: row.validation for row in run.results.baselines}
        assert found["TF-IDF + linear SVM"].macro_f1 > 0.9
        assert found["TF-IDF + linear SVM"].log_loss is None
        assert found["majority class"].macro_f1 < 0.8

    def test_a_resumed_run_is_complete(self, finished: RunFolder, run: Run) -> None:
        again = sweep(run.recipe, finished.path, resume=True)
        assert again == run.results

    def test_errors_can_be_corrected(self, finished: RunFolder, folder: Path, tmp_path: Path) -> None:
        rows = tiny.multi_rows(96, 0)
        path = tmp_path / "errors.csv"
        number = next(i for i, (_, labels) in enumerate(rows) if len(labels) == 2)
        text, labels = rows[number]
        given = "|".join(label for label in tiny.LABELS if label in labels)
        path.write_text(f"text,label,corrected_label\n{text},{given},fear|anger\n", "utf-8")
        target = tmp_path / "fixed.jsonl"
        found = correct(folder / "train.jsonl", path, target, task=task_of("multi-label"))
        fixed = [json.loads(line)["labels"] for line in target.read_text("utf-8").splitlines()]
        assert found.changed >= 1
        assert fixed[number] == ["fear", "anger"]

    def test_exports_for_annotation(self, finished: RunFolder) -> None:
        runner = CliRunner()
        done = runner.invoke(app, ["report", str(finished.path), "--argilla", "--label-studio"])
        assert done.exit_code == 0, done.output
        config = (finished.path / "errors-label-studio.xml").read_text("utf-8")
        assert 'choice="multiple"' in config


class TestPredictions:
    """A multi-label classifier gives lists of labels."""

    TEXTS = ("so glad", "so cross scared", "so nothing")

    def test_calls(self, classifier: Classifier) -> None:
        found = classifier(self.TEXTS)
        assert classifier.predict_labels(self.TEXTS) == [each.labels for each in found]
        with pytest.raises(UsageError, match="lists of labels"):
            classifier.predict(self.TEXTS)
        for each in found:
            assert each.thresholds is not None
            limits = each.thresholds
            above = [label for label, p in each.probabilities.items() if p >= limits[label]]
            assert list(each.labels) == above
            assert each.label == "|".join(above)
            assert 0 < each.probability <= 1

    def test_probabilities_are_sigmoids(self, classifier: Classifier) -> None:
        found = classifier.predict_proba(self.TEXTS)
        assert np.allclose(found, 1 / (1 + np.exp(-classifier.logits(self.TEXTS).astype(float))))

    @pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
    def test_files(self, classifier: Classifier, tmp_path: Path, suffix: str) -> None:
        source, target = tmp_path / "in.txt", tmp_path / f"out{suffix}"
        source.write_text("\n".join(self.TEXTS) + "\n", "utf-8")
        predict_file(classifier, source, target)
        said = [list(each.labels) for each in classifier(self.TEXTS)]
        if suffix == ".csv":
            with target.open(encoding="utf-8", newline="") as file:
                rows = [row["predicted_labels"] for row in csv.DictReader(file)]
            assert rows == ["|".join(labels) for labels in said]
        elif suffix == ".jsonl":
            lines = target.read_text("utf-8").splitlines()
            assert [json.loads(line)["predicted_labels"] for line in lines] == said
        else:
            assert datasets.Dataset.from_parquet(str(target))["predicted_labels"][:] == said

    def test_labels_in_a_file_of_lines_are_told_by_the_adapters_separator(
        self, adapter: Path, tmp_path: Path
    ) -> None:
        other = shutil.copytree(adapter, tmp_path / "other")
        settings = json.loads((other / "classifier.json").read_text("utf-8"))
        settings["rankwise"]["label_separator"] = "+"
        (other / "classifier.json").write_text(json.dumps(settings), "utf-8")
        (other / "sha256.json").unlink()
        one, two = list(settings["label2id"])[:2]
        (tmp_path / "in.txt").write_text(f"so glad;{one}+{two}\n" * 20, "utf-8")
        words = [
            "predict",
            str(other),
            "--input",
            str(tmp_path / "in.txt"),
            "--output",
            str(tmp_path / "o.csv"),
        ]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.stderr
        with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
            assert {row["text"] for row in csv.DictReader(file)} == {"so glad"}

    def test_the_command_line(self, adapter: Path) -> None:
        runner, options = CliRunner(), ["--device", "cpu", "--precision", "float32"]
        done = runner.invoke(app, ["predict", str(adapter), *self.TEXTS, "--json", *options])
        rows = json.loads(done.stdout)
        assert all(set(row) == {"text", "labels", "probabilities", "thresholds"} for row in rows)
        shown = runner.invoke(app, ["predict", str(adapter), *self.TEXTS, *options])
        assert shown.exit_code == 0 and "so nothing" in shown.stdout

    def test_evaluate_shows_f1(self, adapter: Path, folder: Path) -> None:
        options = ["--device", "cpu", "--precision", "float32"]
        done = CliRunner().invoke(app, ["evaluate", str(adapter), str(folder / "test.jsonl"), *options])
        assert done.exit_code == 0, done.output
        assert "all labels right" in done.stdout and "micro-F1" in done.stdout
        assert "Confusion" not in done.stdout

    def test_explain_is_about_the_most_probable_label(self, classifier: Classifier) -> None:
        found = classifier.explain("so cross today")
        (row,) = classifier.predict_proba(["so cross today"])
        assert found.label == classifier.labels[int(row.argmax())]

    def test_train_in_one_call(self, llama_base: Path, tmp_path: Path) -> None:
        texts, labels = zip(*tiny.multi_rows(60, 0), strict=True)
        classifier = train(
            (list(texts), list(labels)),
            folder=tmp_path / "run",
            task="multi-label",
            base=str(llama_base),
            ranks=(2,),
            epochs=1,
            tune=False,
            baselines=False,
            precision="float32",
            max_length=32,
        )
        assert set(classifier.predict_labels(["so glad"])[0]) <= set(tiny.LABELS)


class TestStoredThresholds:
    """Damaged thresholds are refused."""

    @pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 2], "0.5", [0.5, 0.5, None], [True, 0.5, 0.5]])
    def test_refused(self, adapter: Path, tmp_path: Path, thresholds: Any) -> None:
        copied = _copy(adapter, tmp_path, lambda own: own["rankwise"].update(thresholds=thresholds))
        with pytest.raises(ModelError, match="thresholds must be a probability for each of 3 labels"):
            Classifier.load(copied)

    def test_another_problem_is_refused(self, adapter: Path, tmp_path: Path) -> None:
        copied = _copy(adapter, tmp_path, lambda own: own.update(problem_type="regression"))
        with pytest.raises(ModelError, match="problem_type is 'regression'"):
            Classifier.load(copied)

    def test_missing_ones_are_one_half(self, adapter: Path, tmp_path: Path) -> None:
        copied = _copy(adapter, tmp_path, lambda own: own.pop("rankwise"))
        found = Classifier.load(copied, device="cpu", precision="float32")
        assert found.thresholds == (0.5, 0.5, 0.5)


def _copy(adapter: Path, target: Path, change: Any) -> Path:
    """A copy of an adapter folder with another classifier.json, and without digests."""
    for path in adapter.iterdir():
        if path.name not in ("sha256.json", "classifier.json"):
            (target / path.name).write_bytes(path.read_bytes())
    own = json.loads((adapter / "classifier.json").read_text("utf-8"))
    change(own)
    (target / "classifier.json").write_text(json.dumps(own), "utf-8")
    return target


class TestImbalance:
    """Weights, logit adjustment and the metric reach the training."""

    def test_weights_must_name_labels(self, llama_base: Path, data_folder: Path, tmp_path: Path) -> None:
        recipe = tiny.recipe(llama_base, data_folder, class_weights={"jo": 2.0})
        with pytest.raises(UsageError, match="class_weights: no text has the label 'jo'; did you mean joy"):
            sweep(recipe, tmp_path / "run")

    def test_rare_labels_are_predicted_more_often(self, llama_base: Path, tmp_path: Path) -> None:
        rows = [row for row in tiny.rows(90, 0) if row[1] != "fear"] + tiny.rows(9, 5)
        folder = tmp_path / "data"
        tiny.write_csv(folder / "train.csv", rows)
        tiny.write_csv(folder / "validation.csv", tiny.rows(30, 7))
        recipe = tiny.recipe(llama_base, folder, ranks=(0,), epochs=3, baselines=False, learning_rate=0.01)
        plain = _share_of_fear(recipe, tmp_path / "plain")
        weighted = recipe.replace(class_weights={"fear": 50.0})
        assert _share_of_fear(weighted, tmp_path / "weighted") > plain
        assert _share_of_fear(recipe.replace(logit_adjustment=5.0), tmp_path / "adjusted") > plain

    def test_the_metric_chooses_epochs_and_settings(self, llama_base: Path, tmp_path: Path) -> None:
        tiny.write_csv(tmp_path / "data" / "train.csv", tiny.rows(190, 0))
        tiny.write_csv(tmp_path / "data" / "validation.csv", tiny.rows(18, 1))
        tuned = {"tune": True, "learning_rates": (0.001, 0.02), "tuning_share": 1.0}
        recipe = tiny.recipe(
            llama_base,
            tmp_path / "data",
            metric="macro-f1",
            keep="best",
            ranks=(1,),
            baselines=False,
            **tuned,
        )
        results = sweep(recipe, tmp_path / "run")
        assert results.tuning is not None and results.tuning.metric == "macro-f1"
        best = max(each.macro_f1 or 0.0 for each in results.tuning.trials)
        by_name = {each.name: each for each in results.tuning.trials}
        taken = by_name[results.tuning.chosen[0].trial]
        assert taken.macro_f1 is not None
        winner = next(each for each in results.tuning.trials if each.macro_f1 == best)
        assert taken.macro_f1 >= best - (winner.metric_error or 0.0)
        history = [
            json.loads(line) for line in (tmp_path / "run" / "history.jsonl").read_text("utf-8").splitlines()
        ]
        f1 = [
            line["macro_f1"][0] for line in history if "macro_f1" in line and line["adapters"] == ["r1-s110"]
        ]
        assert results.adapters[0].kept_epoch == 1 + int(np.argmax(f1))
        assert results.adapters[0].validation.macro_f1 == max(f1)
        assert results.comparison.metric == "macro-f1"

    def test_a_search_compares_by_log_loss(self, llama_base: Path, data_folder: Path, tmp_path: Path) -> None:
        from rankwise import search

        with pytest.raises(UsageError, match="a search compares its trials by log loss"):
            search(tiny.recipe(llama_base, data_folder, metric="macro-f1"), tmp_path / "run")


def _share_of_fear(recipe: Recipe, folder: Path) -> float:
    sweep(recipe, folder)
    found = load(RunFolder(folder))
    (predicted,) = found.predictions["validation"].predicted
    return float((predicted == found.results.labels.index("fear")).mean())
