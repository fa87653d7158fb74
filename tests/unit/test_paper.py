"""LaTeX for papers: the methods state the run's numbers, and every key that they cite is defined."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rankwise.report import build
from rankwise.report.paper import REFERENCES, methods, rank_tex
from rankwise.report.run import load
from rankwise.report.scores import rank_rows
from rankwise.store import files
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.tuned import made_tuning, tune


def prose(run: RunFolder) -> str:
    story = build.tell(load(run))
    return methods(story.run, story.comparison, story.choice)


def test_the_methods_have_the_numbers_of_the_run(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run")
    tune(made, made_tuning())
    text, run = prose(made), load(made)
    tuning = run.results.tuning
    assert tuning is not None
    choice = build.tell(run).choice
    score = next(row for row in rank_rows(run) if row.rank == choice.rank).scores["test"]
    for said in (
        "smollm2-135m", "16,000 training texts", "ranks 0, 1, 2, 4, 8 and 16", "3 seeds per rank",
        "(0, 1 and 2)",
        "300 validation texts", f"{tuning.texts:,} texts held out", f"{len(tuning.trials):,} trials",
        "0.5 points", f"We used rank {choice.rank}", f"{100 * score.accuracy:.2f}\\,\\%",
        "The test texts were not used for any choice", "rankwise 0.1.0", "AdamW",
    ):  # fmt: skip
        assert said in text, said


def test_the_layers_are_those_that_tuning_chose(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 2: 0.8, 4: 0.9}, seeds=(0,))
    assert ") on PEFT's default target modules; " in prose(made)
    wide = {"targets": (["all-linear"], ["c_attn"]), "last_layers": (6,)}
    results = tune(made, made_tuning({1: 9e-3, 2: 9e-3, 4: 9e-3}, rates=(), added=(), others=wide))
    narrow = results.adapters[-1].model_copy(
        update={"settings": results.adapters[-1].settings | {"targets": ["c_attn"]}}
    )
    files.write_text(
        made.results,
        results.model_copy(update={"adapters": [*results.adapters[:-1], narrow]}).model_dump_json(),
    )
    wide_ranks = "all linear layers of the last 6 layers (ranks 1 and 2)"
    assert f"on {wide_ranks} and c\\_attn of the last 6 layers (rank 4);" in prose(made)


def test_what_was_not_done_is_not_claimed(tmp_path: Path) -> None:
    """One rank and one seed, untuned, without test split and baselines."""
    made = made_run(
        tmp_path / "run", accuracies={4: 0.9}, seeds=(7,), sizes={"validation": 500}, baselines=False
    )
    text = prose(made)
    assert "at rank 4 with 1 seed per rank (7)" in text and "was not tuned" in text
    for word in ("compared", "sufficient", "test texts", "Bonferroni", "nan", "None"):
        assert word not in text


def test_the_rules_that_were_used_are_named(tmp_path: Path) -> None:
    text = prose(made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.8}, seeds=(1, 2, 3)))
    assert "Banerjee" in text and "\\cite{dorfman1992}" not in text
    assert "called the best if it was shown to be better than each of the others" in text
    assert "were skipped" in text
    assert "No rank was shown to be sufficient or the best; we took the smallest" in text
    decided = prose(made_run(tmp_path / "other", accuracies={1: 0.6, 4: 0.95}, seeds=(1, 2, 3)))
    assert "No rank was shown" not in decided


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 3)])
def test_every_citation_is_defined(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    cited = set(re.findall(r"\\cite\{(\w+)\}", prose(made_run(tmp_path / "run", seeds=seeds))))
    defined = set(re.findall(r"^@\w+\{(\w+),", REFERENCES, re.MULTILINE))
    assert cited and cited <= defined
    assert REFERENCES.count("{") == REFERENCES.count("}")


def test_the_table(tmp_path: Path) -> None:
    made = made_run(tmp_path / "a_b & 50%")
    results = made.read_results().model_copy(update={"base": "a_b & 50% {x}"})
    made.results.write_text(results.model_dump_json(), "utf-8")
    run = load(made)
    text = rank_tex(run, build.tell(run).choice)
    assert r"a\_b \& 50\% \{x\}" in text
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns and {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns[1])}
    for row in rank_rows(run):
        score = row.scores["validation"]
        assert f"{100 * score.accuracy:.2f} [{100 * score.low:.1f}, {100 * score.high:.1f}]" in text
    assert text.count(r"\textbf") == 1


def test_what_the_option_writes(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,))
    build.rebuild(made)
    assert not list(made.path.rglob("*.pdf")) and not (made.path / "table.tex").exists()
    build.rebuild(made, extras=build.Extras(paper=True))
    figures = made.path / "figures"
    assert {path.stem for path in figures.glob("*.pdf")} == {path.stem for path in figures.glob("*.svg")}
    assert all((made.path / name).exists() for name in ("table.tex", "methods.tex", "references.bib"))
