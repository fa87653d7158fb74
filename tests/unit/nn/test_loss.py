"""Losses of texts that are read in windows: a text counts once, whatever the number of its windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.nn.loss import IGNORED, BinaryCrossEntropy, CrossEntropy, Loss, totals_of

WEIGHTS = torch.tensor([4.0, 0.5, 1.0])
ADJUSTMENT = torch.tensor([-0.2, -1.0, -3.0])
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
# Three texts: of one window, of three, and of two.
COUNTS = torch.tensor([1, 3, 3, 3, 2, 2])
ONE_LABEL = torch.tensor([0, 1, 1, 1, 2, 2])
SEVERAL = torch.tensor([[0, 1, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
CASES: dict[str, tuple[Loss, Tensor]] = {
    "plain": (CrossEntropy(), ONE_LABEL),
    "weights": (CrossEntropy(WEIGHTS), ONE_LABEL),
    "adjusted": (CrossEntropy(WEIGHTS, ADJUSTMENT), ONE_LABEL),
    "several": (BinaryCrossEntropy(3), SEVERAL),
    "several, weights": (BinaryCrossEntropy(3, WEIGHTS), SEVERAL),
}
each_case = pytest.mark.parametrize(("loss", "targets"), CASES.values(), ids=CASES)


def test_cross_entropy_by_hand() -> None:
    """The mean over texts of the mean over windows, each text weighted with its class."""
    minus = -LOGITS.log_softmax(1)
    texts = torch.stack([minus[0, 0], minus[1:4, 1].mean(), minus[4:, 2].mean()])
    found = CrossEntropy()([LOGITS], [ONE_LABEL], windows=[COUNTS])
    torch.testing.assert_close(found, texts.mean()[None])
    weighted = CrossEntropy(WEIGHTS)([LOGITS], [ONE_LABEL], windows=[COUNTS])
    torch.testing.assert_close(weighted, ((WEIGHTS * texts).sum() / WEIGHTS.sum())[None])


def test_binary_cross_entropy_by_hand() -> None:
    each = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL.float(), reduction="none")
    texts = torch.stack([each[0], each[1:4].mean(0), each[4:].mean(0)])
    found = BinaryCrossEntropy(3)([LOGITS], [SEVERAL], windows=[COUNTS])
    torch.testing.assert_close(found, texts.mean()[None])


@each_case
def test_a_text_counts_once(loss: Loss, targets: Tensor) -> None:
    """A text whose windows are all alike has the loss of the text, and its gradient."""
    first = torch.tensor([0, 1, 4])
    texts = LOGITS[first].clone().requires_grad_()
    windows = texts[torch.tensor([0, 1, 1, 1, 2, 2])]
    (expected,) = loss([texts], [targets[first]])
    (found,) = loss([windows], [targets], windows=[COUNTS])
    torch.testing.assert_close(found, expected)
    grads = [torch.autograd.grad(each, texts, retain_graph=True)[0] for each in (found, expected)]
    torch.testing.assert_close(*grads)


@each_case
def test_micro_batches_sum_to_the_batch(loss: Loss, targets: Tensor) -> None:
    """Also if they cut between the windows of a text, and with fillers."""
    logits = torch.cat([LOGITS, LOGITS[:1]])
    padded = torch.cat([targets, torch.full_like(targets[:1], IGNORED)])
    counts = torch.cat([COUNTS, torch.tensor([1])])
    expected = loss([LOGITS], [targets], windows=[COUNTS])
    totals = totals_of(loss, [padded], [counts])
    parts = [
        loss([logits[part]], [padded[part]], totals, [counts[part]]) for part in (slice(0, 2), slice(2, 7))
    ]
    torch.testing.assert_close(sum(parts), expected)
