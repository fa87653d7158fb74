"""Figures show the run's numbers for runs of any shape."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from rankwise.report import build, diagnostics, figures, fonts
from rankwise.report.cost import accuracy_by_cost
from rankwise.report.drawing import Drawing, _settings, png_names
from rankwise.report.history import Curve, parse_curves
from rankwise.report.learning import learning_curves
from rankwise.report.run import Run, load
from rankwise.report.scores import Score, baseline_rows, by_rank, rank_rows
from rankwise.report.verdict import Chosen
from rankwise.schema import Bin
from rankwise.stats.intervals import accuracy_interval
from tests.made import made_run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load(made_run(tmp_path_factory.mktemp("made") / "run"))


def texts(drawing: Drawing) -> list[str]:
    """The text of a figure, including tick labels."""
    tree = ElementTree.fromstring(drawing.inline())
    return ["".join(each.itertext()).strip() for each in tree.iter("text")]


def accuracy(run: Run, split: str = "validation") -> Drawing:
    return figures.accuracy_by_rank(split, rank_rows(run), baseline_rows(run.results), 4)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_accuracy_by_rank(made: Run, split: str) -> None:
    shown, results = accuracy(made, split), made.results
    assert split in shown.title
    assert f"{split} accuracy, %" in texts(shown)
    for row in rank_rows(made):
        score = row.scores[split]
        assert f"{100 * score.accuracy:.1f}" in texts(shown)
        said = (
            f"rank {row.name}: {100 * score.accuracy:.2f} % ({100 * score.low:.1f} to {100 * score.high:.1f})"
        )
        assert said in shown.description
    for row in baseline_rows(results):
        assert f"{row.name} {100 * row.scores[split].accuracy:.1f}" in " ".join(texts(shown))
        assert f"{row.name}: {100 * row.scores[split].accuracy:.2f} %" in shown.description


def test_the_interval_has_the_length_that_it_should(made: Run) -> None:
    """The ends of a bar in axis units, computed from the SVG."""
    shown = accuracy(made)
    tree = ElementTree.fromstring(shown.inline())
    scale = ticks(tree)
    row = next(each for each in rank_rows(made) if each.rank == 4)
    bars = [
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", each.get("d", ""))]
        for each in tree.iter("path")
        if "stroke-width: 2.4" in each.get("style", "") and "--orange" in each.get("style", "")
    ]
    assert len(bars) == 1
    found = sorted(scale(y) for y in bars[0])
    assert found == pytest.approx(
        [100 * row.scores["validation"].low, 100 * row.scores["validation"].high], abs=0.02
    )


def ticks(tree: ElementTree.Element) -> Callable[[float], float]:
    """Height in the SVG -> value on the y axis, from the grid lines and their labels."""
    found = []
    for group in tree.iter("g"):
        if re.search(r"-ytick_\d+$", group.get("id", "")):
            path, text = next(group.iter("path")), next(group.iter("text"))
            height = float(re.findall(r"M [\d.]+ ([\d.]+)", path.get("d", ""))[0])
            found.append((height, float("".join(text.itertext()).strip())))
    (y0, v0), (y1, v1) = found[0], found[-1]
    return lambda y: v0 + (y - y0) * (v1 - v0) / (y1 - y0)


def test_ranks_stand_in_order_and_rank_0_to_the_left(made: Run) -> None:
    places = figures._places([0, 1, 2, 4, 16])
    assert [places[rank] for rank in (1, 2, 4, 16)] == [0, 1, 2, 4]
    assert places[0] <= -1
    assert "rank, logarithmic; 0 is the linear probe" in texts(accuracy(made))


def test_confusion(made: Run) -> None:
    row = made.results.adapters[0]
    found = row.validation.confusion
    shown = diagnostics.confusion("validation", "rank 0", made.results.labels, found)
    assert shown.title == "Confusion matrix of rank 0 on the validation split"
    for count in {count for line in found for count in line if count}:
        number = sum(line.count(count) for line in found)
        assert texts(shown).count(str(count)) == number
    true, predicted, most, share = diagnostics.confusions(made.results.labels, found)[0]
    i, j = (made.results.labels.index(label) for label in (true, predicted))
    assert most == found[i][j] == max(c for a, line in enumerate(found) for b, c in enumerate(line) if a != b)
    assert share == pytest.approx(found[i][j] / sum(found[i]))
    assert f"{true} taken for {predicted}: {most:g}" in shown.description


def test_percentages_and_counts_of_the_confusion_matrix() -> None:
    shown = texts(diagnostics.confusion("test", "rank 1", ("a", "b"), [[995, 5], [1, 1]]))
    assert [text for text in shown if text[0] in "<0123456789"] == [
        "100 %", "995", "<1 %", "5", "50 %", "1", "50 %", "1",
    ]  # fmt: skip


def test_of_many_classes_the_most_confused_are_shown() -> None:
    labels = [f"class {i}" for i in range(77)]
    counts = np.eye(77, dtype=int) * 9
    counts[3, 4], counts[60, 61], counts[60, 5] = 40, 30, 2
    shown = diagnostics.confusion("validation", "rank 1", labels, counts.tolist())
    assert shown.title.endswith("(the 11 most confused of 77)")
    found = texts(shown)
    for name in ("class 3", "class 4", "class 5", "class 60", "class 61", "66 others"):
        assert found.count(name) == 2  # on both axes
    assert found.count("40") == 1 and found.count("30") == 1
    assert len([text for text in found if text.startswith("class")]) == 22


def test_both_splits_have_the_same_scale(made: Run) -> None:
    """Their ranges differ, and one has more notes below the axis than the other."""
    limits = []
    for split in ("validation", "test"):
        drawing = accuracy(made, split)
        limits.append(drawing._figure(drawing.plot).axes[0].get_ylim())
    assert limits[0] == limits[1]
    scores = [row.scores[split] for row in rank_rows(made) if row.rank for split in ("validation", "test")]
    low, high = limits[0]
    assert low < 100 * min(each.low for each in scores) < 100 * max(each.high for each in scores) < high


def test_accuracy_by_cost(made: Run) -> None:
    rows = rank_rows(made)
    shown = accuracy_by_cost(rows, 4)
    assert shown is not None and accuracy_by_cost(rows[:1], 0) is None
    for row in rows:
        assert row.params and f"{row.params.trainable_params:,} parameters" in shown.description
        assert f"rank {row.name}" in texts(shown)
    assert "trained parameters, logarithmic" in texts(shown)


def test_per_class(made: Run) -> None:
    classes = made.results.adapters[1].validation.classes
    shown = diagnostics.per_class("validation", "rank 1", classes)
    order = [each.label for each in sorted(classes, key=lambda each: each.f1)]
    assert [text for text in texts(shown) if text in order] == order
    for each in classes:
        assert f"{100 * each.f1:.1f}" in texts(shown)
        assert f"recall {100 * each.recall:.1f} %" in shown.description


def test_reliability(made: Run) -> None:
    found = made.results.adapters[1].validation
    assert found.ece is not None
    shown = diagnostics.reliability("validation", "rank 1", found.reliability, found.ece)
    assert f"ECE {100 * found.ece:.2f} points" in texts(shown)
    for each in found.reliability:
        low, high = accuracy_interval(round(each.accuracy * each.texts), each.texts)
        said = f"{100 * each.accuracy:.0f} % right ({100 * low:.0f} to {100 * high:.0f}; {each.texts} texts)"
        assert said in shown.description
    bars = [
        each
        for each in ElementTree.fromstring(shown.inline()).iter("path")
        if "stroke-width: 2.4" in each.get("style", "")
    ]
    assert len(bars) == len(found.reliability)


def test_pooled_seeds_do_not_make_the_calibration_more_certain() -> None:
    one = Bin(low=0.8, high=0.9, texts=40, confidence=0.85, accuracy=0.75)
    pooled = one.model_copy(update={"texts": 120})
    shown = [
        diagnostics.reliability("validation", "x", [each], 0.1, seeds).description.partition("(")[2]
        for each, seeds in ((one, 1), (pooled, 3))
    ]
    assert shown[0].partition(";")[0] == shown[1].partition(";")[0]


def test_learning_curves(made: Run) -> None:
    curves, results = made.curves, made.results
    losses, accuracies = learning_curves(curves, by_rank(results))
    assert [text for text in texts(losses) if text.startswith("rank ")] == [
        f"rank {rank}" for rank in by_rank(results)
    ]
    ends = [curves[f"r4-s{seed}"].log_loss[3.0] for seed in (0, 1, 2)]
    assert f"rank 4: training {mean_loss(curves):.3f}, validation {sum(ends) / 3:.3f}" in losses.description
    best = [curves[f"r4-s{seed}"].accuracy for seed in (0, 1, 2)]
    said = ", ".join(f"{100 * sum(each[epoch] for each in best) / 3:.1f}" for epoch in (1.0, 2.0, 3.0))
    assert f"rank 4: {said}" in accuracies.description
    assert "validation split" in losses.title and "validation split" in accuracies.title


def mean_loss(curves: Mapping[str, Curve]) -> float:
    return sum(curves[f"r4-s{seed}"].losses[3.0] for seed in (0, 1, 2)) / 3


def test_a_torn_history_is_read_as_far_as_it_goes(made: Run) -> None:
    whole = (made.path / "history.jsonl").read_text("utf-8").splitlines()
    lines = [*whole[:50], "[]", '{"adapters": 3}', '{"kind": "live"}', whole[50][:70]]
    assert len(parse_curves(lines)["r1-s0"].losses) == 49  # and one validation
    assert parse_curves([]) == {}
    assert learning_curves({}, by_rank(made.results)) == []


@pytest.mark.parametrize(
    ("accuracies", "labels", "seeds"),
    [
        ({8: 0.9}, ("yes", "no"), (1,)),
        ({0: 0.6}, ("yes", "no"), (1, 2)),
        ({0: 0.6, 4096: 0.9}, tuple(f"class {i}" for i in range(50)), (1,)),
        ({1: 1.0, 2: 1.0}, ("x" * 200, "y" * 200, "\u202e$z"), (1,)),
    ],
    ids=["one rank", "rank 0 alone", "fifty classes", "long labels, all right"],
)
def test_any_run_can_be_drawn(
    tmp_path: Path, accuracies: dict[int, float], labels: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    folder = made_run(tmp_path / "run", accuracies=accuracies, labels=labels, seeds=seeds, baselines=False)
    made = load(folder)
    results = made.results
    found = results.adapters[-1].validation
    drawn = [
        accuracy(made),
        diagnostics.confusion("validation", "x", labels, found.confusion),
        diagnostics.per_class("validation", "x", found.classes),
        *learning_curves(made.curves, by_rank(results)),
    ]
    for each in drawn:
        tree = ElementTree.fromstring(each.inline())
        assert "nan" not in each.inline().lower()
        assert len(list(tree.iter("path"))) > 3
        assert max(map(len, texts(each))) <= 45


def test_after_one_epoch_there_is_no_curve_of_accuracies(made: Run) -> None:
    results = made.results
    curves = {
        name: replace(curve, accuracy={1.0: curve.accuracy[1.0]}) for name, curve in made.curves.items()
    }
    assert [each.name for each in learning_curves(curves, by_rank(results))] == ["learning-loss"]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(75.4, 79.5, (True, False)), (65.0, 72.0, (True, True)), (70.0, 80.0, (False, True))],
    ids=["point above", "point below", "point on both sides"],
)
def test_a_name_keeps_clear_of_the_points(low: float, high: float, expected: tuple[bool, bool]) -> None:
    """Next to a line at 75: at the right end, above or below it; otherwise left of the point."""
    axes = Figure(figsize=(6, 4)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.6, 4.6), ylim=(43.0, 87.0))
    score = Score(0.75, low / 100, high / 100, None, (), 0.0, 0.0)
    point = figures._point_box(figures._inches(axes), 4.0, score)
    (right, above, is_free), name = figures._free_place(axes, "TF-IDF + linear SVM 75.0", 75.0, [point])
    assert is_free and figures._overlap(name, point) == 0
    assert (right == 6, above) == expected


def test_a_line_without_room_for_its_name_is_named_in_the_corner() -> None:
    axes = Figure(figsize=(2, 2)).add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 100))
    taken = {place: Score(0.5, 0.2, 0.8, None, (), 0.0, 0.0) for place in (0.2, 0.5, 0.8)}
    assert figures._baseline_lines(axes, {"linear SVM 50.0": 50.0, "none 5.0": 5.0}, taken) == [
        "linear SVM 50.0"
    ]


def test_bins_that_only_one_seed_has_are_pooled(made: Run) -> None:
    one, other = (row.model_copy(deep=True) for row in made.results.adapters[:2])
    share = Bin(low=0.4, high=0.6, texts=10, confidence=0.5, accuracy=0.4)
    one.validation.reliability = [share]
    other.validation.reliability = [
        share.model_copy(update={"texts": 30, "accuracy": 0.8}),
        share.model_copy(update={"low": 0.8, "high": 1.0}),
    ]
    found = Chosen(4, (one, other)).reliability("validation")
    assert found is not None
    assert [(each.low, each.texts, round(each.accuracy, 6)) for each in found[0]] == [
        (0.4, 40, 0.7), (0.8, 10, 0.4),
    ]  # fmt: skip


JAPANESE = ("喜び", "怒り", "とても長い分類の名前です", "悲しみ")


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without fonts besides those of matplotlib."""
    monkeypatch.setattr(fonts, "installed", list)
    fonts._covering.cache_clear()
    yield
    fonts._covering.cache_clear()


@pytest.mark.usefixtures("no_fonts")
def test_a_png_shows_numbers_for_names_that_no_font_can_draw(tmp_path: Path) -> None:
    folder = made_run(tmp_path / "run", labels=JAPANESE, accuracies={4: 0.9}, seeds=(0,))
    drawings = {each.name: each for each in build.tell(load(folder)).drawings}
    for name in ("confusion-validation", "classes-validation"):
        drawing = drawings[name]
        assert drawing.shows_numbers() and drawing.shows_numbers(pdf=True)
        in_png = {each.get_text() for each in drawing._figure(drawing.in_file()).findobj(Text)}
        assert {"0", "1", "2", "3"} <= in_png and "".join(in_png).isascii()
        assert any("labels.txt" in text for text in in_png)
        assert {"喜び", "怒り", "悲しみ"} <= set(texts(drawing))
    build.rebuild(folder)
    key = (folder.path / "figures" / "labels.txt").read_text("utf-8")
    assert key.splitlines() == [f"{i} {label}" for i, label in enumerate(JAPANESE)]
    assert "labels.txt" in (folder.path / "README.md").read_text("utf-8")


def test_names_that_the_font_can_draw_stay(made: Run, tmp_path: Path) -> None:
    assert png_names(["joy", "Ärger", "радость", "χαρά"]) is None
    assert not any(drawing.shows_numbers(pdf=True) for drawing in build.tell(made).drawings)


def test_an_installed_font_draws_what_the_default_one_lacks() -> None:
    text = "".join(JAPANESE)
    families = fonts.families(text)
    if families is None:
        pytest.skip("no font for Japanese is installed")
    assert families[0] == fonts.DEJAVU and len(families) == 2
    drawing = diagnostics.confusion("validation", "rank 1", JAPANESE, np.eye(4).tolist())
    assert drawing.in_file() is drawing.plot and drawing.in_file(pdf=True) is drawing.plot
    with _settings("x", families), warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of missing glyphs
        drawing._figure(drawing.plot).savefig(io.BytesIO(), format="png")


def test_scripts_that_need_shaping_are_numbers_in_a_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in a PNG, if matplotlib cannot shape text."""
    for text in ("\u0633\u0639\u0627\u062f\u0629", "\u05e9\u05de\u05d7\u05d4", "e\u0301"):
        assert fonts.families(text, pdf=True) is None
        monkeypatch.setattr(fonts, "_can_shape", lambda: True)
        assert fonts.families(text) == (fonts.DEJAVU,)
        monkeypatch.setattr(fonts, "_can_shape", lambda: False)
        assert fonts.families(text) is None
    drawing = diagnostics.confusion("validation", "x", ("\u0633", "b"), [[1, 0], [0, 1]])
    assert drawing.pdf().startswith(b"%PDF") and drawing.in_file(pdf=True) is drawing.numbered


@pytest.mark.parametrize("number", [3, 12, 30, 77])
@pytest.mark.parametrize("label", ["disappointment", "extraordinarily good", "喜" * 30, "W" * 40])
def test_long_names_leave_room_for_the_axis_titles(label: str, number: int) -> None:
    """All text is inside the figure."""
    names = (label, *(f"class {i}" for i in range(1, number)))
    counts = [[1 + 9 * (i == j) for j in range(number)] for i in range(number)]
    drawing = diagnostics.confusion("validation", "rank 1", names, counts)
    with _settings("x"):
        figure = drawing._figure(drawing.in_file())
        figure.draw_without_rendering()
        wide, high = figure.bbox.size
        boxes = {
            each.get_text(): each.get_window_extent() for each in figure.findobj(Text) if each.get_text()
        }
    outside = [
        text
        for text, box in boxes.items()
        if not (box.x0 >= 0 and box.x1 <= wide and box.y0 >= 0 and box.y1 <= high)
    ]
    assert {"true", "predicted"} <= {text.partition(",")[0] for text in boxes}
    assert outside == []
