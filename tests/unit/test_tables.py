"""Tables match the run folder, and data is escaped."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from rankwise.errors import UsageError
from rankwise.report import tables
from rankwise.report.run import load
from rankwise.report.samples import sample_table
from rankwise.report.samples import write as write_samples
from rankwise.report.tables import Table, one_line, printable, rank_csv, rank_table
from rankwise.report.verdict import recommend
from rankwise.schema import Diverged
from rankwise.store.run_folder import RunFolder
from tests import tiny
from tests.made import made_run

DROPPED = Diverged(name="r4-s7", rank=4, seed=7, step=12, reason="loss")

HOSTILE = [
    "a | b || c",
    "<script>alert(1)</script> <!-- x --> &lt; &amp;",
    "`code` *em* **strong** _under_ ~~gone~~ ~x~",
    "[a](https://example.org) ![b](c.png) <https://example.org> https://example.org www.example.org a@b.org",
    "# title",
    "- item",
    "> quote",
    "two\nlines\r\nand\u2028more\x0b.",
    "back\\slash \\| \\",
    "$x^2$ :smile: @someone #1",
    "---",
    "| --- |",
    "    code",
    "```",
    "\x1b[31mred\x1b[0m \x07 \u202egnirts",
    "",
]


@pytest.fixture
def copy(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A modifiable copy of the run without its adapters."""
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("adapters"))
    return RunFolder(tmp_path / "run")


def rewrite(folder: RunFolder, lines: list[dict[str, str]]) -> None:
    with folder.predictions.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)


def cells(markdown: str) -> list[list[str]]:
    """The rows of the only table in a Markdown text, whose cells must be plain text."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    tokens = parser.parse(markdown)
    rows: list[list[str]] = []
    for token in tokens:
        kind = token.type.removesuffix("_open").removesuffix("_close")
        assert kind in {"table", "thead", "tbody", "tr", "th", "td", "inline"}, token.type
        if token.type == "tr_open":
            rows.append([])
        if token.type == "inline":
            children = token.children or []
            assert all(child.type == "text" for child in children), token.content
            rows[-1].append("".join(child.content for child in children))
    return rows


def test_hostile_text_stays_text() -> None:
    table = Table("", ("text", "label"), [(text, "x") for text in HOSTILE])
    found = cells(table.markdown())
    assert found == [["text", "label"], *([one_line(text), "x"] for text in HOSTILE)]


def test_hostile_columns_stay_text() -> None:
    table = Table("", tuple(f"{text} x" for text in HOSTILE), [("1",) * len(HOSTILE)])
    assert cells(table.markdown()) == [[one_line(f"{text} x") for text in HOSTILE], ["1"] * len(HOSTILE)]


def test_what_github_would_turn_into_links_is_broken_up() -> None:
    text = Table("", ("a",), [("http://a.b www.a.b $x$ :smile: a@b",)]).markdown()
    assert all(sign not in text for sign in ("http:/", "www.a", " $x", " :smile", "a@"))


def test_nothing_steers_the_terminal() -> None:
    assert one_line("a\x1b[2J\x9bb\u202ec\n\td") == "a\ufffd[2J\ufffdb\ufffdc d"
    assert one_line("👩\u200d🔬 na\u200cme é") == "👩\u200d🔬 na\u200cme é"  # joiners are part of the text
    assert printable("a\nb\rc") == "a\nb\ufffdc"


def test_the_rank_table(run: RunFolder) -> None:
    results = run.read_results()
    table = rank_table(load(run))
    assert table.columns == (
        "rank", "validation accuracy", "95 %", "validation macro-F1",
        "test accuracy", "95 %", "test macro-F1", "trainable params", "total params", "% trainable",
    )  # fmt: skip
    assert table.keys == 1
    for cell, row in zip(table.rows[:3], results.adapters, strict=True):
        found = row.validation
        assert row.test is not None
        assert cell == (
            str(row.rank),
            f"{100 * found.accuracy:.2f}",
            f"{100 * found.accuracy_low:.1f}-{100 * found.accuracy_high:.1f}",
            f"{100 * found.macro_f1:.2f}",
            f"{100 * row.test.accuracy:.2f}",
            f"{100 * row.test.accuracy_low:.1f}-{100 * row.test.accuracy_high:.1f}",
            f"{100 * row.test.macro_f1:.2f}",
            f"{row.trainable_params:,}",
            f"{row.total_params:,}",
            f"{row.trainable_percent:.4f}",
        )  # fmt: skip
    assert [row[0] for row in table.rows[3:]] == [
        "4 cut to 1", "majority class", "TF-IDF + linear SVM", "untrained head",
    ]  # fmt: skip
    assert cells(table.markdown())[1:] == [list(row) for row in table.rows]


def test_without_a_test_split(copy: RunFolder) -> None:
    results = copy.read_results()
    alone = [row.model_copy(update={"test": None}) for row in results.adapters]
    copy.results.write_text(results.model_copy(update={"adapters": alone}).model_dump_json())
    table = rank_table(load(copy))
    assert not any("test" in column for column in table.columns)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_several_seeds_make_one_row_a_rank_and_references_follow(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(3, 5, 7), diverged=[DROPPED])
    results, table = made.read_results(), rank_table(load(made))
    assert table.columns[1:5] == ("validation accuracy", "95 %", "validation macro-F1", "spread")
    names = [row[0] for row in table.rows]
    assert names == ["1", "4 (2 of 3 seeds)", "majority class", "TF-IDF + linear SVM", "untrained head"]
    for name, rank in (("1", 1), ("4 (2 of 3 seeds)", 4)):
        row = next(each for each in table.rows if each[0] == name)
        found = [each.validation.accuracy for each in results.adapters if each.rank == rank]
        assert row[1::3][:2] == (f"{100 * np.mean(found):.2f}", f"{100 * np.std(found, ddof=1):.2f}")
        low, high = map(float, row[2].split("-"))
        assert low < 100 * np.mean(found) < high
    assert table.rows[2][1:5] == (
        f"{100 * results.baselines[0].validation.accuracy:.2f}",
        table.rows[2][2],
        f"{100 * results.baselines[0].validation.macro_f1:.2f}",
        "",
    )
    assert "Dropped: r4-s7 diverged at step 12." in table.note


def test_the_csv_holds_ranks_adapters_and_references_unrounded(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(3, 5))
    results, rows = made.read_results(), list(csv.DictReader(io.StringIO(rank_csv(load(made)))))
    assert [row["kind"] for row in rows] == ["rank"] * 2 + ["adapter"] * 4 + ["baseline"] * 3
    for row in results.adapters:
        cells = next(each for each in rows if each["name"] == row.name)
        assert (int(cells["rank"]), int(cells["seed"])) == (row.rank, row.seed)
        assert float(cells["validation_accuracy"]) == row.validation.accuracy
        assert row.test and float(cells["test_accuracy_low"]) == row.test.accuracy_low
    mean = np.mean([row.validation.accuracy for row in results.adapters if row.rank == 1])
    assert float(rows[0]["validation_accuracy"]) == pytest.approx(mean)


def test_no_cell_of_the_csv_is_a_formula(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,))
    results = made.read_results()
    results.baselines[0].name = "\uff1dcmd"
    made.results.write_text(results.model_dump_json(), "utf-8")
    assert "\nbaseline,'\uff1dcmd," in rank_csv(load(made))


def test_the_linear_probe_is_called_so(tmp_path: Path) -> None:
    """results.json calls the baseline "rank 0"; tables call it a linear probe."""
    made = made_run(tmp_path / "run", accuracies={1: 0.8}, seeds=(0,))
    results = made.read_results()
    results.baselines[0].name = "rank 0"
    made.results.write_text(results.model_dump_json(), "utf-8")
    assert [row[0] for row in rank_table(load(made)).rows][:2] == ["1", "linear probe (rank 0)"]


def test_two_samples_of_each_class(run: RunFolder) -> None:
    table = sample_table(load(run))
    assert [row[1] for row in table.rows] == [label for label in tiny.LABELS for _ in range(2)]
    assert table.columns == ("text", "label", "predicted label", "probability")
    best = recommend(load(run)).best.name
    assert table.title == f"test texts, predicted by {best}"
    with run.predictions.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["split"] == "test"]
    for text, label, predicted, probability in table.rows:
        (line,) = (x for x in lines if (x["text"], x["label"], x[best]) == (text, label, predicted))
        assert float(probability) == pytest.approx(float(line[f"{best} probability"]), abs=5e-4)


def test_samples_are_drawn_by_seed(run: RunFolder) -> None:
    draws = [sample_table(load(run), seed=seed).rows for seed in (110, 110, *range(5))]
    assert draws[0] == draws[1]
    assert any(draw != draws[0] for draw in draws[2:])
    by_rank = {sample_table(load(run), adapter=name).title for name in ("r0-s110", "r4-s110")}
    assert len(by_rank) == 2
    assert [row[0] for row in sample_table(load(run), adapter="r0-s110").rows] == [row[0] for row in draws[0]]


def test_a_class_with_fewer_texts_gives_those(copy: RunFolder) -> None:
    with copy.predictions.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    joys = [line for line in lines if line["split"] == "test" and line["label"] == "joy"]
    rewrite(copy, [line for line in lines if line not in joys] + joys[:1])
    assert [row[1] for row in sample_table(load(copy)).rows] == ["joy", "anger", "anger", "fear", "fear"]


def test_an_unknown_adapter(run: RunFolder) -> None:
    with pytest.raises(UsageError, match="no adapter r3-s110") as caught:
        sample_table(load(run), adapter="r3-s110")
    assert "r0-s110, r1-s110, r4-s110" in caught.value.hint


def test_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a finished run"):
        load(RunFolder(tmp_path))


@pytest.mark.parametrize("content", ["{", "[]", '{"adapters": 1}', "\xff"])
def test_damaged_results(copy: RunFolder, content: str) -> None:
    copy.results.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"results\.json: cannot be read"):
        sample_table(load(copy))


@pytest.mark.parametrize("content", [None, "", "split,text\n", 'split,text,label,r0-s110\n"', "\xff\xfe"])
def test_damaged_predictions(copy: RunFolder, content: str | None) -> None:
    copy.predictions.unlink()
    if content is not None:
        copy.predictions.write_text(content, encoding="latin-1")
    with pytest.raises(UsageError, match=r"predictions\.csv"):
        sample_table(load(copy), adapter="r0-s110")


def test_what_is_written_is_one_table_each(copy: RunFolder) -> None:
    with copy.predictions.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    texts = [text for text in HOSTILE if text]
    for i, line in enumerate(lines):
        line["text"] = texts[i % len(texts)]
    rewrite(copy, lines)
    results = copy.read_results()
    copy.results.write_text(results.model_copy(update={"base": "<b>*my* [base]"}).model_dump_json())
    tables.write(copy, load(copy))
    write_samples(copy, sample_table(load(copy)))
    ranks, samples = copy.table.read_text("utf-8"), copy.samples.read_text("utf-8")
    assert ranks.startswith("\\<b\\>\\*my\\* \\[base\\], 48 training texts\n\n|")
    assert len(cells("|" + samples.partition("|")[2])) == 1 + 6
    drawn = [row[0] for row in cells("|" + samples.partition("|")[2])[1:]]
    assert set(drawn) <= {one_line(text) for text in texts}
