"""The verbs of the command line. No logic: each hands its arguments to a module and shows the answer.

Exit status: 0 done; otherwise as the tree in `rankwise.errors` says.
"""

from __future__ import annotations

import csv
import functools
import inspect
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer

from rankwise.errors import RankwiseError, UsageError
from rankwise.recipe import PRESETS, Recipe
from rankwise.training import signals

app = typer.Typer(
    help="Fine-tune a language model into a text classifier with LoRA, at every rank in one pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder to write [default: runs/DATA-BASE-TIME].")
]
Adapter = Annotated[Path, typer.Argument(help="Adapter folder, such as runs/NAME/adapters/r4-s110.")]
Base = Annotated[str | None, typer.Option(help="Base model, where it is not the one the adapter names.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="auto, bfloat16 or float32.")]
TextColumn = Annotated[str | None, typer.Option(help="Name of the text column.")]
LabelColumn = Annotated[str | None, typer.Option(help="Name of the label column.")]

DATA_SETTINGS = (
    *("base", "validation", "test", "data_config", "text_column", "label_column", "labels"),
    *("validation_fraction", "max_length"),
)
"""The settings of a recipe that `rankwise data` takes."""


def main() -> None:
    """Run the command line and exit with its status."""
    limit_caches()
    app()


def limit_caches() -> None:
    """Have fewer compiled products kept, unless the user's environment says how many.

    oneDNN and torch each keep the last 1,024, one for each shape. Texts of all lengths make new shapes in
    every step, so that these caches grow to a gigabyte with the holes between them (docs/log.md). Both
    read these variables at their first product. A program of the user's own is left as it is.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """A function as a verb: its errors become one message and an exit status, never a traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            function(*args, **options)
        except RankwiseError as error:
            _fail(error, error.exit_status)
        except signals.Interrupted as error:
            _fail(RankwiseError(str(error)), error.exit_status)
        except KeyboardInterrupt:
            _fail(RankwiseError("interrupted"), 130)
        except BrokenPipeError:
            # The reader of our output has gone; the interpreter must not try to flush to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get("RANKWISE_DEBUG"):
                raise
            hint = "RANKWISE_DEBUG=1 shows where; please report it with the command that you gave"
            _fail(RankwiseError(f"internal error: {type(error).__name__}: {error}", hint=hint), 70)

    app.command()(guarded)
    return guarded


def _fail(error: RankwiseError, status: int) -> NoReturn:
    from rankwise.cli.terminal import show_error

    show_error(error)
    raise typer.Exit(status)


def _with_recipe(
    function: Callable[..., None], settings: Iterable[str] = tuple(Recipe.settings())
) -> Callable[..., None]:
    """Give a verb --preset, --recipe and an option for every setting of a recipe, or for some.

    The verb gets the finished recipe as its first argument. The text under each of the recipe's
    fields is the option's help.
    """

    @functools.wraps(function)
    def with_recipe(preset: str | None, recipe: Path | None, **options: Any) -> None:
        changes = {name: options.pop(name) for name in settings}
        if resumed := options.get("resume"):
            if preset or recipe:
                raise UsageError("--resume goes on with the run's own recipe: no --preset or --recipe")
            recipe = _begun(resumed)
        function(_build_recipe(preset, recipe, changes), **options)

    signature = inspect.signature(function, eval_str=True)
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in list(signature.parameters.values())[1:]]
    options = {
        "preset": Annotated[str | None, typer.Option(help=f"Start from a preset: {', '.join(PRESETS)}.")],
        "recipe": Annotated[Path | None, typer.Option(help="Start from a recipe file (TOML).")],
        **{name: _setting(name) for name in settings},
    }
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    # typer reads a verb's parameters from the one and their types from the other; to mypy a function
    # has no __signature__.
    with_recipe.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    with_recipe.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    return with_recipe


def _begun(run: Path) -> Path:
    """The recipe file of a run that was begun."""
    from rankwise.store.run_folder import RunFolder

    folder = RunFolder(run)
    folder.require_begun()
    return folder.recipe


def _setting(name: str) -> Any:
    """A recipe's field as an option. All but flags arrive as text and are checked by the recipe."""
    field = Recipe.settings()[name]
    shown = field.default
    if isinstance(shown, tuple):
        shown = ",".join(map(str, shown))
    text = " ".join((field.description or "").split()) + ("" if shown is None else f" [default: {shown}]")
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(help=text)]
    return Annotated[str | None, typer.Option(help=text, metavar=_metavar(field.annotation))]


def _metavar(annotation: Any) -> str:
    """What a setting's value looks like: `N`, `A,B,...`, `linear|cosine|constant`."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = [annotation, *get_args(annotation)]
    if any(get_origin(kind) is tuple for kind in kinds):
        return "A,B,..."
    return "X" if float in kinds else "N" if int in kinds else "TEXT"


def _build_recipe(preset: str | None, path: Path | None, changes: dict[str, Any]) -> Recipe:
    given = {name: value for name, value in changes.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, str) and _metavar(Recipe.settings()[name].annotation) == "A,B,...":
            given[name] = _listed(value)
    if preset and path:
        raise UsageError("give --preset or --recipe, not both")
    if path:
        return Recipe.load(path, **given)
    return Recipe.preset(preset, **given) if preset else Recipe("option", **given)


def _listed(value: str) -> list[str]:
    """A list as a line of CSV, so that a label may hold a comma: `calm,"angry, very"`."""
    (cells,) = csv.reader([value], skipinitialspace=True)
    return [cell.strip() for cell in cells if cell.strip()]


def _sweep(
    recipe: Recipe, out: Path | None, as_json: bool, samples: bool, track: str | None = None, **going_on: Any
) -> None:
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.cli.tracking import Trackers
        from rankwise.commands.sweep import default_folder, sweep
        from rankwise.store.run_folder import RunFolder
        from rankwise.training.callbacks import Callbacks

        run = RunFolder(out or default_folder(recipe))
        names = [name.strip() for name in (track or "").split(",") if name.strip()]
        with terminal.ProgressBars() as bars, Trackers(names, recipe, run, bars.note) as trackers:
            results = sweep(recipe, run.path, Callbacks(bars, trackers), **going_on)
    from rankwise.report import ranks, tables
    from rankwise.report.run import load

    if as_json:
        print(results.model_dump_json(indent=1))
        return
    finished = load(run)
    terminal.show_table(tables.rank_table(finished))
    if samples:
        terminal.stdout.print()
        terminal.show_table(tables.sample_table(finished))
    terminal.show_comparison(ranks.compare(finished), table=False)
    terminal.show_written(finished)


@_verb
def quickstart(out: Out = None, json: Json = False) -> None:
    """A first run: SmolLM2-135M on the starter data at six ranks, in minutes."""
    _sweep(Recipe.preset("quickstart"), out, json, samples=True)


@_verb
@_with_recipe
def sweep(
    recipe: Recipe,
    *,
    out: Out = None,
    json: Json = False,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run folder to go on with; --ranks and --seeds may add to what it has."),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes between two checkpoints; each epoch has one besides.", min=0)
    ] = 10,
    checkpoint_steps: Annotated[
        int | None, typer.Option(help="Steps between two checkpoints.", min=1)
    ] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="Send losses and accuracies to tensorboard, wandb, mlflow, trackio.", metavar="A,B,..."
        ),
    ] = None,
) -> None:
    """Fine-tune at every rank in one pass and print the rank table."""
    if resume and out:
        raise UsageError("give --resume or --out, not both")
    saving = {"checkpoint_minutes": checkpoint_minutes, "checkpoint_steps": checkpoint_steps}
    _sweep(recipe, resume or out, json, samples=False, track=track, resume=resume is not None, **saving)


@_verb
@_with_recipe
def plan(
    recipe: Recipe,
    *,
    train_texts: Annotated[
        int | None, typer.Option(help="Training texts, where the data cannot be read yet.", min=1)
    ] = None,
    tokens_per_text: Annotated[
        float | None, typer.Option(help="Mean tokens in a text, where the data cannot be read yet.", min=0.01)
    ] = None,
    json: Json = False,
) -> None:
    """What a sweep would train: parameters, steps, tokens, memory. Needs no weights."""
    from rankwise.cli import terminal
    from rankwise.commands.preview import preview

    found = preview(recipe, train_texts=train_texts, tokens_per_text=tokens_per_text)
    if json:
        print(jsonlib.dumps(found.to_json(), indent=1))
    else:
        terminal.show_plan(found)


@_verb
@functools.partial(_with_recipe, settings=DATA_SETTINGS)
def data(
    recipe: Recipe,
    *,
    files: Annotated[
        list[str] | None,
        typer.Argument(help="A file, a folder or a Hub id; or files of train, validation and test, in turn."),
    ] = None,
    json: Json = False,
) -> None:
    """What the data holds: sizes, classes, lengths, duplicates, contradicting labels, leaks."""
    from rankwise.cli import terminal
    from rankwise.commands.preview import data_report

    if len(files or []) > 3:
        raise UsageError("give at most three files: train, validation and test")
    given = dict(zip(("data", "validation", "test"), files or [], strict=False))
    found, notes = data_report(recipe.replace(**given))
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_data(found, notes)


@_verb
def evaluate(
    adapter: Adapter,
    data: Annotated[Path, typer.Option(help="File of labeled texts.")],
    text_column: TextColumn = None,
    label_column: LabelColumn = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Accuracy, macro-F1, per-class figures and confusion matrix of an adapter on a file."""
    from rankwise.cli import terminal
    from rankwise.commands.evaluate import evaluate as run

    columns = {"text_column": text_column, "label_column": label_column}
    found = run(adapter, data, columns=columns, base=base, device=device, precision=precision)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_metrics(found)


@_verb
def predict(
    adapter: Adapter,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.")] = None,
    input: Annotated[
        Path | None, typer.Option(help="File of texts: CSV, TSV, JSONL, Parquet, or a text a line.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write: .csv, .jsonl or .parquet.")] = None,
    safe_csv: Annotated[
        bool, typer.Option("--safe-csv", help="Put ' before cells that a spreadsheet would run as formulas.")
    ] = False,
    text_column: TextColumn = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Label texts, given as arguments or in a file of any length."""
    from rankwise.cli import terminal
    from rankwise.commands.predict import Classifier, predict_file

    if bool(texts) == bool(input) or bool(input) != bool(output):
        raise UsageError("give texts, or --input FILE with --output FILE")
    if safe_csv and not output:
        raise UsageError(
            "--safe-csv is for the file that is written", hint="give --input FILE --output FILE.csv"
        )
    classifier = Classifier.load(adapter, base=base, device=device, precision=precision)
    if input and output:
        with terminal.ProgressBars() as bars:
            bars.begin("predict", None)
            rows = predict_file(
                classifier, input, output, text_column=text_column, safe_csv=safe_csv, on_rows=bars.advance
            )
        terminal.stderr.print(f"{rows:,} texts -> {output}", soft_wrap=True)
        return
    found = classifier(texts or [])
    if json:
        print(
            jsonlib.dumps(
                [
                    {"text": t, "label": p.label, "probabilities": p.probabilities}
                    for t, p in zip(texts or [], found, strict=True)
                ],
                indent=1,
                ensure_ascii=False,
            )
        )
    else:
        terminal.show_predictions(texts or [], found)


@_verb
def samples(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter, such as r4-s110 [default: the best on validation].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 110,
    json: Json = False,
) -> None:
    """Two texts of each class, drawn by seed, with their predictions."""
    from rankwise.cli import terminal
    from rankwise.report.run import load
    from rankwise.report.tables import sample_table
    from rankwise.store.run_folder import RunFolder

    table = sample_table(load(RunFolder(run)), adapter=adapter, seed=seed)
    if json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        print(jsonlib.dumps(rows, indent=1, ensure_ascii=False))
    else:
        terminal.show_table(table)


@_verb
def compare(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    margin: Annotated[
        float, typer.Option(help="Loss of accuracy, in points, that is nothing to worry about.", min=0)
    ] = 0.5,
    json: Json = False,
) -> None:
    """Which rank is enough: every pair of ranks on the same validation texts, and a verdict."""
    from rankwise.cli import terminal
    from rankwise.report import ranks
    from rankwise.report.run import load
    from rankwise.store.run_folder import RunFolder

    if not margin > 0:  # no number of texts shows a loss of nothing
        raise UsageError("--margin must be above 0", hint="half a point is the default")
    found = ranks.compare(load(RunFolder(run)), margin / 100)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_comparison(found, table=True)


@_verb
def report(
    run: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/NAME.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Page to write; needed for several runs [default: RUN/report.html]."),
    ] = None,
    json: Json = False,
) -> None:
    """Make a run's tables, figures, page and cards anew from its files; or set several runs side by side."""
    from rankwise.cli import terminal
    from rankwise.report import build
    from rankwise.store.run_folder import RunFolder

    written = build.report([RunFolder(each) for each in run], out)
    if json:
        print(jsonlib.dumps({"page": str(written)}, indent=1, ensure_ascii=False))
    else:
        terminal.show_report(written)


@_verb
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """The runs in a folder: what each was, what it reached, and whether it ended."""
    from rankwise.cli import terminal
    from rankwise.report.runs import list_runs, runs_table

    found = list_runs(folder)
    if json:
        print(jsonlib.dumps([each.model_dump() for each in found], indent=1, ensure_ascii=False))
    elif found:
        terminal.show_table(runs_table(found))
    else:
        terminal.stdout.print(f"no runs in {folder}", soft_wrap=True)


@_verb
def reproduce(
    base: Annotated[
        str | None, typer.Option(help="Folder of GPT-2, where the Hub cannot be reached.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder of the emotion data's files, where the Hub cannot be reached.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Run the published recipe and compare every row of its table."""
    given = {name: value for name, value in (("base", base), ("data", data)) if value}
    recipe = Recipe.preset("emotion", device=device, **given)
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.commands.sweep import sweep as run

        with terminal.ProgressBars() as bars:
            results = run(recipe, out, bars)
    from rankwise.commands.reproduce import compare, passed

    found = compare(results)
    terminal.show_reproduction(results.base, found)
    raise typer.Exit(0 if passed(found) else 1)


@_verb
def doctor(json: Json = False) -> None:
    """Check the installation and the machine, the numbers of a tiny model among them."""
    from rankwise.cli import terminal
    from rankwise.cli.doctor import examine

    if json:
        findings = list(examine())
        print(jsonlib.dumps([finding.to_json() for finding in findings], indent=1, ensure_ascii=False))
    else:
        findings = terminal.show_findings(examine())
    raise typer.Exit(int(any(finding.state == "problem" for finding in findings)))


@_verb
def version() -> None:
    """The installed version."""
    from importlib.metadata import version as installed

    print(installed("rankwise"))
