"""The commands of the command line. No logic: each passes its arguments to a module and shows the result.

Exit status: 0 for success; otherwise as listed in `rankwise.errors`.
"""

from __future__ import annotations

import csv
import functools
import inspect
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer

from rankwise.errors import RankwiseError, UsageError
from rankwise.recipe import PRESETS, Recipe
from rankwise.schema import MetricName
from rankwise.training import signals

app = typer.Typer(
    help="Fine-tune a language model into a text classifier with LoRA, at many ranks in one pass.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of tables.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder to write [default: runs/DATA-BASE-TIME].")
]
Adapter = Annotated[Path, typer.Argument(help="Adapter folder, such as runs/NAME/adapters/r4-s110.")]
Base = Annotated[str | None, typer.Option(help="Base model, if it is not the one that the adapter names.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[str, typer.Option(help="Precision: auto, bfloat16 or float32.")]
Metric = Annotated[
    str, typer.Option(help="What to compare the ranks by.", metavar="accuracy|log-loss|macro-f1")
]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Acceptable loss: in percentage points for accuracy and macro-f1 [default: 0.5], "
        "in nats for log-loss [default: 0.01].",
        min=0,
    ),
]
TextColumn = Annotated[str | None, typer.Option(help="Name of the text column.")]
LabelColumn = Annotated[str | None, typer.Option(help="Name of the label column.")]

DATA_SETTINGS = (
    *("base", "validation", "test", "data_config", "text_column", "label_column", "labels"),
    *("validation_fraction", "max_length"),
)
"""The settings of a recipe that `rankwise data` accepts."""


def main() -> None:
    """Run the command line and exit with its status."""
    limit_caches()
    app()


def limit_caches() -> None:
    """Shrink the caches of compiled matrix products, unless the environment sets their size.

    oneDNN and torch each cache 1,024 compiled products, one per shape. Texts of many lengths make new shapes
    in every step, so these caches and the fragmentation between them grow to a gigabyte (docs/log.md). Both
    libraries read these variables at their first product. Programs that import rankwise are not affected.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command. Errors become one message and an exit status, never a traceback."""

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
            # The reader of our output has closed it; the interpreter must not try to flush to it at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get("RANKWISE_DEBUG"):
                raise
            hint = "set RANKWISE_DEBUG=1 to see the traceback; please report it with the command that you ran"
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
    """Give a command --preset, --recipe, and an option for every setting of a recipe, or for some of them.

    The command gets the finished recipe as its first argument. The docstring of each recipe field is the
    help of its option.
    """

    @functools.wraps(function)
    def with_recipe(preset: str | None, recipe: Path | None, **options: Any) -> None:
        changes = {name: options.pop(name) for name in settings}
        if resumed := options.get("resume"):
            if preset or recipe:
                raise UsageError("--resume uses the run's own recipe: omit --preset and --recipe")
            recipe = _begun(resumed)
        function(_build_recipe(preset, recipe, changes), **options)

    signature = inspect.signature(function, eval_str=True)
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in list(signature.parameters.values())[1:]]
    options = {
        "preset": Annotated[str | None, typer.Option(help=f"Preset to start from: {', '.join(PRESETS)}.")],
        "recipe": Annotated[Path | None, typer.Option(help="Recipe file (TOML) to start from.")],
        **{name: _setting(name) for name in settings},
    }
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    # typer reads parameters from __signature__ and their types from __annotations__. To mypy, a function has
    # no __signature__.
    with_recipe.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    with_recipe.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    return with_recipe


def _begun(run: Path) -> Path:
    """The recipe file of an existing run."""
    from rankwise.store.run_folder import RunFolder

    folder = RunFolder(run)
    folder.require_begun()
    return folder.recipe


def _setting(name: str) -> Any:
    """A recipe field as an option. Every value but a flag arrives as text, and the recipe validates it."""
    field = Recipe.settings()[name]
    shown = field.default
    if isinstance(shown, tuple):
        shown = ",".join(map(str, shown))
    if shown == {}:
        shown = None
    text = " ".join((field.description or "").split()) + ("" if shown is None else f" [default: {shown}]")
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(help=text)]
    if get_origin(field.annotation) is dict:
        return Annotated[list[str] | None, typer.Option(help=text, metavar="NAME=A,B,...")]
    return Annotated[str | None, typer.Option(help=text, metavar=_metavar(field.annotation))]


def _metavar(annotation: Any) -> str:
    """Placeholder for a setting's value in the help: `N`, `A,B,...`, `linear|cosine|constant`."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    kinds = [annotation, *get_args(annotation)]
    if any(get_origin(kind) is tuple for kind in kinds):
        return "A,B,..."
    return "X" if float in kinds else "N" if int in kinds else "TEXT"


def _build_recipe(preset: str | None, path: Path | None, changes: dict[str, Any]) -> Recipe:
    given = {name: value for name, value in changes.items() if value not in (None, [], ())}
    for name, value in given.items():
        if isinstance(value, str) and _metavar(Recipe.settings()[name].annotation) == "A,B,...":
            given[name] = _listed(value)
        if isinstance(value, list | tuple):
            given[name] = _named_lists(name, value)
    if given.get("tune") is False:  # the lists of the preset or recipe have no use then
        given = {"learning_rates": None, "vary": {}} | given
    if preset and path:
        raise UsageError("--preset and --recipe cannot be combined")
    if path:
        return Recipe.load(path, **given)
    return Recipe.preset(preset, **given) if preset else Recipe("option", **given)


def _named_lists(option: str, values: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for each in values:
        name, cells = _named_list(option, each)
        if name in found:
            hint = f"give all values at once: --{option} {name}={','.join(found[name] + cells)}"
            raise UsageError(f"--{option} {name} is given twice", hint=hint)
        found[name] = cells
    return found


def _named_list(option: str, value: str) -> tuple[str, list[str]]:
    """Parse `weight_decay=0,0.01`; hyphens in the name are accepted, as in options."""
    name, sign, values = value.partition("=")
    if not sign:
        raise UsageError(f"--{option} {value}: there is no =", hint=f"such as --{option} weight_decay=0,0.01")
    return name.strip().replace("-", "_"), _listed(values)


def _listed(value: str) -> list[str]:
    """Parse a list as a line of CSV, so that a label may contain a comma: `calm,"angry, very"`."""
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
    from rankwise.report.tuning import chosen_table

    if as_json:
        print(results.model_dump_json(indent=1))
        return
    finished = load(run)
    if results.tuning:
        terminal.show_table(chosen_table(results.tuning))
        terminal.stdout.print()
    terminal.show_table(tables.rank_table(finished))
    if samples:
        terminal.stdout.print()
        terminal.show_table(tables.sample_table(finished))
    terminal.show_comparison(ranks.compare(finished), table=False)
    terminal.show_written(finished)


@_verb
def quickstart(out: Out = None, json: Json = False) -> None:
    """Do a first run: SmolLM2-135M on the starter data at six ranks, in minutes."""
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
        typer.Option(help="Run folder to resume. --ranks and --seeds may add to its adapters."),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Minutes between checkpoints. Every epoch ends with one too.", min=0)
    ] = 10,
    checkpoint_steps: Annotated[int | None, typer.Option(help="Steps between checkpoints.", min=1)] = None,
    track: Annotated[
        str | None,
        typer.Option(
            help="Log losses and accuracies to tensorboard, wandb, mlflow, trackio.", metavar="A,B,..."
        ),
    ] = None,
) -> None:
    """Train every rank in one pass and print the rank table."""
    if resume and out:
        raise UsageError("--resume and --out cannot be combined")
    saving = {"checkpoint_minutes": checkpoint_minutes, "checkpoint_steps": checkpoint_steps}
    _sweep(recipe, resume or out, json, samples=False, track=track, resume=resume is not None, **saving)


@_verb
@_with_recipe
def search(
    recipe: Recipe,
    *,
    trials: Annotated[
        int | None,
        typer.Option(help="Number of random draws of settings [default: every combination, as a grid]."),
    ] = None,
    places: Annotated[
        int | None,
        typer.Option(help="Adapters that train at once [default: as many as fit in memory, at most 16]."),
    ] = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option(help="Folder of the search to resume.")] = None,
    json: Json = False,
) -> None:
    """Search ranks, learning rates and other settings: many on short schedules, the best in full."""
    if resume and out:
        raise UsageError("--resume and --out cannot be combined")
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.commands.search import search as run
        from rankwise.commands.sweep import default_folder
        from rankwise.store.run_folder import RunFolder

        folder = RunFolder(resume or out or default_folder(recipe))
        with terminal.ProgressBars() as bars:
            found = run(recipe, folder.path, bars, trials=trials, places=places, resume=resume is not None)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_search(folder, found)


@_verb
@_with_recipe
def plan(
    recipe: Recipe,
    *,
    train_texts: Annotated[
        int | None, typer.Option(help="Number of training texts, if the data cannot be read yet.", min=1)
    ] = None,
    tokens_per_text: Annotated[
        float | None, typer.Option(help="Mean tokens per text, if the data cannot be read yet.", min=0.01)
    ] = None,
    json: Json = False,
) -> None:
    """Show what a sweep would train: parameters, steps, tokens, memory. Fetches no weights."""
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
        typer.Argument(help="A file, a folder or a Hub ID; or up to three files: train, validation, test."),
    ] = None,
    json: Json = False,
) -> None:
    """Report on the data: sizes, classes, lengths, duplicates, contradicting labels, leaks."""
    from rankwise.cli import terminal
    from rankwise.commands.preview import data_report

    if len(files or []) > 3:
        raise UsageError("at most three files can be given: train, validation and test")
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
    """Evaluate an adapter on a file: accuracy, macro-F1, per-class metrics, confusion matrix."""
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
        Path | None,
        typer.Option(help="File of texts: CSV, TSV, JSONL, Parquet, or plain text, one per line."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Output file: .csv, .tsv, .jsonl or .parquet.")] = None,
    safe_csv: Annotated[
        bool, typer.Option("--safe-csv", help="Put ' before cells that a spreadsheet would run as formulas.")
    ] = False,
    text_column: TextColumn = None,
    url: Annotated[
        str | None, typer.Option(help="Server to ask; ADAPTER is the name of an adapter there.")
    ] = None,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Label texts given as arguments, or a file of any length."""
    from rankwise.cli import terminal
    from rankwise.commands.predict import Classifier, predict_file

    if bool(texts) == bool(input) or bool(input) != bool(output):
        raise UsageError("give either texts, or --input FILE and --output FILE")
    if safe_csv and not output:
        raise UsageError("--safe-csv applies to an output file", hint="give --input FILE --output FILE.csv")
    if url:
        from rankwise.serve.client import RemoteClassifier

        if base or (device, precision) != ("auto", "auto"):
            raise UsageError("with --url, --base, --device and --precision are up to the server")
        classifier: Classifier = RemoteClassifier(url, str(adapter))
    else:
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
def explain(
    adapter: Adapter,
    text: Annotated[str, typer.Argument(help="Text of at least two words.")],
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Show which words of a text carried its label: each word in turn is left out."""
    from rankwise.cli import serving
    from rankwise.commands.explain import explain as run
    from rankwise.commands.predict import Classifier

    found = run(Classifier.load(adapter, base=base, device=device, precision=precision), text)
    if json:
        print(jsonlib.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        serving.show_explanation(found)


@_verb
def serve(
    adapters: Annotated[
        list[str], typer.Argument(help="Run folders and adapter folders of one base model, or NAME=FOLDER.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)
    ] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token [default: the variable RANKWISE_TOKEN].")
    ] = None,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Listen on any address without a token.")
    ] = False,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens per batch [default: 1024; 8192 on a GPU].", min=1)
    ] = None,
    queue_tokens: Annotated[int, typer.Option(help="Tokens that may wait.", min=1)] = 65_536,
    max_wait: Annotated[
        float, typer.Option(help="Seconds; requests that would wait longer are refused.", min=0.01)
    ] = 1.5,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds to go on after SIGTERM before the server stops listening.", min=0)
    ] = 1.0,
    access_log: Annotated[bool, typer.Option(help="Log each request to stderr, without its texts.")] = True,
) -> None:
    """Serve adapters of one base model over HTTP, with a page to try them."""
    from rankwise.cli import serving
    from rankwise.serve.start import serve as run

    run(
        adapters,
        base=base,
        device=device,
        precision=precision,
        host=host,
        port=port,
        token_file=token_file,
        no_auth=no_auth,
        batch_tokens=batch_tokens,
        queue_tokens=queue_tokens,
        max_wait=max_wait,
        drain_seconds=drain_seconds,
        access_log=access_log,
        on_listening=serving.show_listening,
    )


@_verb
def cut(
    adapter: Adapter,
    rank: Annotated[int, typer.Option(help="New rank, below the adapter's.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write [default: ADAPTER-cutRANK, beside the adapter]."),
    ] = None,
    json: Json = False,
) -> None:
    """Cut an adapter to a smaller rank: the best approximation of its update, without training."""
    from rankwise.cli import terminal
    from rankwise.commands.cut import cut as run

    found = run(adapter, rank, out)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_cut(found)


@_verb
def samples(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter, such as r4-s110 [default: the best on validation].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for choosing the texts.")] = 110,
    json: Json = False,
) -> None:
    """Show two texts of each class, chosen by seed, with their predictions."""
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
    metric: Metric = "accuracy",
    margin: Margin = None,
    json: Json = False,
) -> None:
    """Compare every pair of ranks on the same validation texts and say which rank is enough."""
    from rankwise.cli import terminal
    from rankwise.report import ranks
    from rankwise.report.run import load
    from rankwise.store.run_folder import RunFolder

    name, accepted = _judged_by(metric, margin)
    found = ranks.compare(load(RunFolder(run)), accepted, name)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_comparison(found, table=True)


def _judged_by(metric: str, margin: float | None) -> tuple[MetricName, float | None]:
    """The metric's name, and the margin in the unit of its scores; None for the default."""
    from rankwise.report.criteria import criterion

    by = criterion(metric)
    if margin is None:
        return by.name, None
    if not 0 < margin <= 100:  # no number of texts can show a loss of exactly nothing
        raise UsageError(
            "--margin must be above 0 and at most 100", hint=f"{by.metric.amount(by.margin)} is the default"
        )
    return by.name, margin / by.metric.scale


@_verb
def report(
    run: Annotated[list[Path], typer.Argument(help="Run folders, such as runs/NAME.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Page to write. Required for several runs [default: RUN/report.html]."),
    ] = None,
    metric: Metric = "accuracy",
    margin: Margin = None,
    json: Json = False,
) -> None:
    """Rebuild a run's tables, figures, page and cards from its files; or show several runs side by side."""
    from rankwise.cli import terminal
    from rankwise.report import build
    from rankwise.store.run_folder import RunFolder

    written = build.report([RunFolder(each) for each in run], out, *_judged_by(metric, margin))
    if json:
        print(jsonlib.dumps({"page": str(written)}, indent=1, ensure_ascii=False))
    else:
        terminal.show_report(written)


@_verb
def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that contains runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs in a folder: what was trained, the best accuracy, whether it finished."""
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
    base: Annotated[str | None, typer.Option(help="Folder with GPT-2, if the Hub cannot be reached.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Folder with the emotion data, if the Hub cannot be reached.")
    ] = None,
    out: Out = None,
    device: Device = "auto",
) -> None:
    """Run the published recipe and compare every row with the published table."""
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
    """Check the installation, the machine, and the numerical results of two tiny models."""
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
    """Print the installed version."""
    from importlib.metadata import version as installed

    print(installed("rankwise"))
