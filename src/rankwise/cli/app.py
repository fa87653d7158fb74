"""The commands of the command line. No logic: each passes its arguments to a module and shows the result.

Exit status: 0 for success; otherwise as listed in `rankwise.errors`.
"""

from __future__ import annotations

import functools
import json as jsonlib
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from rankwise import cores, processes
from rankwise.cli import streams
from rankwise.cli.examples import epilog
from rankwise.cli.group import Group, canonical, fail
from rankwise.cli.help import Command
from rankwise.cli.settings import column_names, label_names, presented, with_recipe
from rankwise.data.tables import counted
from rankwise.errors import RankwiseError, ResourceError, UsageError
from rankwise.paths import expanded
from rankwise.recipe import Recipe
from rankwise.schema import MetricName
from rankwise.training import signals

if TYPE_CHECKING:
    from rankwise.cluster.banks import Cluster
    from rankwise.commands.classifier import Classifier
    from rankwise.commands.duration import Duration
    from rankwise.commands.run_results import Results

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": canonical},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON to stdout instead of tables.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Run folder to write [default: runs/DATA-BASE-TIME].")
]
Adapter = Annotated[
    Path,
    typer.Argument(
        help="Adapter folder, such as runs/NAME/adapters/r4-s110; a run, for its best adapter; or "
        "OWNER/NAME[@REVISION] on the Hub."
    ),
]
Base = Annotated[str | None, typer.Option(help="Base model, if it is not the one that the adapter names.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[
    str,
    typer.Option(metavar="auto|bfloat16|float32|int8", help="Precision: auto, bfloat16, float32 or int8."),
]
Metric = Annotated[
    str | None,
    typer.Option(
        help="What to compare the ranks by [default: as in the recipe].", metavar="accuracy|log-loss|macro-f1"
    ),
]
Ray = Annotated[
    str | None,
    typer.Option(help="Work on a Ray cluster: local, auto, HOST:PORT or ray://HOST:PORT.", metavar="ADDRESS"),
]
RayCpus = Annotated[int | None, typer.Option(help="Cores of each worker [default: as many as here].", min=1)]
RayWorkers = Annotated[
    int | None,
    typer.Option(help="Maximum number of workers [default: as many as fit in the cluster].", min=1),
]
Margin = Annotated[
    float | None,
    typer.Option(
        help="Acceptable loss: in percentage points for accuracy and macro-f1 [default: 0.5], "
        "in nats for log-loss [default: 0.01].",
        min=0,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Label names in the order of the outputs, for a PEFT adapter without them.", metavar="A,B,..."
    ),
]
TextColumn = Annotated[str | None, typer.Option(help="Name of the text column.")]
TextColumns = Annotated[
    str | None, typer.Option(help="Names of the two columns of a pair of texts.", metavar="A,B")
]
LabelColumn = Annotated[str | None, typer.Option(help="Name of the label column.")]
AbstainBelow = Annotated[
    float | None,
    typer.Option(help="Give no label if its probability is below this.", metavar="P", min=0, max=1),
]
Windows = Annotated[
    bool | None,
    typer.Option(
        "--windows/--no-windows",
        help="Read long texts in windows, instead of cutting them [default: as in training].",
        show_default=False,
    ),
]
WindowStride = Annotated[
    int | None,
    typer.Option(
        help="Tokens from one window's start to the next [default: as in training, or a window's length].",
        metavar="N",
        min=1,
    ),
]

DATA_SETTINGS = (
    *("base", "data", "validation", "test", "data_config", "text_column", "text_columns"),
    *("label_column", "task"),
    *("label_separator", "labels"),
    *("validation_fraction", "max_length", "windows", "window_stride"),
)
"""The settings of a recipe that `rankwise data` accepts."""


def main() -> NoReturn:
    """Run the command line and exit with its status."""
    cores.share_fairly()
    log = logging.getLogger("rankwise")
    log.setLevel(logging.INFO)
    log.addHandler(NOTES)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns if there is no home folder
    try:
        with streams.guarded():
            app()
    except ResourceError as error:
        from rankwise.cli.terminal import show_error

        with streams.guarded():  # standard error may be on the same full disk
            show_error(error)
        raise SystemExit(error.exit_status) from None
    raise SystemExit(0)


class _Notes(logging.Handler):
    """Shows what modules log, such as that a base model is unpacked."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        from rankwise.cli.terminal import show_note

        show_note(record.getMessage())


NOTES = _Notes()


def _verb(function: Callable[..., None]) -> Callable[..., None]:
    """Register a function as a command. Errors become one message and an exit status, never a traceback."""

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        try:
            options = {name: _expanded(value) for name, value in options.items()}
            if isinstance(options.get("adapter"), Path):
                from rankwise.cli.folders import adapter_of

                options["adapter"] = adapter_of(options["adapter"])
            function(*args, **options)
        except RankwiseError as error:
            fail(error)
        except signals.Interrupted as error:
            fail(RankwiseError(str(error)), error.exit_status)
        except KeyboardInterrupt:
            fail(RankwiseError("interrupted"), 130)
        except typer.Exit:
            raise
        except Exception as error:
            if os.environ.get("RANKWISE_DEBUG"):
                raise
            fail(*_unexpected(error))

    app.command(cls=Command, epilog=epilog(function.__name__.replace("_", "-")))(presented(guarded))
    return guarded


def _unexpected(error: Exception) -> tuple[RankwiseError, int]:
    """The message for an error that no module explains, and the exit status."""
    if isinstance(error, FileNotFoundError) and "temporary directory" in str(error):
        hint = "set TMPDIR to a folder that you can write to"
        return ResourceError("there is no folder for temporary files", hint=hint), ResourceError.exit_status
    if isinstance(error, OSError) and error.strerror:
        where = "" if error.filename is None else f"{error.filename}: "
        hint = "check the disk, and that you have permission"
        return ResourceError(f"{where}{error.strerror}", hint=hint), ResourceError.exit_status
    hint = "set RANKWISE_DEBUG=1 to see the traceback; please report it with the command that you ran"
    return RankwiseError(f"internal error: {type(error).__name__}: {error}", hint=hint), 70


def _expanded(value: Any) -> Any:
    """A path, or a list of paths, with `~` replaced by the home folder; anything else as it is."""
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return expanded(value) if isinstance(value, Path) else value


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version as installed

        print(installed("rankwise"))
        raise typer.Exit


@app.callback()
def rankwise(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the installed version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Fine-tune a language model into a text classifier with LoRA, at many ranks in one pass."""


def _sweep(
    recipe: Recipe,
    out: Path | None,
    as_json: bool,
    samples: bool,
    track: str | None = None,
    cluster: Mapping[str, Any] | None = None,
    **going_on: Any,
) -> None:
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.cli.tracking import Trackers, check
        from rankwise.commands.sweep import default_folder, sweep
        from rankwise.store.run_folder import RunFolder
        from rankwise.training.callbacks import Callbacks

        if processes.is_follower():
            with streams.silenced():
                sweep(recipe)
            return
        names = [name.strip() for name in (track or "").split(",") if name.strip()]
        check(names)
        with _cluster(cluster) as on:
            if on:
                going_on["train"] = on
            run = RunFolder(out or default_folder(recipe))
            with terminal.ProgressBars() as bars, Trackers(names, recipe, run, bars.note) as trackers:
                results = sweep(recipe, run.path, Callbacks(bars, trackers), **going_on)
    if as_json:
        print(results.model_dump_json(indent=1))
    else:
        _show_run(results, samples=samples)


def _show_run(results: Results, *, samples: bool) -> None:
    from rankwise.cli import terminal
    from rankwise.report import ranks, tables
    from rankwise.report.run import load
    from rankwise.report.samples import sample_table
    from rankwise.report.tuning import chosen_table
    from rankwise.store.run_folder import RunFolder

    finished = load(RunFolder(results.folder))
    if results.tuning:
        terminal.show_table(chosen_table(results.tuning))
        terminal.stdout.print()
    terminal.show_table(tables.rank_table(finished))
    if samples:
        terminal.stdout.print()
        terminal.show_table(sample_table(finished))
    terminal.show_comparison(ranks.compare(finished), table=False)
    terminal.show_written(finished)


def _cluster(options: Mapping[str, Any] | None) -> AbstractContextManager[Cluster | None]:
    """A connection to the Ray cluster that is asked for, if one is."""
    given = {name: value for name, value in (options or {}).items() if value is not None}
    address = given.pop("address", None)
    if address is None and given:
        raise UsageError(f"--ray-{next(iter(given))} needs a cluster", hint="such as --ray local")
    if address is None:
        return nullcontext()
    from rankwise.cluster.banks import Cluster

    return Cluster(address, **given)


@_verb
def quickstart(out: Out = None, json: Json = False) -> None:
    """Do a first run: SmolLM2-135M on the starter data at six ranks, in minutes."""
    _sweep(Recipe.preset("quickstart"), out, json, samples=True)


@_verb
@with_recipe
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
    ray: Ray = None,
    ray_cpus: RayCpus = None,
    ray_workers: RayWorkers = None,
) -> None:
    """Train every rank in one pass and print the rank table."""
    if resume and out:
        raise UsageError("--resume and --out cannot be combined")
    saving = {"checkpoint_minutes": checkpoint_minutes, "checkpoint_steps": checkpoint_steps}
    cluster = {"address": ray, "cpus": ray_cpus, "workers": ray_workers}
    going_on = {"resume": resume is not None, **saving}
    _sweep(recipe, resume or out, json, samples=False, track=track, cluster=cluster, **going_on)


@_verb
@with_recipe
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
    ray: Ray = None,
    ray_cpus: RayCpus = None,
    ray_workers: RayWorkers = None,
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

        if ray and places:
            raise UsageError("--places and --ray cannot be combined", hint="--ray-workers limits the workers")
        going_on: dict[str, Any] = {"trials": trials, "places": places, "resume": resume is not None}
        with _cluster({"address": ray, "cpus": ray_cpus, "workers": ray_workers}) as on:
            if on:
                going_on["train"] = on
            folder = RunFolder(resume or out or default_folder(recipe))
            with terminal.ProgressBars() as bars:
                found = run(recipe, folder.path, bars, **going_on)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_search(folder, found)


@_verb
@with_recipe
def plan(
    recipe: Recipe,
    *,
    train_texts: Annotated[
        int | None, typer.Option(help="Number of training texts, if the data cannot be read yet.", min=1)
    ] = None,
    tokens_per_text: Annotated[
        float | None, typer.Option(help="Mean tokens per text, if the data cannot be read yet.", min=0.01)
    ] = None,
    time: Annotated[
        bool,
        typer.Option("--time", help="Estimate the duration, from a few steps trained on this machine."),
    ] = False,
    json: Json = False,
) -> None:
    """Show what a sweep would train: parameters, steps, tokens, memory. Fetches no weights without --time."""
    from rankwise.cli import terminal
    from rankwise.commands.preview import preview

    found = preview(recipe, train_texts=train_texts, tokens_per_text=tokens_per_text)
    seconds = _timed(recipe) if time else None
    if json:
        timed = {"seconds": seconds.to_json()} if seconds else {}
        print(jsonlib.dumps([row | timed for row in found.to_json()], indent=1))
    else:
        terminal.show_plan(found, seconds)


def _timed(recipe: Recipe) -> Duration:
    from rankwise.cli import terminal
    from rankwise.commands.duration import duration

    with terminal.ProgressBars() as bars:
        return duration(recipe, bars)


@_verb
@functools.partial(with_recipe, settings=DATA_SETTINGS)
def data(
    recipe: Recipe,
    *,
    corrections: Annotated[
        Path | None,
        typer.Option(help="errors.csv with corrected labels, to apply to the file instead of reporting."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File to write with the corrected labels.")] = None,
    json: Json = False,
) -> None:
    """Report on the data: sizes, classes, lengths, duplicates, contradicting labels, leaks."""
    if corrections or output:
        _correct(recipe, corrections, output, as_json=json)
        return
    from rankwise.cli import terminal
    from rankwise.commands.preview import data_report

    found, notes = data_report(recipe)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_data(found, notes)


def _correct(recipe: Recipe, corrections: Path | None, output: Path | None, *, as_json: bool) -> None:
    """Write a data file with corrected labels."""
    from rankwise.cli import terminal
    from rankwise.commands.corrections import correct

    given = recipe.data
    if given.name == "starter" or given.validation or given.test or corrections is None or output is None:
        hint = "rankwise data FILE --corrections errors.csv --output FIXED.csv"
        raise UsageError("corrections need one data file and a file to write", hint=hint)
    columns = {"text_column": given.text_column, "label_column": given.label_column}
    from rankwise.tasks.registry import task_of

    task = task_of(given.task, given.label_separator)
    pair = given.text_columns or ()
    found = correct(Path(given.name), corrections, output, task=task, text_columns=pair, **columns)
    if as_json:
        print(jsonlib.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        terminal.show_corrections(found)


@_verb
def evaluate(
    adapter: Adapter,
    file: Annotated[Path | None, typer.Argument(help="File of labeled texts.")] = None,
    data: Annotated[Path | None, typer.Option(help="File of labeled texts, as an option.")] = None,
    text_column: TextColumn = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    base: Base = None,
    abstain_below: AbstainBelow = None,
    windows: Windows = None,
    window_stride: WindowStride = None,
    labels: Labels = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Evaluate an adapter on a file: accuracy, macro-F1, per-class metrics, confusion matrix."""
    from rankwise.cli import terminal
    from rankwise.commands.evaluate import evaluate as run

    pair = column_names(text_columns)
    columns = {"text_column": text_column, "text_columns": pair, "label_column": label_column}
    labeled, names = _one_of(file, data), label_names(labels)
    read = {"windows": windows, "window_stride": window_stride}
    loading = read | {"base": base, "labels": names, "device": device, "precision": precision}
    found = run(
        adapter,
        labeled,
        columns=columns,
        abstain_below=abstain_below,
        on_note=terminal.show_note,
        **loading,
    )
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_metrics(found)


def _one_of(file: Path | None, data: Path | None) -> Path:
    """The file, given as an argument or as an option."""
    if file and data:
        raise UsageError(f"{file} and --data {data} cannot be combined", hint="leave one of them out")
    if not file and not data:
        raise UsageError("no file of labeled texts is given", hint="rankwise evaluate ADAPTER FILE")
    return file or data or Path()


@_verb
def predict(
    adapter: Adapter,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify.")] = None,
    input: Annotated[
        Path | None,
        typer.Option(help="File of texts: CSV, TSV, JSON, Parquet, XLSX, or one text per line; - for stdin."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Output file: .csv, .tsv, .jsonl, .parquet or .xlsx.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="Leave out rows without a text.")] = False,
    safe_csv: Annotated[
        bool, typer.Option("--safe-csv", help="Put ' before cells that a spreadsheet would run as formulas.")
    ] = False,
    text_column: TextColumn = None,
    text_columns: TextColumns = None,
    abstain_below: AbstainBelow = None,
    windows: Windows = None,
    window_stride: WindowStride = None,
    url: Annotated[
        str | None, typer.Option(help="Server to ask; ADAPTER is the name of an adapter there.")
    ] = None,
    base: Base = None,
    labels: Labels = None,
    device: Device = "auto",
    precision: Precision = "auto",
    ray: Ray = None,
    ray_cpus: RayCpus = None,
    ray_workers: RayWorkers = None,
    json: Json = False,
) -> None:
    """Label texts given as arguments or on stdin, one per line, or a file of any length."""
    from rankwise.commands import arguments

    if output:
        _refuse({"--json": json}, "the labels go to a file", "an --output that ends in .jsonl")
    if ray:
        if texts or url or safe_csv or overwrite or not input or not output:
            raise UsageError("--ray labels a folder", hint="give --input FOLDER --output FOLDER")
        loading = {"base": base, "labels": label_names(labels), "device": device, "precision": precision}
        reading = {"text_column": text_column, "text_columns": column_names(text_columns)}
        _predict_folder(
            adapter,
            input,
            output,
            ray,
            cpus=ray_cpus,
            workers=ray_workers,
            loading=loading | {"windows": windows, "window_stride": window_stride},
            reading=reading | {"skip_empty": skip_empty, "abstain_below": abstain_below},
        )
        return
    if ray_cpus or ray_workers:
        raise UsageError("--ray-cpus and --ray-workers need a cluster", hint="such as --ray local")
    source = arguments.source_of(texts or [], input, output)
    columns = {"--text-column": text_column, "--text-columns": text_columns}
    if not source:
        _refuse(columns | {"--skip-empty": skip_empty}, "the texts are arguments", "--input FILE")
    elif not output:
        _refuse(columns, "every line of stdin is a text", "--input FILE")
    if safe_csv and not output:
        raise UsageError("--safe-csv applies to an output file", hint="give --input FILE --output FILE.csv")
    if output:
        arguments.require_target(output, overwrite=overwrite, safe_csv=safe_csv)
    if url:
        if base or labels or (device, precision) != ("auto", "auto"):
            raise UsageError("with --url, --base, --labels, --device and --precision are up to the server")
        if windows or window_stride:
            raise UsageError("--windows: a server cuts long texts", hint="leave out --url or --windows")
        classifier = _remote(url, adapter)
    else:
        classifier = _loaded(
            adapter,
            base=base,
            labels=label_names(labels),
            device=device,
            precision=precision,
            windows=windows,
            window_stride=window_stride,
        )
    if abstain_below is not None:
        arguments.require_abstaining(classifier.task, abstain_below)
    if source and output:
        _predict_file(
            classifier,
            source,
            output,
            text_column=text_column,
            text_columns=column_names(text_columns),
            safe_csv=safe_csv,
            overwrite=overwrite,
            skip_empty=skip_empty,
            abstain_below=abstain_below,
        )
    else:
        _predict_texts(classifier, None if source else texts, skip_empty, abstain_below, json)


def _refuse(given: Mapping[str, Any], why: str, instead: str) -> None:
    """Refuse options that would have no effect."""
    if found := [name for name, value in given.items() if value]:
        what = f"{' and '.join(found)}: no effect, because {why}"
        raise UsageError(what, hint=f"leave it out, or give {instead}")


def _loaded(adapter: Path, **options: Any) -> Classifier:
    """An adapter on this machine; notes go to the terminal."""
    from rankwise.cli import terminal
    from rankwise.commands.classifier import Classifier

    return Classifier.load(adapter, **options, on_note=terminal.show_note)


def _remote(url: str, adapter: Path) -> Classifier:
    """An adapter on a server."""
    from rankwise.serve.client import RemoteClassifier

    return RemoteClassifier(url, str(adapter))


def _predict_file(classifier: Classifier, source: Path, target: Path, **options: Any) -> None:
    """Label a file; a signal removes what was written so far."""
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.commands.predict import predict_file

        with terminal.ProgressBars() as bars:
            rows = predict_file(
                classifier,
                source,
                target,
                on_stage=bars.begin,
                on_read=bars.advance,
                on_rows=bars.advance,
                on_note=bars.note,
                **options,
            )
    terminal.stderr.print(f"{counted(rows, 'text')} -> {target}", soft_wrap=True)


def _predict_texts(
    classifier: Classifier, texts: list[str] | None, skip_empty: bool, abstain_below: float | None, json: bool
) -> None:
    """Label the texts that are given, or those on stdin."""
    from rankwise.cli import terminal
    from rankwise.commands import predict as command

    if not texts:
        texts = command.lines_of_stdin(classifier, skip_empty=skip_empty, on_note=terminal.show_note)
    encoded = classifier.encoded(texts)
    found = classifier(encoded)
    threshold = abstain_below or 0.0
    answers = [each.answer(threshold) for each in found]
    counts = command.Counts(len(texts), answers.count(None), classifier.long_texts(encoded))
    in_windows = classifier.window_stride is not None
    for note in command.count_notes(counts, classifier.max_length, in_windows, abstain_below):
        terminal.show_note(note)
    if json:
        rows = [{"text": t} | p.to_json(threshold) for t, p in zip(texts, found, strict=True)]
        print(jsonlib.dumps(rows, indent=1, ensure_ascii=False))
    else:
        terminal.show_predictions(texts, found, answers)


def _predict_folder(adapter: Path, source: Path, target: Path, address: str, **options: Any) -> None:
    """Label a folder on a Ray cluster."""
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.cluster.predict import predict_folder

        with terminal.ProgressBars() as bars:
            bars.begin("predict", None)
            found = predict_folder(
                adapter,
                source,
                target,
                address,
                on_file=lambda file, rows: bars.advance(rows),
                on_note=bars.note,
                **options,
            )
    there = f", {found.skipped:,} were there already" if found.skipped else ""
    done = f"{counted(found.files, 'file')}, {counted(found.rows, 'text')}"
    terminal.stderr.print(f"{done} -> {target}{there}", soft_wrap=True)


@_verb
def explain(
    adapter: Adapter,
    text: Annotated[str, typer.Argument(help="Text of at least two words.")],
    method: Annotated[
        str,
        typer.Option(
            help="occlusion leaves out each word; gradient is a rough first-order estimate in one pass.",
            metavar="occlusion|gradient",
        ),
    ] = "occlusion",
    base: Base = None,
    labels: Labels = None,
    device: Device = "auto",
    precision: Precision = "auto",
    json: Json = False,
) -> None:
    """Show which words of a text contributed to its label, by leaving out each in turn, or by gradients."""
    from rankwise.cli import serving, terminal
    from rankwise.commands.predict import Counts, count_notes

    names = label_names(labels)
    classifier = _loaded(adapter, base=base, labels=names, device=device, precision=precision)
    counts, in_windows = Counts(1, 0, classifier.long_texts([text])), classifier.window_stride is not None
    for note in count_notes(counts, classifier.max_length, in_windows):
        terminal.show_note(note)
    found = classifier.explain(text, method=method)
    if json:
        print(jsonlib.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        serving.show_explanation(found, method)


@_verb
def serve(
    adapters: Annotated[
        list[str],
        typer.Argument(
            help="Run folders, adapter folders, or adapters on the Hub, of one base model; or NAME=FOLDER."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 for any free one.", min=0, max=65535)
    ] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the bearer token [default: the variable RANKWISE_TOKEN].")
    ] = None,
    no_auth: Annotated[
        bool,
        typer.Option(
            "--no-auth", help="Listen on any address, and answer to any host name, without a token."
        ),
    ] = False,
    base: Base = None,
    device: Device = "auto",
    precision: Precision = "auto",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens per batch [default: 1024; 8192 on a GPU].", min=1)
    ] = None,
    queue_tokens: Annotated[
        int, typer.Option(help="Tokens that may wait; at least a batch and a text.", min=1)
    ] = 65_536,
    max_wait: Annotated[
        float, typer.Option(help="Seconds; requests that would wait longer are refused.", min=0.01)
    ] = 1.5,
    drain_seconds: Annotated[
        float, typer.Option(help="Seconds to go on after SIGTERM before the server stops listening.", min=0)
    ] = 1.0,
    access_log: Annotated[bool, typer.Option(help="Log each request to stderr, without its texts.")] = True,
    abstain_below: AbstainBelow = None,
) -> None:
    """Serve adapters of one base model over HTTP, with a page to try them."""
    from rankwise.cli import serving, terminal
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
        abstain_below=abstain_below,
        on_note=terminal.show_note,
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
def export(
    adapter: Adapter,
    to: Annotated[
        str,
        typer.Option(
            help="merged: a model for transformers; onnx: for ONNX Runtime; peft: for PEFT, with labels.",
            metavar="merged|onnx|peft",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder to write [default: RUN/exports/ADAPTER-TO, or beside the adapter]."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantize an ONNX model to 8 bits.")] = False,
    max_loss: Annotated[
        float | None,
        typer.Option(
            help="Loss that int8 may cost: points of accuracy [default: 0.5], or percent of labels changed "
            "where texts have no labels [default: 1].",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="File of texts to verify with [default: the run's validation texts]."),
    ] = None,
    text_column: TextColumn = None,
    text_columns: TextColumns = None,
    label_column: LabelColumn = None,
    base: Base = None,
    labels: Labels = None,
    json: Json = False,
) -> None:
    """Export an adapter for another library, and verify the result with that library."""
    from rankwise.cli import shipping, terminal
    from rankwise.commands.export import export as run

    found = run(
        adapter,
        to,
        output,
        int8=int8,
        max_loss=max_loss,
        data=data,
        columns={
            "text_column": text_column,
            "text_columns": column_names(text_columns),
            "label_column": label_column,
        },
        base=base,
        labels=label_names(labels),
        on_note=terminal.show_note,
    )
    print(found.model_dump_json(indent=1)) if json else shipping.show_export(found)


@_verb
def push(
    adapter: Adapter,
    repository: Annotated[str, typer.Argument(help="Repository on the Hub: OWNER/NAME.")],
    merged: Annotated[
        bool, typer.Option("--merged", help="Push a model for transformers instead of the adapter.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, created if there is none [default: main].")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be pushed.")] = False,
    base: Base = None,
    json: Json = False,
) -> None:
    """Push an adapter, its card and its results to the Hub. A new repository is private."""
    from rankwise.cli import shipping, terminal
    from rankwise.commands.push import push as run

    found = run(
        adapter,
        repository,
        merged=merged,
        public=public,
        revision=revision,
        dry_run=dry_run,
        base=base,
        on_note=terminal.show_note,
    )
    print(found.model_dump_json(indent=1)) if json else shipping.show_push(found)


@_verb
def samples(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    adapter: Annotated[
        str | None, typer.Option(help="Adapter, such as r4-s110 [default: the recommended one].")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for choosing the texts.")] = 110,
    json: Json = False,
) -> None:
    """Show two texts of each class, chosen by seed, with their predictions."""
    from rankwise.cli import terminal
    from rankwise.cli.folders import require_sweep
    from rankwise.report.run import load
    from rankwise.report.samples import sample_table
    from rankwise.store.run_folder import RunFolder

    require_sweep(run, "samples")
    table = sample_table(load(RunFolder(run)), adapter=adapter, seed=seed)
    if json:
        rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
        print(jsonlib.dumps(rows, indent=1, ensure_ascii=False))
    else:
        terminal.show_table(table)


@_verb
def compare(
    run: Annotated[Path, typer.Argument(help="Run folder, such as runs/NAME.")],
    metric: Metric = None,
    margin: Margin = None,
    json: Json = False,
) -> None:
    """Compare every pair of ranks on the same validation texts and say which rank is enough."""
    from rankwise.cli import terminal
    from rankwise.cli.folders import require_sweep
    from rankwise.report import ranks
    from rankwise.report.run import load
    from rankwise.store.run_folder import RunFolder

    require_sweep(run, "compare")
    name, accepted = _judged_by(metric, margin, run)
    found = ranks.compare(load(RunFolder(run)), accepted, name)
    if json:
        print(found.model_dump_json(indent=1))
    else:
        terminal.show_comparison(found, table=True)


def _judged_by(metric: str | None, margin: float | None, run: Path) -> tuple[MetricName | None, float | None]:
    """The metric's name, and the margin in the unit of its scores; None for the defaults of the run."""
    from rankwise.report.criteria import CRITERIA, criterion
    from rankwise.report.run import metric_of
    from rankwise.store.run_folder import RunFolder

    name = None if metric is None else criterion(metric).name
    if margin is None:
        return name, None
    by = CRITERIA[name or metric_of(Recipe.load(RunFolder(run).recipe))]
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
    metric: Metric = None,
    margin: Margin = None,
    test_errors: Annotated[
        bool, typer.Option("--test-errors", help="List misclassified test texts, too.")
    ] = False,
    argilla: Annotated[bool, typer.Option("--argilla", help="Export the errors for Argilla.")] = False,
    label_studio: Annotated[
        bool, typer.Option("--label-studio", help="Export the errors for Label Studio.")
    ] = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Write figures as PDF, a LaTeX table, and the methods in prose.")
    ] = False,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="Add a script to the page: sort tables, search examples.")
    ] = False,
    target_accuracy: Annotated[
        float | None,
        typer.Option(
            help="Target accuracy for which to choose an abstention threshold, such as 0.95.", metavar="P"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Rebuild a run's tables, figures, page and cards from its files; or show several runs side by side."""
    from rankwise.cli import terminal
    from rankwise.cli.folders import require_reportable
    from rankwise.report import build
    from rankwise.store.run_folder import RunFolder

    require_reportable(run)
    extras = build.Extras(test_errors, argilla, label_studio, paper, interactive, target_accuracy)
    judged = _judged_by(metric, margin, run[0])
    written = build.report([RunFolder(each) for each in run], out, *judged, extras)
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
def merge_runs(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs that differ in ranks and seeds only.")],
    output: Annotated[Path, typer.Option(help="Run folder to write.")],
    json: Json = False,
) -> None:
    """Merge runs of the same recipe, each of some ranks or seeds, into one, as if trained at once."""
    with signals.stopping():
        from rankwise.cli import terminal
        from rankwise.commands.merge import merge_runs as run

        with terminal.ProgressBars() as bars:
            results, merged = run(runs, output, bars)
    if json:
        print(results.model_dump_json(indent=1))
        return
    for each in merged:
        terminal.stdout.print(f"{each.folder}: {', '.join(each.adapters)}", soft_wrap=True)
    _show_run(results, samples=False)


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
    _print_version(True)
