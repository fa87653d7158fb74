"""Commands end to end: results on stdout, messages on stderr, exit status."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from typer.testing import CliRunner, Result

from rankwise.cli import app as cli
from rankwise.cli.app import app
from rankwise.cli.examples import EXAMPLES
from rankwise.cli.help import ORDER
from rankwise.commands.classifier import Classifier
from rankwise.models import download, packaged
from rankwise.recipe import Recipe
from rankwise.report.ranks import compare
from rankwise.report.run import load
from rankwise.report.verdict import chosen
from rankwise.store.run_folder import RunFolder
from tests import tiny

SETTINGS = ["--no-tune", "--ranks", "0,2", "--epochs", "1", "--batch-size", "8", "--max-length", "32"]
HERE = ["--device", "cpu", "--precision", "float32"]


def rankwise(*arguments: object, status: int = 0) -> Result:
    """Run a command in this process and check its exit status."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output
    return result


def refusal(*arguments: object, status: int) -> str:
    """The error message of a failing command, without progress messages; stdout must be empty."""
    result = rankwise(*arguments, status=status)
    assert result.stdout == ""
    stages, found, message = result.stderr.partition("error: ")
    progress = [line for line in stages.splitlines() if " texts for " not in line]  # what was read
    assert found and set(progress) <= {"data", "base", "tokens", "load"}
    return found + message


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Commands


def commands() -> dict[str, Any]:
    """Name -> command, as typer builds it. A group has more attributes than the type that typer declares."""
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = group.commands
    return found


def test_sweep(gpt2_base: Path, data_folder: Path, elsewhere: Path) -> None:
    result = rankwise("sweep", "--base", gpt2_base, "--data", data_folder, *SETTINGS, *HERE, "--out", "r")
    assert "rank" in result.stdout and "macro-F1" in result.stdout
    assert "written to r\n" in result.stdout
    assert "try: rankwise predict r/adapters/r" in result.stdout
    assert "train" in result.stderr and "validation" in result.stderr
    recipe = RunFolder(elsewhere / "r").read_results()
    assert [row.rank for row in recipe.adapters] == [0, 2]
    assert Recipe.load(elsewhere / "r" / "recipe.toml").lora.ranks == (0, 2)


def test_sweep_as_json_from_a_recipe_file(gpt2_base: Path, data_folder: Path, elsewhere: Path) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, epochs=1)
    (elsewhere / "my.toml").write_text(recipe.to_toml())
    result = rankwise(
        "sweep", "--recipe", "my.toml", "--ranks", "1", "--no-base-dropout", "--json", "--out", "r"
    )
    found = json.loads(result.stdout)
    assert found == json.loads((elsewhere / "r" / "results.json").read_text())
    assert [row["rank"] for row in found["adapters"]] == [1]
    assert Recipe.load(elsewhere / "r" / "recipe.toml").train.base_dropout is False


def test_sweep_names_its_folder_itself(gpt2_base: Path, data_folder: Path, elsewhere: Path) -> None:
    rankwise("sweep", "--base", gpt2_base, "--data", data_folder, *SETTINGS, *HERE)
    folders = list((elsewhere / "runs").iterdir())
    assert [folder.name[:15] for folder in folders] == ["tiny-tiny-gpt2-"]


def test_no_tune_drops_the_lists_of_a_recipe(tmp_path: Path, gpt2_base: Path, data_folder: Path) -> None:
    listed = Recipe(base=str(gpt2_base), data=str(data_folder), learning_rates=(1e-3, 3e-3), max_length=32)
    (tmp_path / "mine.toml").write_text(listed.to_toml(), "utf-8")
    shown = rankwise("plan", "--recipe", tmp_path / "mine.toml", "--no-tune").stdout
    assert "tuning" not in shown
    assert "tuning is off" in refusal("plan", "--no-tune", "--learning-rates", "1e-3,1e-2", status=2)


def test_a_setting_that_varies_twice() -> None:
    shown = refusal("plan", "--vary", "alpha=1", "--vary", "alpha=2", status=2)
    assert "--vary alpha is given twice" in shown and "--vary alpha=1,2" in shown


def test_quickstart(
    gpt2_base: Path, data_folder: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe(gpt2_base, data_folder, epochs=1)
    monkeypatch.setattr(Recipe, "preset", lambda name, **changes: recipe)
    result = rankwise("quickstart", "--out", "first")
    assert "predicted by" in result.stdout and "written to first" in result.stdout


def test_reproduce_says_pass_or_fail(
    gpt2_base: Path, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = {"epochs": 1, "ranks": (1,), "learning_rate": 1e-9, "device": "cpu"}
    monkeypatch.setattr(
        Recipe, "preset", lambda name, base, data, device: tiny.recipe(base, data, **hopeless)
    )
    result = rankwise("reproduce", "--base", gpt2_base, "--data", data_folder, "--out", "r", status=1)
    assert "91.45" in result.stdout and result.stdout.endswith("fail\n")


def test_plan(gpt2_base: Path, data_folder: Path) -> None:
    result = rankwise("plan", "--base", gpt2_base, "--data", data_folder, *SETTINGS)
    assert "trainable" in result.stdout and "3 classes" in result.stdout
    assert "steps: 6 for each adapter" in result.stdout
    assert result.stderr == ""


def test_plan_of_the_published_recipe() -> None:
    found = json.loads(rankwise("plan", "--preset", "emotion", "--json").stdout)
    assert [(row["rank"], row["trainable_params"], row["total_params"]) for row in found] == [
        (1, 41_472, 124_486_656),
        (2, 78_336, 124_523_520),
        (4, 152_064, 124_597_248),
        (8, 299_520, 124_744_704),
        (16, 594_432, 125_039_616),
    ]
    assert [round(row["trainable_percent"], 4) for row in found] == [0.0333, 0.0629, 0.1220, 0.2401, 0.4754]


def test_evaluate(adapter: Path, data_folder: Path, run: RunFolder) -> None:
    row = run.read_results().adapters[-1]
    assert row.test is not None
    result = rankwise("evaluate", adapter, "--data", data_folder / "test.csv", *HERE)
    assert f"accuracy {100 * row.test.accuracy:.2f} %" in result.stdout
    assert all(word in result.stdout for word in ("precision", "recall", "F1", "Confusion", *tiny.LABELS))
    result = rankwise("evaluate", adapter, "--data", data_folder / "test.csv", *HERE, "--json")
    assert json.loads(result.stdout)["confusion"] == row.test.confusion
    assert result.stderr == "note: test.csv: 12 texts; text: text, label: label\n"


def test_predict_texts(adapter: Path, classifier: Classifier) -> None:
    texts = ["so glad", "my sister was [b]cross[/b]"]
    result = rankwise("predict", adapter, *texts, *HERE)
    assert all(text in result.stdout for text in texts)
    found = json.loads(rankwise("predict", adapter, *texts, *HERE, "--json").stdout)
    assert [row["text"] for row in found] == texts
    for row, expected in zip(found, classifier(texts), strict=True):
        assert row["label"] == expected.label
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-6)


def test_predict_a_file(adapter: Path, data_folder: Path, elsewhere: Path) -> None:
    result = rankwise("predict", adapter, "--input", data_folder / "test.csv", "--output", "out.csv", *HERE)
    assert result.stdout == ""
    assert "12 texts -> out.csv" in result.stderr
    with (elsewhere / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[0]["predicted_label"] in tiny.LABELS


def test_predict_for_a_spreadsheet(adapter: Path, elsewhere: Path) -> None:
    (elsewhere / "in.csv").write_text("text,more\n=1+1 glad,@x\nso cross,-5\n")
    rankwise("predict", adapter, "--input", "in.csv", "--output", "out.csv", "--safe-csv", *HERE)
    with (elsewhere / "out.csv").open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [(row["text"], row["more"]) for row in rows] == [("'=1+1 glad", "'@x"), ("so cross", "'-5")]
    assert "--safe-csv applies to an output file" in refusal(
        "predict", adapter, "so glad", "--safe-csv", status=2
    )


def test_samples(run: RunFolder) -> None:
    result = rankwise("samples", run.path)
    assert "predicted label" in " ".join(result.stdout.split())
    found = json.loads(rankwise("samples", run.path, "--adapter", "r1-s110", "--seed", "5", "--json").stdout)
    assert [row["label"] for row in found] == [label for label in tiny.LABELS for _ in range(2)]
    assert found[0].keys() == {"text", "label", "predicted label", "probability"}


def test_compare(run: RunFolder) -> None:
    shown = " ".join(rankwise("compare", run.path, "--margin", 100).stdout.split())
    assert "Ranks on the validation texts" in shown
    assert "One seed was trained" in shown
    found = json.loads(rankwise("compare", run.path, "--margin", 100, "--json").stdout)
    # No rank can lose more than 100 points, so the smallest rank is enough. Rank 0 is a baseline.
    assert found["enough"] == 1
    assert found["margin"] == 1.0
    assert "not a finished run" in refusal("compare", run.path.parent, status=2)
    shown = refusal("compare", run.adapters / "r4-s110", status=2)
    assert "is an adapter, not a run" in shown and f"hint: rankwise compare {run.path}" in shown
    assert "--margin must be above 0" in refusal("compare", run.path, "--margin", 0, status=2)
    assert "--margin must be above 0 and at most 100" in refusal(
        "compare", run.path, "--margin", 1e9, status=2
    )
    assert "--margin: not a number of at least 0" in refusal("compare", run.path, "--margin", -1, status=2)


@pytest.mark.parametrize(
    ("metric", "given", "margin", "shown"),
    [
        ("accuracy", 50, 0.5, "rank accuracy 95 %"),
        ("macro-f1", 50, 0.5, "rank macro-F1 95 %"),
        ("log-loss", 0.25, 0.25, "rank log loss 95 %"),
    ],
)
def test_compare_by_a_metric(run: RunFolder, metric: str, given: float, margin: float, shown: str) -> None:
    """The margin is in percentage points or in nats; in the JSON, in fractions or nats."""
    asked = ("compare", run.path, "--metric", metric, "--margin", given)
    found = json.loads(rankwise(*asked, "--json").stdout)
    assert (found["metric"], found["margin"]) == (metric, margin)
    assert margin in [point["margin"] for point in found["curve"]]
    assert shown in " ".join(rankwise(*asked).stdout.split())


def test_an_unknown_metric_is_named(run: RunFolder) -> None:
    for verb in ("compare", "report"):
        message = refusal(verb, run.path, "--metric", "f1", status=2)
        assert "unknown metric 'f1'" in message and "accuracy, log-loss, macro-f1" in message
    assert "0.01 nats is the default" in refusal(
        "compare", run.path, "--metric", "log-loss", "--margin", 0, status=2
    )


def test_version_and_help() -> None:
    assert rankwise("version").stdout.strip()[0].isdigit()
    assert rankwise("--version").stdout == rankwise("version").stdout
    shown = rankwise("sweep", "--help").stdout
    for name, field in Recipe.settings().items():
        assert f"--{name.replace('_', '-')}" in shown
        assert (field.description or "").split()[0] in shown
    titles = re.findall(r"─ ([A-Z][a-z ]+) ─", shown)
    assert titles == list(ORDER)
    assert max(map(len, shown.splitlines())) <= 80
    for verb in ("quickstart", "sweep", "plan", "evaluate", "predict", "samples", "reproduce", "version"):
        assert verb in rankwise("--help").stdout


def test_every_command_has_examples_that_it_accepts() -> None:
    verbs = commands()
    assert verbs.keys() == EXAMPLES.keys()
    for verb, examples in EXAMPLES.items():
        shown = rankwise(verb, "--help").stdout
        for line in examples:
            assert line in shown
            program, name, *words = shlex.split(line)
            assert (program, name) == ("rankwise", verb)
            verbs[verb].make_context(verb, words)  # raises where an option is unknown


def test_placeholders_have_one_style() -> None:
    verbs = commands()
    named = {
        each.metavar for verb in verbs.values() for each in verb.params if each.param_type_name == "option"
    }
    style = re.compile(r"[A-Z]+|A,B(,\.\.\.)?|NAME=A,B,\.\.\.|[a-z0-9-]+(\|[a-z0-9-]+)+(\|LABEL=W,\.\.\.)?")
    assert all(style.fullmatch(each) for each in named - {None})


def test_no_placeholder_is_the_name_of_its_option() -> None:
    """Typer 0.27 would take `--device DEVICE` for an option called --DEVICE."""
    verbs = commands()
    for verb, command in verbs.items():
        for each in command.params:
            names = {name.lstrip("-").replace("-", "_") for name in each.opts}
            assert str(each.metavar).lower() not in names, f"{verb}: {each.opts}"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["swe"], ["sweep"]),
        (["sweep", "--sched"], ["--schedule"]),
        (["sweep", "--schedule", "c"], ["cosine", "constant"]),
        (["plan", "--preset", "q"], ["quickstart"]),
    ],
)
def test_completion(words: list[str], offered: list[str]) -> None:
    variables = {"_RANKWISE_COMPLETE": "complete_bash", "COMP_CWORD": str(len(words))}
    line = {"COMP_WORDS": " ".join(["rankwise", *words])}
    result = CliRunner().invoke(app, [], prog_name="rankwise", env=variables | line)
    assert result.exit_code == 0 and result.stdout.split() == offered


# A run in place of an adapter


def test_a_run_means_its_recommended_adapter(run: RunFolder, data_folder: Path) -> None:
    finished = load(run)
    name = chosen(finished.results, compare(finished)).best.name
    for given in (run.path, run.adapters):
        result = rankwise("predict", given, "so glad", *HERE, "--json")
        assert f"note: {run.path} is a run: this is its adapter {name} (" in result.stderr
        assert result.stdout == rankwise("predict", run.adapters / name, "so glad", *HERE, "--json").stdout
    test = data_folder / "test.csv"
    assert rankwise("evaluate", run.path, test, *HERE).stdout == (
        rankwise("evaluate", run.adapters / name, test, *HERE).stdout
    )


def test_a_run_that_did_not_end(run: RunFolder, elsewhere: Path) -> None:
    shutil.copytree(run.path, "half")
    (elsewhere / "half" / "results.json").unlink()
    for line in (
        ["predict", "half", "so glad"],
        ["compare", "half"],
        ["samples", "half"],
        ["report", "half"],
    ):
        shown = refusal(*line, status=2)
        assert "half: contains an unfinished run\nhint: rankwise sweep --resume half" in shown


def test_a_base_model_that_is_unpacked_is_announced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packaged, "_intact", lambda folder: False)
    monkeypatch.setattr(packaged, "_gguf_file", lambda name, source: None)
    monkeypatch.setattr(packaged, "_convert", lambda source, config, folder: None)
    with caplog.at_level("INFO", "rankwise"):
        packaged.unpacked("smollm2-135m")
    (record,) = caplog.records
    cli.NOTES.emit(record)
    shown = " ".join(capsys.readouterr().err.split())
    assert shown.startswith("note: unpacking smollm2-135m into ") and shown.endswith("which is done once")


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ranks", "1,x"], "--ranks: 'x' is not a whole number"),
        (["--ranks", "1,1"], "--ranks: ranks contains a value twice"),
        (["--ranks", "1-3,2"], "--ranks: ranks contains a value twice"),
        (["--ranks", "4-1"], "--ranks: 4-1 is not a range of 1 to 4097 numbers"),
        (["--seeds", "0-999999999"], "--seeds: 0-999999999 is not a range"),
        (["--ranks", ","], "--ranks: give at least one value"),
        (["--seeds", "-1"], "--seeds: seeds must be between 0 and"),
        (["--alpha", "nan"], "--alpha: 'nan' is not a finite number above 0"),
        (["--epochs", "1.5"], "--epochs: '1.5' is not a whole number of at least 1"),
        (["--epoch", "three"], "--epochs: 'three' is not a whole number of at least 1"),
        (["--preset", "emotion", "--epochs", "0"], "--epochs: '0' is not a whole number of at least 1"),
        (["--schedule", "wavy"], "--schedule: 'wavy' is not linear, cosine or constant"),
        (["--device", "gpu"], "--device: 'gpu' is not auto, cpu, cuda, cuda:N or mps; did you mean cuda?"),
        (["--dropout", "1"], "--lora-dropout: '1' is not a number of at least 0 and below 1"),
        (["--labels", "a"], "--labels: give at least two labels"),
        (["--labels", 'a,"b'], "--labels: 'a,\"b' cannot be read as a list"),
        (["--base", "smollm2"], "--base: there is no base model 'smollm2'; did you mean smollm2-135m?"),
        (["--vary", "wd=0,1"], "--vary: wd cannot vary within a rank; alpha, alpha_mode, "),
        (["--vary", "epochs=0-2"], "--vary: epochs: 0 is not a whole number of at least 1"),
        (["--preset", "emotoin"], "no preset 'emotoin'; did you mean emotion?"),
    ],
)
def test_a_bad_value_is_named(options: list[str], message: str) -> None:
    shown = refusal("plan", "--data", "starter", *options, status=2)
    assert shown.startswith(f"error: {message}") and "\nhint: " in shown
    assert not any(words in shown for words in ("Input should", "pattern", "got {"))


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (["swep"], "no such command: swep", "did you mean rankwise sweep?"),
        (["trian"], "no such command: trian", "did you mean rankwise train?"),
        (
            ["plan", "--learning-rat", "1"],
            "no such option: --learning-rat",
            "--learning-rate or --learning-rates",
        ),
        (["plan", "--max"], "no such option: --max", "did you mean --max-"),
        (["predict", "A", "-5 degrees"], "no such option: -5", "rankwise predict ADAPTER -- '-5 ...'"),
        (["predict", "A", "-- so"], "no such option: -- so", "rankwise predict ADAPTER -- '-- so'"),
        (["predict", "A", "--it's so"], "no such option: --it's so", "ADAPTER -- '--it'\"'\"'s so'"),
        (["explain", "A", "-5 degrees"], "no such option: -5", "rankwise explain ADAPTER -- '-5 ...'"),
        (
            ["serve", "A", "--port", "99999"],
            "--port: not a whole number of at least 0 and of at most 65535",
            "such as: rankwise serve",
        ),
        (["predict", "A", "so", "--abstain-below", "90"], "--abstain-below: not a number ", "such as"),
        (["predict"], "missing ADAPTER", "such as: rankwise predict"),
        (["cut", "A", "--rank", "four"], "--rank: not a whole number", "such as: rankwise cut"),
        (["evaluate", "A", "x.csv", "y.csv"], "got unexpected extra argument", "such as: rankwise evaluate"),
        (["sweep", "--ranks"], "--ranks: a value is missing", "rankwise --help"),
        (["--nope"], "no such option: --nope", "rankwise --help"),
    ],
)
def test_a_line_that_cannot_be_parsed(line: list[str], message: str, hint: str) -> None:
    error, _, advice = refusal(*line, status=2).partition("\nhint: ")
    assert error.startswith(f"error: {message}") and hint in advice


def test_other_names(gpt2_base: Path, data_folder: Path) -> None:
    """The same plan by other names of options, as arguments, and as ranges."""
    usual = ["--base", gpt2_base, "--data", data_folder, "--no-tune", "--json"]
    expected = rankwise("plan", *usual, "--ranks", "1,2,3", "--max-length", "32", "--epochs", 2).stdout
    others = ["--model", gpt2_base, "--ranks", "1-3", "--max_length", "32", "--epoch", 2, "--lr", "1e-3"]
    assert rankwise("plan", data_folder, *others, "--no-tune", "--json").stdout == expected
    assert "rank table" in rankwise("train", "--help").stdout


def test_a_file_is_an_argument_or_an_option(adapter: Path, data_folder: Path) -> None:
    for verb in ("plan", "data", "sweep", "search"):
        assert "cannot be combined" in refusal(verb, data_folder, "--data", data_folder, status=2)
    assert "at most three files" in refusal("data", "a", "b", "c", "d", status=2)
    files = [data_folder / f"{split}.csv" for split in ("train", "validation", "test")]
    by_file = json.loads(rankwise("data", *files, "--json").stdout)
    assert by_file["splits"] == json.loads(rankwise("data", "--data", data_folder, "--json").stdout)["splits"]
    assert "cannot be combined" in refusal("evaluate", adapter, files[2], "--data", files[2], status=2)
    assert "no file of labeled texts" in refusal("evaluate", adapter, status=2)


def test_what_may_not_be_meant(gpt2_base: Path, data_folder: Path) -> None:
    plan = ["plan", "--no-tune", "--base", gpt2_base, "--max-length", "64"]
    assert "no data was given" in rankwise(*plan).stderr
    assert rankwise(*plan, "starter").stderr == ""
    shown = rankwise(*plan, data_folder, "--seeds", "3", "--max_length", "1").stderr
    assert "--seeds 3 is one seed, number 3; for 3 seeds: --seeds 0,1,2" in shown
    assert "only the first token of each text is read" in shown
    assert rankwise(*plan, data_folder, "--seeds", "110").stderr == ""
    shown = refusal(*plan, data_folder, "--last-layers", "3", status=2)
    assert "last_layers 3: " in shown and "has 2 layers" in shown and "--last-layers 2 or less" in shown


def test_all_bad_values_are_named_at_once() -> None:
    shown = refusal("plan", "--data", "x", "--ranks", "1,x", "--epochs", "0", "--keep", "first", status=2)
    assert all(f"--{field}: " in shown for field in ("ranks", "epochs", "keep"))


def test_options_without_effect_are_refused(adapter: Path, elsewhere: Path) -> None:
    (elsewhere / "in.csv").write_text("text\nso glad\n", "utf-8")
    for words, message in (
        (["so glad", "--text-column", "text"], "--text-column: no effect, because the texts are arguments"),
        (["so glad", "--skip-empty"], "--skip-empty: no effect, because the texts are arguments"),
        (["--input", "-", "--text-columns", "a,b"], "--text-columns: no effect, because every line of stdin"),
        (
            ["--input", "in.csv", "--output", "out.csv", "--json"],
            "--json: no effect, because the labels go to",
        ),
    ):
        assert message in refusal("predict", adapter, *words, status=2)
    assert not (elsewhere / "out.csv").exists()


def test_explain_says_what_predict_says(adapter: Path, tmp_path: Path) -> None:
    """Notes as for `predict`, and names for the labels of an adapter without any."""
    shown = rankwise("explain", adapter, "so glad " * 40)
    assert "note: 1 of 1 texts cut at 32 tokens" in " ".join(shown.stderr.split())
    other = shutil.copytree(adapter, tmp_path / "other")
    settings = json.loads((other / "classifier.json").read_text("utf-8"))
    settings["rankwise"]["base_sha256"] = "0" * 64
    (other / "classifier.json").write_text(json.dumps(settings), "utf-8")
    (other / "sha256.json").unlink(missing_ok=True)
    shown = rankwise("explain", other, "so glad today")
    assert "was trained on another version of" in " ".join(shown.stderr.split())
    assert "Warning" not in shown.stderr
    assert "label names" in refusal("explain", adapter, "so glad today", "--labels", "a,b", status=2)


def test_usage(adapter: Path, run: RunFolder, elsewhere: Path) -> None:
    assert "no preset 'x'" in refusal("plan", "--preset", "x", status=2)
    assert "cannot be combined" in refusal("plan", "--preset", "emotion", "--recipe", "x.toml", status=2)
    assert "x.toml: the recipe cannot be read" in refusal("plan", "--recipe", "x.toml", status=2)
    assert "give either texts, or --input" in refusal("predict", adapter, status=2)
    assert "give either texts, or --input" in refusal("predict", adapter, "--input", "x.csv", status=2)
    assert "no adapter r9" in refusal("samples", run.path, "--adapter", "r9", status=2)
    assert "not a finished run" in refusal("samples", elsewhere, status=2)


def test_a_folder_in_use(gpt2_base: Path, data_folder: Path, run: RunFolder) -> None:
    before = sorted(path.name for path in run.path.rglob("*"))
    shown = refusal("sweep", "--base", gpt2_base, "--data", data_folder, "--out", run.path, status=2)
    assert "contains a finished sweep" in shown and "\nhint: rankwise sweep --resume" in shown
    assert sorted(path.name for path in run.path.rglob("*")) == before


def test_resume(gpt2_base: Path, data_folder: Path, elsewhere: Path) -> None:
    assert "none: nothing to resume" in refusal("sweep", "--resume", "none", status=2)
    rankwise("sweep", "--base", gpt2_base, "--data", data_folder, *SETTINGS, *HERE, "--out", "r")
    for more in (["--out", "other"], ["--preset", "quickstart"], ["--recipe", "r/recipe.toml"]):
        assert "--resume" in refusal("sweep", "--resume", "r", *more, status=2)
    shown = refusal("sweep", "--resume", "r", "--epochs", "2", "--tune", "--lr", "1e-3", status=2)
    assert (
        "the settings of the run, which --epochs and --tune would change: epochs is 1, tune is off" in shown
    )
    assert "start a new run" in shown
    again = rankwise("sweep", "--resume", "r", "--device", "cpu")
    assert again.stderr == "inputs\nr is complete: nothing is left to train\n"
    assert "macro-F1" in again.stdout and "written to r\n" in again.stdout
    more_ranks = rankwise("sweep", "--resume", "r", "--ranks", "1", "--json")
    assert [row["rank"] for row in json.loads(more_ranks.stdout)["adapters"]] == [0, 1, 2]


def test_resume_with_the_options_of_the_start(gpt2_base: Path, tmp_path: Path, elsewhere: Path) -> None:
    """Options that only go together are compared together."""
    windows = ["--windows", "--window-stride", "16"]
    data = tiny.data_folder(tmp_path / "data")
    rankwise("sweep", "--base", gpt2_base, "--data", data, *SETTINGS, *HERE, *windows, "--out", "r")
    again = rankwise("sweep", "--resume", "r", *windows)
    assert "r is complete" in again.stderr
    shown = refusal("sweep", "--resume", "r", "--windows", "--window-stride", "8", status=2)
    assert "which --window-stride would change: window_stride is 16" in shown


def test_bad_data(adapter: Path, gpt2_base: Path, elsewhere: Path) -> None:
    assert "none.csv: no such file" in refusal("evaluate", adapter, "--data", "none.csv", status=3)
    tiny.write_csv(elsewhere / "bad.csv", [("so glad", "joy"), ("", "fear")])
    shown = refusal("sweep", "--base", gpt2_base, "--data", "bad.csv", "--out", "r", status=3)
    assert shown.startswith("error: bad.csv:3: the text is empty (column 'text')\nhint: ")
    assert not (elsewhere / "r").exists()
    tiny.write_csv(elsewhere / "other.csv", [("so glad", "bliss")])
    shown = refusal("evaluate", adapter, "--data", "other.csv", status=3)
    assert "other.csv:2: the label 'bliss' is not one of the adapter's" in shown
    assert "text 1 is empty" in refusal("predict", adapter, " ", status=3)


def test_a_bad_model(data_folder: Path, elsewhere: Path) -> None:
    shown = refusal("predict", "nowhere", "text", status=4)
    assert "nowhere: no such folder" in shown and "\nhint: " in shown
    (elsewhere / "base").mkdir()
    assert "has no config.json" in refusal("sweep", "--base", "base", "--data", data_folder, status=4)


def test_no_hub(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_ask_hub", lambda name, revision: ConnectionError("no route"))
    shown = refusal("sweep", "--base", "nobody/has-this", "--data", data_folder, status=5)
    assert "nobody/has-this: not a folder here, and the Hub cannot be reached" in shown
    assert "\nhint: " in shown


def test_a_loss_that_is_no_number(gpt2_base: Path, data_folder: Path) -> None:
    settings = [*SETTINGS, *HERE, "--learning-rate", "1e30"]
    result = rankwise("sweep", "--base", gpt2_base, "--data", data_folder, *settings, status=7)
    assert "no adapter is left: r0-s110" in result.stderr and "hint: a lower --learning-rate" in result.stderr


def raising(error: BaseException) -> Any:
    def load(*arguments: object, **options: object) -> NoReturn:
        raise error

    return load


def test_interrupted(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "load", raising(KeyboardInterrupt()))
    assert refusal("predict", adapter, "text", status=130) == "error: interrupted\n"


def test_an_error_of_our_own(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "load", raising(ZeroDivisionError("boom")))
    shown = refusal("predict", adapter, "text", status=70)
    assert shown.startswith("error: internal error: ZeroDivisionError: boom\nhint: set RANKWISE_DEBUG=1")
    monkeypatch.setenv("RANKWISE_DEBUG", "1")
    result = CliRunner().invoke(app, ["predict", str(adapter), "text"])
    assert isinstance(result.exception, ZeroDivisionError)


# In a separate process


def process(*arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "rankwise", *map(str, arguments)]
    return subprocess.run(command, check=False, timeout=120, **options)


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from rankwise.cli.app import app; app(['--help'], standalone_mode=False);"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
def test_no_color_on_a_terminal(run: RunFolder) -> None:
    import pty

    main, side = pty.openpty()
    terminal = {"TERM": "xterm-256color", "COLUMNS": "80"}
    environment = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")} | terminal
    shown = []
    for extra in ({}, {"NO_COLOR": "1"}):
        done = process("samples", run.path / "none", stderr=side, stdout=side, env=environment | extra)
        assert done.returncode == 2
        shown.append(os.read(main, 4096))
    os.close(main)
    os.close(side)
    coloured, plain = shown
    assert b"\x1b[1;31merror:" in coloured
    assert b"31m" not in plain and b"error:" in plain


def test_a_reader_that_goes_away(run: RunFolder) -> None:
    read, write = os.pipe()
    os.close(read)
    done = process("samples", run.path, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
