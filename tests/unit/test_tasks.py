"""The tasks: encodings, thresholds and metrics of texts with one label and with several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import accuracy_score, f1_score, log_loss

from rankwise.errors import UsageError
from rankwise.nn.loss import IGNORED, BinaryCrossEntropy, CrossEntropy
from rankwise.recipe import Recipe
from rankwise.stats import multi_label, paired
from rankwise.tasks import labels
from rankwise.tasks.multi import MultiLabel
from rankwise.tasks.registry import task_of
from rankwise.tasks.single import SINGLE

MULTI = MultiLabel()
LABELS = ("joy", "anger", "fear", "love")
INDEX = {label: i for i, label in enumerate(LABELS)}


def drawn(texts: int = 200, seed: int = 0, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(texts, 4) targets, and logits that know something of them."""
    random = np.random.default_rng(seed)
    targets = (random.random((texts, 4)) < (0.5, 0.3, 0.2, 0.1)).astype(np.int8)
    logits = 3.0 * targets - 1.5 + random.normal(size=targets.shape) + shift
    return targets, logits.astype(np.float32)


@pytest.mark.parametrize("given", [(), ("joy",), ("joy", "fear", "love")])
def test_labels_survive_ids_targets_and_cells(given: tuple[str, ...]) -> None:
    ids = MULTI.ids(given, INDEX)
    (target,) = MULTI.targets([ids], 4)
    cell = MULTI.cell(target, LABELS)
    assert MULTI.named(ids, LABELS) == given
    assert cell == "|".join(given)
    assert (MULTI.row(cell, INDEX) == target).all()


def test_a_single_label_is_its_own_cell() -> None:
    assert SINGLE.cell(SINGLE.targets([2], 4)[0], LABELS) == "fear"
    assert SINGLE.row("fear", INDEX) == 2


def test_an_unknown_label_in_a_cell_is_an_error() -> None:
    with pytest.raises(KeyError):
        MULTI.row("joy|hate", INDEX)


@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0, 4.0]])
def test_the_loss_is_that_of_torch(weights: list[float] | None) -> None:
    targets, logits = drawn(9)
    found = None if weights is None else np.array(weights, dtype=np.float32)
    loss = MULTI.loss(4, found, None, torch.device("cpu"))
    theirs = torch.nn.BCEWithLogitsLoss(pos_weight=None if weights is None else torch.tensor(weights))
    z, t = torch.from_numpy(logits), torch.from_numpy(targets)
    assert float(loss([z], [t])) == pytest.approx(float(theirs(z, t.float())), rel=1e-6)


def test_fillers_and_micro_batches_do_not_change_the_loss() -> None:
    targets, logits = (torch.from_numpy(each) for each in drawn(6))
    loss = BinaryCrossEntropy(4)
    whole = loss([logits], [targets])
    filled = torch.cat([targets, torch.full((2, 4), IGNORED, dtype=torch.int8)])
    assert torch.allclose(loss([torch.cat([logits, logits[:2]])], [filled]), whole)
    totals = loss.totals(targets[None])
    parts = [loss([logits[part]], [targets[part]], totals) for part in (slice(0, 4), slice(4, 6))]
    assert torch.allclose(parts[0] + parts[1], whole)


def test_logit_adjustment_adds_the_log_frequencies() -> None:
    targets = np.array([0, 0, 0, 1])
    adjustment = 2.0 * SINGLE.prior_logits(targets, 2)
    logits, t = torch.randn(4, 2, generator=torch.Generator().manual_seed(0)), torch.from_numpy(targets)
    loss = SINGLE.loss(2, None, adjustment.astype(np.float32), torch.device("cpu"))
    shifted = logits + 2.0 * torch.tensor([0.75, 0.25]).log()
    assert torch.allclose(loss([logits], [t]), CrossEntropy()([shifted], [t]))


def test_metrics_are_scikit_learns() -> None:
    targets, logits = drawn()
    decisions = MULTI.decided(logits)
    found = MULTI.metrics("test", targets, logits, LABELS, decisions)
    said = expit(logits) >= 0.5
    assert found.accuracy == accuracy_score(targets, said)
    assert found.macro_f1 == pytest.approx(f1_score(targets, said, average="macro"))
    assert found.micro_f1 == pytest.approx(f1_score(targets, said, average="micro"))
    losses = [log_loss(targets[:, i], expit(logits[:, i].astype(float))) for i in range(4)]
    assert found.log_loss == pytest.approx(np.mean(losses))
    assert [each.texts for each in found.classes] == targets.sum(axis=0).tolist()
    assert (found.confusion, found.ece, found.is_multi_label) == ([], None, True)


def test_a_threshold_maximizes_f1() -> None:
    targets, logits = drawn(shift=-2.0)
    probabilities = expit(logits.astype(float))
    thresholds = multi_label.best_thresholds(probabilities, targets == 1)
    for label in range(4):
        tried = [
            f1_score(targets[:, label], probabilities[:, label] >= cut, zero_division=0.0)
            for cut in np.unique(probabilities[:, label])
        ]
        mine = f1_score(targets[:, label], probabilities[:, label] >= thresholds[label])
        assert mine == pytest.approx(max(tried))


def test_few_texts_leave_a_threshold_at_its_default() -> None:
    targets, logits = drawn()
    targets[:, 3] = 0
    targets[:9, 3] = 1  # one fewer than are needed
    thresholds = MULTI.thresholds(logits, targets)
    assert thresholds[3] == 0.5 != thresholds[0]
    ids = [tuple(np.flatnonzero(row).tolist()) for row in targets]
    assert MULTI.untunable(ids, 4) == [3]
    assert SINGLE.untunable([0, 1], 2) == []
    assert labels.FEWEST == multi_label.FEWEST


def test_validation_is_judged_by_thresholds_of_other_texts() -> None:
    """Thresholds that are chosen for noise look good on their own texts only."""
    random = np.random.default_rng(1)
    gains = []
    for _ in range(40):
        targets = (random.random((60, 4)) < 0.3).astype(np.int8)
        logits = random.normal(size=(60, 4)).astype(np.float32)
        own = MULTI.decided(logits, MULTI.thresholds(logits, targets))
        crossed = MULTI.judged({"validation": logits}, targets)["validation"]
        f1 = [MULTI.metrics("validation", targets, logits, LABELS, each).macro_f1 for each in (own, crossed)]
        gains.append(f1[0] - f1[1])
    assert np.mean(gains) > 0.03


def test_other_splits_are_judged_by_the_thresholds_of_validation() -> None:
    targets, logits = drawn(shift=-2.0)
    other, scores = drawn(50, seed=1, shift=-2.0)
    found = MULTI.judged({"validation": logits, "test": scores}, targets)["test"]
    assert found.thresholds == MULTI.thresholds(logits, targets)
    assert (found.predicted == (expit(scores.astype(float)) >= np.array(found.thresholds))).all()
    assert MULTI.correct(found.predicted, other).mean() > 0.2


def test_pseudo_values_have_macro_f1_as_their_mean() -> None:
    targets, logits = drawn()
    said = MULTI.decided(logits).predicted
    values = MULTI.macro_f1_pseudo_values(said[None], targets, 4)
    assert values.mean() == pytest.approx(f1_score(targets, said, average="macro"))


def test_one_label_each_has_the_pseudo_values_and_the_step_of_single_label() -> None:
    random = np.random.default_rng(0)
    targets, said = random.integers(0, 4, 90), random.integers(0, 4, 90)
    one_hot, predicted = np.eye(4, dtype=np.int8)[targets], np.eye(4, dtype=np.bool_)[said]
    theirs = SINGLE.macro_f1_pseudo_values(said[None], targets, 4)
    assert np.allclose(MULTI.macro_f1_pseudo_values(predicted[None], one_hot, 4), theirs)
    assert MULTI.macro_f1_step(one_hot) == pytest.approx(paired.macro_f1_step(targets))


def test_the_probability_of_a_label_set_is_a_product() -> None:
    targets, logits = drawn(5)
    p = MULTI.probabilities(logits)
    expected = np.where(targets == 1, p, 1 - p).prod(axis=1)
    assert np.allclose(MULTI.confidence(logits, targets == 1), expected)
    losses = MULTI.text_log_losses(targets, logits)
    assert np.allclose(MULTI.label_probability(losses, 4), expected)


def test_weights_and_frequencies() -> None:
    targets = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]], dtype=np.int8)
    assert MULTI.balanced_weights(targets, 3).tolist() == pytest.approx([1 / 3, 3, 1])
    odds = np.exp(MULTI.prior_logits(targets, 3))
    assert odds.tolist() == pytest.approx([3, 1 / 3, 0.5 / 4])
    assert MULTI.strata([(0, 1), (0,), (), (0,)]) == [1, 0, -1, 0]


def test_a_name_selects_a_task() -> None:
    assert task_of("single-label") is SINGLE
    assert task_of("multi-label", ";").separator == ";"


@pytest.mark.parametrize(
    ("task", "instead"),
    [
        ("regression", "round them to a few classes"),
        ("token", "AutoModelForTokenClassification"),
        ("generation", "SFTTrainer of TRL"),
    ],
)
def test_other_tasks_are_refused_by_name(task: str, instead: str) -> None:
    with pytest.raises(UsageError, match=f"task: {task} is not supported") as caught:
        Recipe(task=task)
    assert instead in caught.value.message


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ("balanced", "balanced"),
        ("joy=1,surprise=4", {"joy": 1.0, "surprise": 4.0}),
        ('"angry, very=0.5"', {"angry, very": 0.5}),
        ({"joy": 2}, {"joy": 2.0}),
    ],
)
def test_class_weights(given: object, weights: object) -> None:
    assert Recipe(class_weights=given).train.class_weights == weights


@pytest.mark.parametrize("given", ["heavy", "joy=", "joy=0", "joy=-1", "joy=nan", {}, {"joy": "much"}])
def test_other_class_weights_are_refused(given: object) -> None:
    with pytest.raises(UsageError, match=r"class_weights: .* is not none or balanced"):
        Recipe(class_weights=given)


def test_weights_survive_toml(tmp_path: object) -> None:
    recipe = Recipe(class_weights={"joy": 2.0}, task="multi-label", metric="macro-f1")
    path = f"{tmp_path}/recipe.toml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(recipe.to_toml())
    assert Recipe.load(path) == recipe


def test_logit_adjustment_is_for_one_label() -> None:
    with pytest.raises(UsageError, match="logit_adjustment: is for texts with one label"):
        Recipe(task="multi-label", logit_adjustment=1.0)


@pytest.mark.parametrize("separator", ["", '"', "\n"])
def test_a_separator_must_be_usable(separator: str) -> None:
    with pytest.raises(UsageError, match="label_separator"):
        Recipe(label_separator=separator)
