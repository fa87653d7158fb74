"""The tables of docs/reference.md and docs/concepts.md, against the code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from importlib.resources import files
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import rankwise
from rankwise import plan
from rankwise.cli import app as cli
from rankwise.cli.doctor import Finding
from rankwise.cli.group import ALIASES
from rankwise.commands.results import STAGES
from rankwise.errors import RankwiseError
from rankwise.models.base import KNOWN
from rankwise.recipe import PRESETS, Recipe
from rankwise.report.errors import COLUMNS as ERROR_COLUMNS
from rankwise.report.tables import CSV_COLUMNS, RATE_COLUMN, SCORE_COLUMNS
from rankwise.report.tuning import RESULT_COLUMNS, TRIAL_COLUMNS
from rankwise.schema import (
    SCHEMA,
    AdapterResult,
    Baseline,
    BaselineSummary,
    ClassMetrics,
    Comparison,
    CurvePoint,
    Cut,
    CutResult,
    Diverged,
    Export,
    Metrics,
    PairSummary,
    Push,
    RankSummary,
    Results,
    RunSummary,
    SearchResults,
    SearchTrial,
    Timing,
    Trial,
    TunedRank,
    Tuning,
)
from tests.docs.markdown import ROOT, section, tables

REFERENCE = (ROOT / "docs" / "reference.md").read_text("utf-8")
CONCEPTS = (ROOT / "docs" / "concepts.md").read_text("utf-8")


def table(title: str, number: int = 0) -> list[list[str]]:
    """Rows of a section's table, without the header."""
    return tables(section(REFERENCE, title))[number][1:]


def flat(values: dict[str, Any]) -> dict[str, Any]:
    """Settings of a recipe file by flat name."""
    sections = {name: inner for name, inner in values.items() if isinstance(inner, dict)}
    alone = {name: value for name, value in values.items() if name not in sections}
    named = ((name, value) for inner in sections.values() for name, value in inner.items())
    flat_names = {"source": "data", "enabled": "tune"}
    return alone | {flat_names.get(name) or name: value for name, value in named}


def test_recipe_fields_and_defaults() -> None:
    defaults = {
        name: "unset" if field.default is None else json.dumps(field.default)
        for name, field in Recipe.settings().items()
    }
    assert [(name, default) for name, default, _ in table("Recipe", 1)] == list(defaults.items())


def test_recipe_sections() -> None:
    shown = {section: re.findall(r"\w+", settings) for section, settings in table("Recipe")}
    assert shown.pop("") == ["base"]
    whole = Recipe().model_dump()
    assert shown == {section: list(whole[section]) for section in list(whole)[1:]}


def test_presets() -> None:
    given = {
        name: flat(
            tomllib.loads((files("rankwise") / "assets" / "presets" / f"{name}.toml").read_text("utf-8"))
        )
        for name in PRESETS
    }
    fields = [name for name in Recipe.settings() if any(name in values for values in given.values())]
    expected = [
        [name, *(json.dumps(values[name]) if name in values else "" for values in given.values())]
        for name in fields
    ]
    assert tables(section(REFERENCE, "Presets"))[0] == [["setting", *PRESETS], *expected]


@pytest.mark.parametrize(
    ("number", "model"),
    [
        (0, Results),
        (1, AdapterResult),
        (2, Baseline),
        (3, CutResult),
        (4, Diverged),
        (5, Tuning),
        (6, Trial),
        (7, TunedRank),
        (8, Metrics),
        (9, ClassMetrics),
    ],
)
def test_results_schema(number: int, model: type[BaseModel]) -> None:
    assert [row[0] for row in table("results.json", number)] == list(model.model_fields)


@pytest.mark.parametrize(
    ("number", "model"),
    [(0, Comparison), (1, RankSummary), (2, PairSummary), (3, BaselineSummary), (4, CurvePoint)],
)
def test_comparison_schema(number: int, model: type[BaseModel]) -> None:
    assert [row[0] for row in table("Comparison", number)] == list(model.model_fields)


def test_cut_schema() -> None:
    assert [row[0] for row in table("Cut")] == list(Cut.model_fields)


@pytest.mark.parametrize("model", [Export, Push])
def test_schema_of_what_leaves(model: type[BaseModel]) -> None:
    assert [row[0] for row in table(model.__name__)] == list(model.model_fields)


def test_runs_schema() -> None:
    assert [row[0] for row in table("Runs")] == list(RunSummary.model_fields)


def test_columns_of_csv_files() -> None:
    assert [row[0] for row in table("errors.csv")] == list(ERROR_COLUMNS)
    scores = [f"SPLIT_{name}" for name in SCORE_COLUMNS]
    assert [row[0] for row in table("table.csv")] == [*CSV_COLUMNS, RATE_COLUMN, *scores]
    assert [row[0] for row in table("tuning.csv")] == [*TRIAL_COLUMNS, "SETTING", *RESULT_COLUMNS]


def test_findings() -> None:
    assert [row[0] for row in table("Doctor")] == [field.name for field in fields(Finding)]


def test_timing_schema() -> None:
    assert [row[0] for row in table("timing.json")] == list(Timing.model_fields)


@pytest.mark.parametrize(("number", "model"), [(0, SearchResults), (1, SearchTrial)])
def test_search_schema(number: int, model: type[BaseModel]) -> None:
    assert [row[0] for row in table("search.json", number)] == list(model.model_fields)


def test_results_details() -> None:
    assert dict(table("results.json"))["schema_version"].endswith(f"; {SCHEMA}")
    meanings = dict(table("timing.json"))
    assert set(re.findall(r"`(\w+)`", meanings["seconds"])) == set(STAGES)


def test_verbs_and_their_options() -> None:
    settings = {f"--{name.replace('_', '-')}" for name in Recipe.settings()}
    shown = {}
    for verb, arguments, options, _ in table("Commands"):
        named = set(re.findall(r"--[\w-]+", options))
        shown[verb] = (
            re.findall(r"[A-Z]+", arguments),
            named | settings if "every setting" in options else named,
        )
    # typer's own copy of click has no public type.
    verbs = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    real = {
        name: (
            [p.name.upper() for p in verb.params if p.param_type_name == "argument"],
            {option for p in verb.params if p.param_type_name == "option" for option in p.opts},
        )
        for name, verb in verbs.items()
    }
    assert shown == real


def test_other_names() -> None:
    shown = {
        other.lstrip("`-").rstrip("`"): name.lstrip("`-").rstrip("`") for other, name in table("Commands", 1)
    }
    assert shown == ALIASES


def test_public_names() -> None:
    assert sorted(row[0] for row in table("Python")) == sorted(rankwise.__all__)


def test_no_public_name_hides_another() -> None:
    """Two functions share their names with modules, which an import could put in their place."""
    lines = (
        "import rankwise",
        "assert rankwise.Metrics and callable(rankwise.evaluate)",  # brings in the module of that name
        "assert callable(rankwise.sweep) and callable(rankwise.evaluate)",
    )
    subprocess.run([sys.executable, "-c", "; ".join(lines)], check=True)


def test_exit_statuses() -> None:
    shown = [(int(status), error) for status, error, _ in table("Exit statuses")]
    classes: list[type[RankwiseError]] = [RankwiseError, *_below(RankwiseError)]
    named = sorted((error.exit_status, error.__name__) for error in classes)
    assert shown == [(0, ""), *named, (70, ""), (129, ""), (130, ""), (143, "")]


def test_gpt2_parameters() -> None:
    found = plan.make(Recipe.preset("emotion"), KNOWN["gpt2"], has_pad_token=False, classes=6)
    expected = [
        [
            f"{row.rank}",
            f"{row.trainable_params:,}",
            f"{row.total_params:,}",
            f"{row.trainable_percent:.4f}",
            f"{row.merged_params:,}",
        ]
        for row in found.rows
    ]
    assert tables(section(CONCEPTS, "Counting parameters"))[0][1:] == expected
    assert all(row.trainable_params == 36_864 * row.rank + 4_608 for row in found.rows)


def _below(error: type[RankwiseError]) -> Iterator[type[RankwiseError]]:
    for child in error.__subclasses__():
        yield child
        yield from _below(child)
