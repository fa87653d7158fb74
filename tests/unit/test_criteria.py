"""The scores of each metric, against scikit-learn and against the numbers in results.json."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import safetensors.numpy
from scipy.stats import ttest_rel
from sklearn.metrics import f1_score, log_loss

from rankwise import plan
from rankwise.errors import UsageError
from rankwise.report.criteria import CRITERIA, PROBE_LOGITS, criterion
from rankwise.report.ranks import compare, summary_table
from rankwise.report.run import Run, load
from rankwise.schema import MetricName
from rankwise.stats.metrics import text_log_losses
from rankwise.store.run_folder import RunFolder
from tests.made import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load(made_run(tmp_path_factory.mktemp("made") / "run"))


def test_the_mean_of_the_log_losses_is_scikit_learns() -> None:
    rng = np.random.default_rng(3)
    targets, logits = rng.integers(0, 4, 50), 3 * rng.standard_normal((2, 50, 4)).astype(np.float32)
    logits[0, :2] = [[90, -90, 0, 0], [-90, 90, 0, 0]]  # one of these labels has a probability of 0
    targets[:2] = 0
    found = text_log_losses(targets, logits)
    assert found.shape == (2, 50)
    for seed in range(2):
        shifted = logits[seed].astype(np.float64) - logits[seed].max(axis=1, keepdims=True)
        probabilities = np.exp(shifted) / np.exp(shifted).sum(axis=1, keepdims=True)
        assert found[seed].mean() == pytest.approx(log_loss(targets, probabilities, labels=range(4)))
    assert found[0, 1] == pytest.approx(36.04, abs=0.01)


def test_the_scores_of_a_run_average_to_its_results(run: RunFolder, made: Run) -> None:
    for each in (load(run), made):
        rows = each.results.adapters
        losses = CRITERIA["log-loss"].scores(each, rows)
        assert -losses.mean(axis=1) == pytest.approx([row.validation.log_loss for row in rows])
        f1 = CRITERIA["macro-f1"].scores(each, rows)
        assert f1.mean(axis=1) == pytest.approx([row.validation.macro_f1 for row in rows])
        right = CRITERIA["accuracy"].scores(each, rows)
        assert right.mean(axis=1) == pytest.approx([row.validation.accuracy for row in rows])


def test_baselines_of_each_metric(run: RunFolder, tmp_path: Path) -> None:
    """The fixture's linear probe is a rank; here it is a baseline, with the same logits."""
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    lines = copy.predictions.read_text("utf-8").splitlines(keepends=True)
    labels = [line.split(",")[lines[0].split(",").index("r0-s110")] for line in lines]
    labels[0] = "rank 0"
    copy.predictions.write_text(
        "".join(f"{line.rstrip()},{label}\n" for line, label in zip(lines, labels, strict=True)), "utf-8"
    )
    results = copy.read_results()
    probe = next(each for each in results.adapters if each.rank == 0)
    row = results.baselines[0].model_copy(update={"name": "rank 0"})
    results = results.model_copy(update={"baselines": [*results.baselines, row]})
    copy.results.write_text(results.model_dump_json(), "utf-8")
    shutil.copy(copy.logits / "r0-s110.safetensors", copy.logits / f"{PROBE_LOGITS}.safetensors")
    loaded = load(copy)
    found = {name: by.baselines(loaded) for name, by in CRITERIA.items()}
    assert (
        list(found["accuracy"])
        == list(found["macro-f1"])
        == [
            "TF-IDF + linear SVM",
            "the linear probe (rank 0)",
        ]
    )
    assert list(found["log-loss"]) == ["the linear probe (rank 0)"]
    for name, by in CRITERIA.items():
        assert found[name]["the linear probe (rank 0)"] == pytest.approx(by.scores(loaded, [probe])[0])


def test_a_class_without_validation_texts_does_not_count(made: Run) -> None:
    """Texts of one class are moved to another, and its predictions stay."""
    validation = made.predictions["validation"]
    targets = np.where(validation.targets == 5, 1, validation.targets)
    moved = Run(
        **{
            **{name: getattr(made, name) for name in made.__dataclass_fields__},
            "predictions": {"validation": type(validation)(**{**vars(validation), "targets": targets})},
        }
    )
    scores = CRITERIA["macro-f1"].scores(moved, made.results.adapters[:1])
    assert (validation.predicted[0] == 5).any()
    expected = f1_score(targets, validation.predicted[0], labels=range(5), average="macro")
    assert scores.mean() == pytest.approx(expected)


def test_one_seed_by_log_loss_gives_the_paired_t_test(tmp_path: Path) -> None:
    """An independent check of p, interval and sign: scipy's paired test of the two adapters' losses."""
    run = load(made_run(tmp_path / "run", accuracies={1: 0.85, 8: 0.9}, seeds=(0,)))
    found = compare(run, metric="log-loss")
    one, other = run.log_losses(["r1-s0", "r8-s0"])
    expected = ttest_rel(one, other)
    (pair,) = found.pairs
    assert pair.p == pytest.approx(expected.pvalue)
    assert pair.difference == pytest.approx(one.mean() - other.mean())
    interval = expected.confidence_interval()
    assert (pair.low, pair.high) == pytest.approx((interval.low, interval.high))


def test_a_lower_log_loss_is_better(made: Run) -> None:
    found = compare(made, metric="log-loss")
    means = {each.rank: each.mean for each in found.ranks}
    assert found.best == min((rank for rank in means if rank), key=means.__getitem__)
    assert (found.metric, found.unit, found.lower_is_better) == ("log-loss", "nats", True)
    assert all(each.low < each.mean < each.high for each in found.ranks)
    assert [each.accuracy for each in found.ranks] == [each.mean for each in compare(made).ranks]
    probe = next(pair for pair in found.pairs if pair.rank == 0 and pair.other == found.best)
    assert probe.difference == pytest.approx(means[0] - means[found.best]) and probe.low > 0
    table = summary_table(found)
    assert table.columns[1] == "log loss" and "in nats; lower is better" in table.note
    assert table.rows[0][4].startswith("+")


@pytest.mark.parametrize(
    ("metric", "margin", "phrase"),
    [
        ("accuracy", 0.5, "loses less than 50 points"),
        ("macro-f1", 0.5, "loses less than 50 points"),
        ("log-loss", 2.0, "It is shown to lose less than 2 nats"),
    ],
)
def test_the_wording_has_the_metrics_unit(made: Run, metric: MetricName, margin: float, phrase: str) -> None:
    by, found = CRITERIA[metric], compare(made, margin, metric)
    assert found.enough == 1
    assert phrase in found.verdict and f"Its {by.metric.name} is " in found.verdict
    mean = next(each.mean for each in found.ranks if each.rank == 1)
    best = next(each.mean for each in found.ranks if each.rank == found.best)
    assert by.metric.level(by.sign * mean) in found.verdict
    gap = f"{by.metric.scale * (mean - best):+.{by.metric.digits}f} {by.metric.unit} from rank {found.best}"
    assert gap in found.verdict
    assert ("rare large losses" in found.verdict) == (metric == "log-loss")


def test_the_svm_is_left_out_of_the_log_loss_and_this_is_said(run: RunFolder) -> None:
    loaded = load(run)
    left_out = "TF-IDF + linear SVM has no probabilities, hence no log loss, and is left out."
    assert left_out in compare(loaded, metric="log-loss").verdict
    assert "TF-IDF + linear SVM" in [each.baseline for each in compare(loaded, metric="macro-f1").baselines]
    assert left_out not in compare(loaded, metric="macro-f1").verdict


def test_logits_that_are_missing_or_of_other_texts_are_named(made: Run, tmp_path: Path) -> None:
    shutil.copytree(made.path, tmp_path / "run")
    copy = RunFolder(tmp_path / "run")
    path = copy.logits / "r4-s1.safetensors"
    other = np.zeros((7, 6), np.float32)
    for damage in (path.unlink, lambda: path.write_bytes(safetensors.numpy.save({"validation": other}))):
        damage()
        with pytest.raises(UsageError, match=r"r4-s1\.safetensors"):
            compare(load(copy), metric="log-loss")
    assert compare(load(copy), metric="macro-f1").metric == "macro-f1"


def test_names() -> None:
    assert tuple(CRITERIA) == get_args(MetricName)
    assert [by.short for by in CRITERIA.values()] == ["accuracy", "log loss", "macro-F1"]
    assert plan.PROBE == PROBE_LOGITS
    with pytest.raises(UsageError, match="unknown metric 'f1'"):
        criterion("f1")
