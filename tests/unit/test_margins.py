"""The verdict against the margin: its values, and the figure."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from rankwise.report.margins import verdict_by_margin
from rankwise.report.ranks import compare
from rankwise.report.run import Run, load
from rankwise.schema import MetricName
from tests.made import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("made") / "run"
    return load(made_run(folder, sizes={"validation": 2000}, seeds=(0, 1, 2, 3, 4)))


@pytest.mark.parametrize("metric", ["accuracy", "log-loss", "macro-f1"])
def test_every_point_is_the_verdict_at_its_margin(made: Run, metric: MetricName) -> None:
    found = compare(made, metric=metric)
    margins = [point.margin for point in found.curve]
    assert margins == sorted(set(margins)) and found.margin in margins
    for point in found.curve[::8]:
        assert compare(made, point.margin, metric).enough == point.enough
    assert {point.enough for point in found.curve} >= {None, 1}


def test_the_margin_of_the_verdict_is_a_point(made: Run) -> None:
    found = compare(made, 0.01234)
    (point,) = (each for each in found.curve if each.margin == 0.01234)
    assert point.enough == found.enough


def test_the_figure_shows_the_steps_and_marks_the_margin(made: Run) -> None:
    found = compare(made, 0.02)
    drawing = verdict_by_margin(found)
    assert drawing is not None and "validation split" in drawing.title
    changes = [
        (point.margin, point.enough)
        for before, point in zip([None, *found.curve], found.curve, strict=False)
        if before is None or before.enough != point.enough
    ]
    said = "; ".join(
        f"from {100 * margin:.4g} {'point' if f'{100 * margin:.4g}' == '1' else 'points'}: "
        + ("undecided" if rank is None else f"rank {rank}")
        for margin, rank in changes
    )
    assert drawing.description == f"{said}. The margin of the verdict is 2 points."
    tree = ElementTree.fromstring(drawing.inline())
    texts = ["".join(each.itertext()).strip() for each in tree.iter("text")]
    assert {"undecided", "1", "16", "2 points", "margin, points, logarithmic"} <= set(texts)
    assert "0" not in texts  # the linear probe is not a candidate
    # The rank's steps are blue, and every step has a height of its own.
    heights = {
        height
        for each in tree.iter("path")
        if "stroke-width: 2.4" in each.get("style", "") and "--blue" in each.get("style", "")
        for height in re.findall(r"[ML] [\d.]+ ([\d.]+)", each.get("d", ""))
    }
    assert len(heights) == len({rank for _, rank in changes} - {None})


def test_a_single_rank_has_no_curve(tmp_path: Path) -> None:
    found = compare(load(made_run(tmp_path / "run", accuracies={0: 0.6, 8: 0.9})))
    assert found.curve == [] and verdict_by_margin(found) is None


@pytest.mark.parametrize("margin", [1e-9, 1.0])
def test_a_margin_beyond_the_axis_extends_it(made: Run, margin: float) -> None:
    drawing = verdict_by_margin(compare(made, margin))
    assert drawing is not None and drawing.files["png"].startswith(b"\x89PNG")
