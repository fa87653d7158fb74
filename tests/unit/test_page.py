"""report.html: one self-contained page with the run's figures and escaped data."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
import shutil
import signal
import tomllib
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

from rankwise.errors import RankwiseError, UsageError
from rankwise.report import build, html
from rankwise.report.ranks import compare
from rankwise.report.run import load, read_data_report
from rankwise.report.scores import rank_rows
from rankwise.report.tables import one_line
from rankwise.schema import Diverged
from rankwise.store.run_folder import RunFolder
from rankwise.training import signals
from tests.made import made_run
from tests.unit.hostile import LABELS, TEXTS
from tests.unit.page import Page

TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "a", "header", "main", "footer", "nav",
    "section", "h1", "h2", "h3", "p", "ul", "li", "dl", "dt", "dd", "div", "figure", "figcaption", "span",
    "table", "caption", "thead", "tbody", "tr", "th", "td", "bdi", "details", "summary", "pre", "code",
    "strong", "svg", "desc", "defs", "g", "path", "use", "text", "tspan", "clippath", "rect",
}  # fmt: skip
DATA = {
    "splits": [
        {
            "name": "train", "texts": 10,
            "classes": [{"label": "<i>a</i>", "texts": 7}, {"label": "b", "texts": 3}],
            "tokens_mean": 20.25, "tokens_p50": 18, "tokens_p95": 41, "tokens_max": 87, "truncated": 2,
            "duplicates": 1, "duplicates_normalized": 1,
        }
    ],
    "contradictions": [{"text": "<u>both</u>", "labels": ["a", "b"], "splits": ["train"]}],
    "contradictions_total": 51,
    "leaks": [
        {
            "splits": ["train", "test"], "texts": 11, "same_label": 0, "other_label": 11,
            "examples": ["<u>one</u>"],
        }
    ],
    "max_length": 128,
    "unit": "tokens",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    run = made_run(tmp_path_factory.mktemp("made") / "emotions")
    (run.path / "data.json").write_text(json.dumps(DATA), "utf-8")
    build.rebuild(run)
    return run


def page(run: RunFolder) -> Page:
    return Page((run.path / "report.html").read_text("utf-8"))


def test_the_verdict_comes_first(made: RunFolder) -> None:
    shown, found = page(made), compare(load(made))
    assert shown.headings[0] == (1, f"{found.headline}.")
    evidence = found.verdict.removeprefix(f"{found.headline}. ")
    assert evidence != found.verdict
    assert shown.text.index(evidence) < shown.text.index("Accuracy against rank")
    assert shown.text.count(found.headline) == 1


def test_it_is_whole_in_itself(made: RunFolder) -> None:
    """No scripts, no links but to files of the run folder, nothing to fetch."""
    shown = page(made)
    assert shown.tags["script"] == shown.tags["img"] == shown.tags["iframe"] == 0
    for _, name, value in shown.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert value == "data:," or value[1:] in shown.ids or (made.path / unquote(value)).exists()
    assert not re.search(r"@import|url\((?!#)", shown.source)
    assert "default-src 'none'" in shown.source


def test_its_structure_can_be_followed(made: RunFolder) -> None:
    """Language, landmarks, heading levels, unique ids, labels for figures and tables."""
    shown = page(made)
    assert ("html", "lang", "en") in shown.attributes
    assert all(shown.tags[tag] == 1 for tag in ("main", "header", "footer", "nav", "h1"))
    assert shown.tags["title"] == 1 + shown.tags["svg"]
    levels = [level for level, _ in shown.headings]
    assert all(next_ <= level + 1 for level, next_ in pairwise(levels))
    assert len(set(shown.ids)) == len(shown.ids)
    named = [value for _, name, value in shown.attributes if name == "aria-labelledby"]
    assert all(each in shown.ids for value in named for each in value.split())
    assert shown.tags["svg"] == shown.tags["figure"] == shown.tags["desc"] == 12
    labels = [value for _, name, value in shown.attributes if name == "aria-label"]
    assert len(labels) == shown.tags["table"] + 1 and all(labels)
    assert set(shown.tags) <= TAGS


def test_every_section_is_there(made: RunFolder) -> None:
    shown = page(made)
    assert [title for level, title in shown.headings if level == 2] == [
        "Accuracy against rank", "Learning curves", "Class by class", "Probabilities and abstaining",
        "Sample predictions", "Errors", "Data", "Cost", "Recipe, machine, and how to reproduce the run",
        "For a paper", "Files",
    ]  # fmt: skip
    results = made.read_results()
    for row in rank_rows(load(made)):
        for score in row.scores.values():
            assert f"{100 * score.accuracy:.2f}" in shown.text
    for word in ("majority class", "TF-IDF + linear SVM", "torch", results.versions["torch"], "5,123"):
        assert word in shown.text
    assert "rankwise sweep --recipe emotions/recipe.toml --out emotions-again" in shown.text
    settings = shown.text.partition("All settings")[2].partition("For a paper")[0]
    assert tomllib.loads(settings) == tomllib.loads(made.recipe.read_text("utf-8"))
    for said in ("20.2", "over 128", "7 (70.0)", "Texts with contradicting labels: 51", "same label"):
        assert said in shown.text


def test_every_figure_names_its_split(made: RunFolder) -> None:
    for drawing in build.tell(load(made)).drawings:
        assert "validation" in drawing.title or "test" in drawing.title
        assert drawing.name.endswith("-test") == ("test split" in drawing.title)


def test_commands_are_quoted_for_the_shell(tmp_path: Path) -> None:
    for name in ("it's $mine & yours", "-x"):
        made = made_run(tmp_path / name, accuracies={4: 0.9}, seeds=(1,))
        build.rebuild(made)
        lines = [line for line in page(made).text.splitlines() if line.startswith("rankwise predict")]
        start = "./-x" if name == "-x" else name
        first = ["rankwise", "predict", f"{start}/adapters/r4-s1", "some text"]
        assert [shlex.split(line) for line in lines] == [
            first,
            [*first[:-1], "--input", "texts.csv", "--output", "labeled.csv"],
        ]


def test_links_of_a_copy_lead_to_the_run_folder(made: RunFolder, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "page.html"
    copy.parent.mkdir()
    for _ in range(2):  # a page of rankwise may be replaced
        assert build.report([made], copy) == copy
    shown = Page(copy.read_text("utf-8"))
    links = [value for tag, name, value in shown.attributes if (tag, name) == ("a", "href")]
    links = [link for link in links if not link.startswith("#")]
    assert len(links) > 8
    assert all((copy.parent / unquote(link)).exists() for link in links)


def test_the_script_is_the_only_one_that_the_policy_allows(made: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(made.path, tmp_path / made.path.name))
    plain = page(made)
    build.rebuild(copy, extras=build.Extras(interactive=True))
    source = (copy.path / "report.html").read_text("utf-8")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in source and "unsafe-eval" not in source
    assert "script-src" not in plain.source and plain.tags["script"] == 0
    shown = Page(re.sub(r"<script>.*?</script>", "", source, flags=re.DOTALL))
    assert shown.headings == plain.headings  # nothing is lost without scripts
    assert all(line in shown.text for line in plain.text.splitlines())


def test_classes_with_few_texts_are_called_rough(made: RunFolder, tmp_path: Path) -> None:
    counts = [each.texts for each in made.read_results().adapters[0].validation.classes]
    few = [each for each in counts if each < 20]
    assert f"{len(few)} of 6 classes" in page(made).text and f"(the smallest {min(few)})" in page(made).text
    many = made_run(tmp_path / "run", accuracies={4: 0.9}, seeds=(1,), sizes={"validation": 2_000})
    build.rebuild(many)
    assert "rough" not in page(many).text


def test_the_choice_does_not_look_at_test(made: RunFolder, tmp_path: Path) -> None:
    """Reversing the test metrics changes neither the verdict nor the choice."""
    copy = RunFolder(shutil.copytree(made.path, tmp_path / "run"))
    results = copy.read_results()
    for row in results.adapters:
        assert row.test is not None
        row.test.accuracy = 1 - row.test.accuracy
    copy.results.write_text(results.model_dump_json(), "utf-8")
    one, other = build.tell(load(made)), build.tell(load(copy))
    assert (one.comparison, one.choice.best.name) == (other.comparison, other.choice.best.name)


def test_the_same_files_give_the_same_bytes(made: RunFolder, tmp_path: Path) -> None:
    copy = RunFolder(shutil.copytree(made.path, tmp_path / made.path.name))
    build.rebuild(copy)
    for path in made.path.rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (copy.path / path.relative_to(made.path)).read_bytes(), path.name


def test_hostile_data_stays_text(tmp_path: Path) -> None:
    made = made_run(tmp_path / "<b>run</b>", accuracies={1: 0.7, 2: 0.7}, labels=LABELS, texts=TEXTS)
    results = made.read_results().model_copy(
        update={"base": "</title><script>x</script>", "notes": [TEXTS[0]]}
    )
    made.results.write_text(results.model_dump_json(), "utf-8")
    (made.path / "data.json").write_text(json.dumps(DATA), "utf-8")
    build.rebuild(made)
    shown = page(made)
    assert set(shown.tags) <= TAGS
    assert shown.tags["style"] == 1 and shown.tags["title"] == 1 + shown.tags["svg"]
    assert not any(name.startswith("on") for _, name, _ in shown.attributes)
    # Each text is sampled often enough to appear among the errors or samples, unchanged.
    assert sum(one_line(text) in shown.text for text in TEXTS) > 5
    assert all(label in shown.text for label in LABELS)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown.source)
    for path in (made.path / "figures").glob("*.svg"):
        assert "<script" not in path.read_text("utf-8")


def test_a_run_without_most_things(tmp_path: Path) -> None:
    """One rank, one seed, no test, baselines, history, timing or calibration: their sections are omitted."""
    made = made_run(
        tmp_path / "run", accuracies={4: 0.9}, seeds=(1,), sizes={"validation": 60}, baselines=False,
        calibration=False,
    )  # fmt: skip
    made.history.unlink()
    made.timing.unlink()
    build.rebuild(made)
    shown = page(made)
    titles = [title for _, title in shown.headings]
    assert titles[0] == "Only rank 4 was tried, on only 60 validation texts."
    assert "Learning curves" not in titles and "Data" not in titles
    assert "test" not in {word for _, title in shown.headings for word in title.split()}
    assert sorted(path.stem for path in (made.path / "figures").glob("*.svg")) == [
        "accuracy-validation", "classes-validation", "confusion-validation",
    ]  # fmt: skip
    assert "ECE" not in shown.text


def test_dropped_adapters_are_named(tmp_path: Path) -> None:
    dropped = [Diverged(name=f"r16-s{s}", rank=16, seed=s, step=1_234, reason="the <loss>") for s in (0, 1)]
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 2: 0.8, 16: 0.9}, seeds=(0, 1), diverged=dropped)
    build.rebuild(made)
    text = page(made).text
    assert "r16-s1 (step 1,234: the <loss>)" in text and "16 (dropped)" in text
    assert "16 (dropped)" in made.table.read_text("utf-8")


def test_nothing_finished(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,))
    results = made.read_results().model_copy(update={"adapters": []})
    made.results.write_text(results.model_dump_json(), "utf-8")
    with pytest.raises(UsageError, match="every adapter diverged"):
        build.rebuild(made)


def test_a_fault_in_the_report_does_not_look_like_a_lost_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,))
    monkeypatch.setattr(build, "tell", lambda *story: 1 / 0)
    with pytest.raises(
        RankwiseError, match="its results are safe, but the report could not be made"
    ) as caught:
        build.rebuild(made)
    assert "rankwise report" in caught.value.hint
    assert made.table.exists() and made.read_results().adapters


def test_a_signal_that_a_figure_swallows_stops_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,))
    monkeypatch.setattr(signals, "_signals", arrived := signals._Signals())

    def swallowing(*story: object) -> None:
        arrived.arrived, arrived.raised = signal.SIGTERM, True
        raise TypeError("incompatible function arguments")

    monkeypatch.setattr(build, "tell", swallowing)
    with pytest.raises(signals.Interrupted, match="SIGTERM"):
        build.rebuild(made)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"splits": 3}', "\xff"])
def test_a_damaged_data_report_is_left_out(tmp_path: Path, content: str) -> None:
    (tmp_path / "data.json").write_text(content, "latin-1")
    assert read_data_report(tmp_path / "data.json") is None


def test_sizes_of_files() -> None:
    assert [html.size(number) for number in (5, 1_000, 2_345_678, 3_000_000_000)] == [
        "5 bytes", "1.0 kB", "2.3 MB", "3.0 GB",
    ]  # fmt: skip
