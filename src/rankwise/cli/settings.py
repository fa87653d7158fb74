"""The options of commands: one for every setting of a recipe, in panels, with values as people write them."""

from __future__ import annotations

import copy
import csv
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from typer.models import OptionInfo, ParameterInfo

from rankwise import processes
from rankwise.errors import UsageError
from rankwise.recipe import OPTION, PRESETS, Recipe, did_you_mean

PANELS = {
    "data": "Data",
    "lora": "Model and adapter",
    "train": "Training",
    "tune": "Tuning",
    "machine": "Machine",
}
"""Section of a recipe -> the panel of the help text that lists its settings."""
RUN = "Run"
"""The panel of the options that are no settings of a recipe."""
PLACEHOLDERS = {
    **{"data": "FILE", "validation": "FILE", "test": "FILE", "input": "FILE", "output": "FILE"},
    **{"recipe": "FILE", "resume": "RUN", "out": "FOLDER", "base": "MODEL", "adapter": "NAME"},
    **{"preset": "NAME", "text_column": "NAME", "label_column": "NAME", "data_config": "NAME"},
    **{"device": "NAME", "precision": "auto|bfloat16|float32", "vary": "NAME=A,B,..."},
    **{"class_weights": "none|balanced|LABEL=W,...", "metric": "accuracy|log-loss|macro-f1"},
}
"""Option -> what its value is called in help texts, where its type does not say it."""
LONGEST_RANGE = 4097
"""Values in a range such as 0-4096."""
LARGEST_COUNT = 9
"""`--seeds 3` may mean three seeds; a larger number is surely the name of a seed."""
SHORT = 4
"""Texts cut to fewer tokens than this hardly say anything."""


def presented(function: Callable[..., None], panel: str | None = None) -> Callable[..., None]:
    """Give each option of a command a placeholder for its value, and a panel of the help text."""
    signature = inspect.signature(function, eval_str=True)
    parameters = [each.replace(annotation=_presented(each, panel)) for each in signature.parameters.values()]
    # typer reads parameters from __signature__ and their types from __annotations__. To mypy, a function has
    # no __signature__.
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    function.__annotations__ = {each.name: each.annotation for each in parameters}
    return function


def _presented(parameter: inspect.Parameter, panel: str | None) -> Any:
    kind, *more = get_args(parameter.annotation) or [parameter.annotation]
    if get_origin(parameter.annotation) is not Annotated or not isinstance(more[0], ParameterInfo):
        return parameter.annotation
    info = copy.copy(more[0])
    if isinstance(info, OptionInfo):
        info.metavar = info.metavar or _placeholder(parameter.name, kind)
        info.rich_help_panel = info.rich_help_panel or panel
    return Annotated[kind, info]


def _placeholder(name: str, annotation: Any) -> str | None:
    """What the value of an option is called in help texts: `N`, `A,B,...`, `linear|cosine|constant`."""
    kinds = [annotation, *get_args(annotation)]
    if bool in kinds:
        return None
    if name in PLACEHOLDERS:
        return PLACEHOLDERS[name]
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if _is_list(annotation):
        return "A,B,..."
    return "X" if float in kinds else "N" if int in kinds else "TEXT"


def _is_list(annotation: Any) -> bool:
    return any(get_origin(kind) is tuple for kind in (annotation, *get_args(annotation)))


def _holds_integers(annotation: Any) -> bool:
    return any(
        get_origin(kind) is tuple and int in get_args(kind) for kind in (annotation, *get_args(annotation))
    )


def with_recipe(
    function: Callable[..., None], settings: Iterable[str] = tuple(Recipe.settings())
) -> Callable[..., None]:
    """Give a command FILES, --preset, --recipe, and an option for every setting of a recipe, or for some.

    The command gets the finished recipe as its first argument. The docstring of each recipe field is the
    help of its option.
    """

    @functools.wraps(function)
    def with_recipe(files: list[str] | None, preset: str | None, recipe: Path | None, **options: Any) -> None:
        given = parsed({name: options.pop(name) for name in settings})
        given |= _from_files(files or [], given)
        resumed = options.get("resume")
        if resumed:
            if preset or recipe:
                raise UsageError("--resume uses the run's own recipe: omit --preset and --recipe")
            made = _resumed(resumed, given)
        else:
            made = build_recipe(preset, recipe, given)
        _show(notes(made, given, is_resumed=bool(resumed)))
        function(made, **options)

    signature = inspect.signature(function, eval_str=True)
    own = [p.replace(kind=p.KEYWORD_ONLY) for p in list(signature.parameters.values())[1:]]
    options = {
        "files": Annotated[
            list[str] | None,
            typer.Argument(
                help="A file, a folder or a Hub ID; or up to three files: train, validation, test."
            ),
        ],
        "preset": Annotated[
            str | None,
            typer.Option(help=f"Preset to start from: {', '.join(PRESETS)}.", autocompletion=lambda: PRESETS),
        ],
        "recipe": Annotated[Path | None, typer.Option(help="Recipe file (TOML) to start from.")],
        **{name: _setting(name) for name in settings},
    }
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    # As above: typer reads __signature__, which mypy does not know.
    with_recipe.__signature__ = inspect.Signature([*added[:1], *own, *added[1:]])  # type: ignore[attr-defined]
    with_recipe.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    return presented(with_recipe, RUN)


def _setting(name: str) -> Any:
    """A recipe field as an option. Every value but a flag arrives as text, and the recipe validates it."""
    field = Recipe.settings()[name]
    shown = field.default
    text = " ".join((field.description or "").split())
    text += "" if shown in (None, {}) else f" [default: {_shown(shown)}]"
    choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
    panel = PANELS.get(Recipe.section_of(name), "Model and adapter")
    option = typer.Option(
        help=text,
        metavar=_placeholder(name, field.annotation),
        rich_help_panel=panel,
        autocompletion=(lambda: choices) if choices else None,
    )
    if field.annotation is bool:
        return Annotated[bool | None, option]
    return Annotated[list[str] | None if get_origin(field.annotation) is dict else str | None, option]


def parsed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were given as options, with lists split."""
    given: dict[str, Any] = {name: value for name, value in changes.items() if value not in (None, [], ())}
    for name, value in given.items():
        annotation = Recipe.settings()[name].annotation
        if isinstance(value, str) and _is_list(annotation):
            given[name] = _listed(name, value, integers=_holds_integers(annotation))
        elif isinstance(value, list | tuple):
            given[name] = _named_lists(name, value)
    return given


def build_recipe(preset: str | None, path: Path | None, given: dict[str, Any]) -> Recipe:
    """The recipe of a preset or a file with the settings that were given; else of these settings alone."""
    if preset and path:
        raise UsageError("--preset and --recipe cannot be combined")
    _check_base(given.get("base"))
    if not preset and not path:
        return Recipe(OPTION, **given)
    rest = {name: value for name, value in given.items() if name not in ("learning_rates", "vary")}
    Recipe(OPTION, **rest)  # so that a message names the option, not the preset or the file
    return Recipe.load(path, **given) if path else Recipe.preset(preset or "", **given)


def _check_base(base: str | None) -> None:
    """Refuse a base model that is surely misspelled: no folder, no Hub ID, and nearly a name of ours."""
    known = Recipe().base
    if not base or base == known or "/" in base or Path(base).expanduser().exists():
        return
    if meant := did_you_mean(base, [known]):
        raise UsageError(
            f"--base: there is no base model {base!r}{meant}",
            hint=f"the base model is {known}, a local folder, or a Hub ID such as openai-community/gpt2",
        )


def _from_files(files: list[str], given: Mapping[str, Any]) -> dict[str, str]:
    """The settings that up to three files stand for."""
    if len(files) > 3:
        raise UsageError("at most three files can be given: train, validation and test")
    found = dict(zip(("data", "validation", "test"), files, strict=False))
    if both := [name for name in found if name in given]:
        raise UsageError(
            f"{found[both[0]]} and --{both[0]} {given[both[0]]} cannot be combined",
            hint="leave one of them out",
        )
    return found


def _resumed(run: Path, given: dict[str, Any]) -> Recipe:
    """The recipe of the run to resume, with the settings that may change.

    Raises:
        UsageError: there is no run, or a setting contradicts its recipe.
    """
    from rankwise.store.run_folder import RunFolder
    from rankwise.training.resume import CHANGEABLE

    folder = RunFolder(run)
    folder.require_begun()
    stored = Recipe.load(folder.recipe)
    before, after = stored.flat(), stored.replace(OPTION, **given).flat()
    fixed = [name for name in given if name not in CHANGEABLE]
    if wrong := [name for name in fixed if not _same(name, after[name], before[name])]:
        now = ", ".join(f"{name} is {_shown(before[name])}" for name in wrong)
        options = " and ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise UsageError(
            f"{run}: --resume goes on with the settings of the run, which {options} would change: {now}",
            hint="leave them out, or start a new run: without --resume, with another --out",
        )
    return stored.replace(**{name: after[name] for name in given if name in CHANGEABLE})


def _same(name: str, value: Any, stored: Any) -> bool:
    """Whether two values of a setting are equal, or paths to the same file."""
    if name in ("base", "data", "validation", "test") and value and stored:
        return bool(value == stored or Path(value).absolute() == Path(stored).absolute())
    return bool(value == stored)


def _shown(value: Any) -> str:
    """A setting as a person would write it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "unset"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def notes(recipe: Recipe, given: Mapping[str, Any], *, is_resumed: bool) -> Iterator[str]:
    """What a person who gave these options may not have meant."""
    if recipe.data.source == "starter" and "data" not in given and not is_resumed:
        yield "no data was given: these are the starter texts of the package; give a file of your own"
    seeds = given.get("seeds", ())
    if len(seeds) == 1 and seeds[0].isdecimal() and 2 <= int(seeds[0]) <= LARGEST_COUNT:
        number = int(seeds[0])
        several = ",".join(map(str, range(number)))
        yield f"--seeds {number} is one seed, number {number}; for {number} seeds: --seeds {several}"
    if recipe.train.max_length < SHORT:
        tokens = "token" if recipe.train.max_length == 1 else f"{recipe.train.max_length} tokens"
        yield f"--max-length {recipe.train.max_length}: only the first {tokens} of each text is read"


def _show(lines: Iterable[str]) -> None:
    found = list(lines)
    if found and not processes.is_follower():
        from rankwise.cli.terminal import show_note

        for line in found:
            show_note(line)


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
    name = name.strip().replace("-", "_")
    return name, _listed(option, values, integers=name in ("epochs", "last_layers"))


def label_names(value: str | None) -> list[str] | None:
    """The label names of `--labels`."""
    return _listed("labels", value, integers=False) if value else None


def column_names(value: str | None) -> tuple[str, ...] | None:
    """The column names of `--text-columns`."""
    return tuple(_listed("text_columns", value, integers=False)) if value else None


def _listed(option: str, value: str, *, integers: bool) -> list[str]:
    """Parse a list as a line of CSV, so that a label may contain a comma: `calm,"angry, very"`.

    In lists of whole numbers, `4-8` stands for five of them.
    """
    try:
        (cells,) = csv.reader([value], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError) as error:
        raise UsageError(
            f"--{option.replace('_', '-')}: {value!r} cannot be read as a list: {error}",
            hint='values are separated by commas; one with a comma goes in double quotes: calm,"angry, very"',
        ) from None
    found = [cell.strip() for cell in cells if cell.strip()]
    return [each for cell in found for each in _range(option, cell)] if integers else found


def _range(option: str, cell: str) -> list[str]:
    """The numbers from the first to the last of `4-8`; any other text as it is."""
    match = re.fullmatch(r"(\d{1,18})\s*(?:-|\.\.|:)\s*(\d{1,18})", cell)
    if not match:
        return [cell]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < LONGEST_RANGE:
        raise UsageError(
            f"--{option.replace('_', '-')}: {cell} is not a range of 1 to {LONGEST_RANGE} numbers",
            hint="a range goes from the lower number to the higher: 1-16",
        )
    return [str(number) for number in range(first, last + 1)]
