"""Comparison of a run with the published table."""

from __future__ import annotations

import pytest

from rankwise.cli import terminal
from rankwise.commands import reproduce
from rankwise.schema import AdapterResult, Metrics, Results

PUBLISHED = {1: 1829, 2: 1826, 4: 1834, 8: 1830, 16: 1828}  # rank -> correct predictions of 2,000 texts
TOLERANCE = 24  # texts: 1.2 points


def metrics(right: int) -> Metrics:
    return Metrics(
        split="validation", texts=2000, accuracy=right / 2000, accuracy_low=0, accuracy_high=1, macro_f1=0.9,
        log_loss=0.2, ece=0.0, reliability=[], classes=[], confusion=[],
    )  # fmt: skip


def results(right: dict[int, int]) -> Results:
    """A run with the given number of correct predictions of 2,000 at each rank."""
    adapters = [
        AdapterResult(
            name=f"r{rank}-s110",
            rank=rank,
            seed=110,
            alpha=0.8,
            scale=0.8 / rank,
            trainable_params=1,
            total_params=2,
            trainable_percent=50.0,
            merged_params=2,
            bank=1,
            adapter_bytes=1,
            train_loss=0.5,
            kept_epoch=5,
            validation=metrics(number),
            test=None,
        )
        for rank, number in right.items()
    ]
    return Results(
        rankwise="0",
        base="gpt2",
        labels=["no", "yes"],
        texts={"train": 1, "validation": 2000},
        notes=[],
        device="cpu",
        precision="float32",
        threads=1,
        versions={},
        adapters=adapters,
    )


def passed(right: dict[int, int]) -> bool:
    return reproduce.passed(reproduce.compare(results(right)))


def verdicts(right: dict[int, int]) -> dict[int, bool]:
    return {each.rank: each.passes for each in reproduce.compare(results(right))}


def test_the_published_numbers() -> None:
    assert {rank: round(percent * 20) for rank, percent in reproduce.PUBLISHED.items()} == PUBLISHED


def test_the_same_numbers_pass(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_reproduction("gpt2", reproduce.compare(results(PUBLISHED)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["gpt2,", "validation", "accuracy", "in", "percent"]
    assert " ".join(lines[1]) == "rank published accuracy accuracy difference within 1.2 points"
    assert lines[3:] == [
        ["1", "91.45", "91.45", "+0.00", "pass"],
        ["2", "91.30", "91.30", "+0.00", "pass"],
        ["4", "91.70", "91.70", "+0.00", "pass"],
        ["8", "91.50", "91.50", "+0.00", "pass"],
        ["16", "91.40", "91.40", "+0.00", "pass"],
        ["pass"],
    ]


@pytest.mark.parametrize("rank", PUBLISHED)
@pytest.mark.parametrize("sign", [-1, 1])
def test_just_the_tolerance_passes_and_a_text_more_fails(rank: int, sign: int) -> None:
    edge = PUBLISHED | {rank: PUBLISHED[rank] + sign * TOLERANCE}
    assert passed(edge)
    beyond = PUBLISHED | {rank: PUBLISHED[rank] + sign * (TOLERANCE + 1)}
    assert not passed(beyond)
    assert verdicts(beyond) == {each: each != rank for each in PUBLISHED}


def test_a_missing_rank_fails() -> None:
    less = {rank: right for rank, right in PUBLISHED.items() if rank != 8}
    assert not passed(less)
    assert set(verdicts(less).values()) == {True}


def test_other_ranks_are_left_out() -> None:
    more = PUBLISHED | {32: 3}
    assert passed(more)
    assert 32 not in verdicts(more)
