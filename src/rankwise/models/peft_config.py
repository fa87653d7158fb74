"""adapter_config.json, PEFT's description of an adapter: what is read from it, and what is refused.

The file is untrusted input. A setting either has the same meaning as in PEFT, or is rejected by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field, ValidationError

from rankwise.errors import ModelError
from rankwise.models.config import STRICT, Flag, Unused, Word, refusal
from rankwise.models.family import Family
from rankwise.models.registry import FAMILIES
from rankwise.nn.bank import HEAD
from rankwise.recipe import LARGEST_ALPHA
from rankwise.store import files

NAME = "adapter_config.json"
LARGEST_RANK = 4096  # as in a recipe
WITHOUT_EFFECT = frozenset(
    {
        *("auto_mapping", "corda_config", "ensure_weight_tying", "eva_config", "fan_in_fan_out"),
        *("inference_mode", "loftq_config", "lora_ga_config", "megatron_config", "megatron_core"),
        *("peft_version", "qalora_group_size", "revision", "runtime_config", "task_type"),
    }
)
"""Settings that do not change the predictions of a trained adapter."""
_NEUTRAL_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Initializations of A and B that do not change the base weights, unlike PEFT's pissa and others."""
_HEADS = (HEAD, "classifier")
"""PEFT's names of a classification head; a model has one of them."""
_EMBEDDINGS = tuple(sorted({family.embedding.rpartition(".")[2] for family in FAMILIES.values()}))
_LONGEST_PATTERN = 1000  # characters
_MOST_QUANTIFIERS, _MOST_GROUPS, _MOST_BRANCHES = 3, 4, 12


def _check(value: Any, good: bool) -> Any:
    if not good:
        raise ValueError
    return value


def _simple(targets: str | Sequence[str]) -> str | Sequence[str]:
    """Reject regular expressions that are invalid, or that an attacker could have made to run forever.

    Python's matching can take exponential time. It cannot if no group is repeated and little else is.
    """
    if not isinstance(targets, str) or targets == "all-linear":
        return targets
    bare = re.sub(r"\\.|\(\?[:!=]", lambda found: "(" if found[0].startswith("(") else "", targets)
    _check(targets, len(targets) <= _LONGEST_PATTERN and not re.search(r"\\[1-9]", targets))
    _check(targets, not re.search(r"\(\?|\)[*+?{]", bare))
    _check(targets, len(re.findall(r"[*+?{]\??", bare)) <= _MOST_QUANTIFIERS)
    _check(targets, bare.count("(") <= _MOST_GROUPS and bare.count("|") <= _MOST_BRANCHES)
    try:
        re.compile(targets)
    except re.error:
        raise ValueError from None
    return targets


_Names = Annotated[
    str | list[str],
    AfterValidator(_simple),
    Field(description="a list of module names, or a simple regular expression"),
]
_Layers = Annotated[int | list[int], Field(description="a whole number or a list of whole numbers")]
_Pattern = Annotated[str | list[str], Field(description="a name or a list of names")]


def _is_saved(name: str) -> bool:
    return name.rpartition(".")[2] in (*_HEADS, *_EMBEDDINGS)


class AdapterConfig(BaseModel):
    """The settings read from adapter_config.json. Only plain LoRA is supported."""

    model_config = STRICT

    peft_type: Annotated[
        str,
        AfterValidator(lambda value: _check(value, value == "LORA")),
        Field(description="LORA (nothing else is supported)"),
    ]
    use_dora: Unused = None
    rank_pattern: Unused = None
    alpha_pattern: Unused = None
    layer_replication: Unused = None
    lora_bias: Unused = None
    use_qalora: Unused = None
    use_bdlora: Unused = None
    alora_invocation_tokens: Unused = None
    arrow_config: Unused = None
    kasa_config: Unused = None
    monteclora_config: Unused = None
    target_parameters: Unused = None
    trainable_token_indices: Unused = None
    bias: Annotated[
        str,
        AfterValidator(lambda value: _check(value, value == "none")),
        Field(description="none (trained biases are not supported)"),
    ] = "none"
    init_lora_weights: Annotated[
        Any,
        AfterValidator(lambda value: _check(value, value in _NEUTRAL_INITS)),
        Field(description="an initialization that does not change the base weights"),
    ] = True
    r: Annotated[int, Field(ge=1, le=LARGEST_RANK, description=f"a whole number from 1 to {LARGEST_RANK}")]
    lora_alpha: Annotated[
        float,
        Field(
            ge=-LARGEST_ALPHA,
            le=LARGEST_ALPHA,
            description=f"a number from {-LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}",
        ),
    ]
    lora_dropout: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.0
    use_rslora: Flag = False
    base_model_name_or_path: Word = ""
    target_modules: _Names | None = None
    exclude_modules: _Names | None = None
    layers_to_transform: _Layers | None = None
    layers_pattern: _Pattern | None = None
    modules_to_save: Annotated[
        list[str],
        AfterValidator(lambda names: _check(names, all(_is_saved(name) for name in names))),
        Field(description=f"the score head, with or without the embeddings ({', '.join(_EMBEDDINGS)})"),
    ] = []

    @property
    def saves_embedding(self) -> bool:
        """Whether the adapter has token embeddings of its own."""
        return any(name.rpartition(".")[2] in _EMBEDDINGS for name in self.modules_to_save)

    def targets(self, modules: Sequence[str], family: Family) -> tuple[str, ...]:
        """The modules that the settings name, by PEFT's rules.

        Args:
            modules: the backbone's linear layers.
            family: the backbone's family.
        """
        wanted = family.default_targets if self.target_modules is None else self.target_modules
        # Names in a regular expression start with the backbone's name inside the classifier.
        return tuple(module for module in modules if self._names(f"{family.prefix}.{module}", wanted))

    def _names(self, name: str, wanted: str | Sequence[str]) -> bool:
        if self.exclude_modules and _matches(self.exclude_modules, name):
            return False
        if wanted == "all-linear":
            return True
        whole = isinstance(wanted, str) or name in wanted  # `layers_to_transform` is for short names only
        return _matches(wanted, name) and (whole or self._is_in_layers(name))

    def _is_in_layers(self, name: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        start = "|".join(map(re.escape, patterns)) if patterns else r"[^.]*"
        found = re.match(rf"(?:^|.*?\.)(?:{start})\.(\d+)\.", name)
        return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)


def _matches(targets: str | Sequence[str], name: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return name in targets or any(name.endswith(f".{target}") for target in targets)


_HINTS = {
    "init_lora_weights": "convert it with PEFT: "
    "save_pretrained(..., path_initial_model_for_weight_conversion=...)",
    "bias": 'train it again with bias="none"',
}
"""Setting -> hint for when its value is rejected."""


def read_config(folder: Path) -> AdapterConfig:
    """Read and validate a folder's adapter_config.json. Null counts as missing.

    Raises:
        ModelError: this is not an adapter folder, or a setting is not supported.
    """
    path = folder / NAME
    if not path.is_file():
        raise _absent(folder)
    given = {key: value for key, value in files.read_object(path).items() if value is not None}
    _refuse_unknown(path, given)
    try:
        return AdapterConfig.model_validate(given)
    except ValidationError as error:
        refused = refusal(AdapterConfig, error, str(path))
        hint = _HINTS.get(str(error.errors(include_url=False)[0]["loc"][0]), "")
        raise ModelError(refused.message, hint=hint) from None


def _refuse_unknown(path: Path, given: Mapping[str, Any]) -> None:
    """Reject settings of other versions of PEFT, which may change predictions, unless PEFT's default."""
    known = AdapterConfig.model_fields.keys() | WITHOUT_EFFECT
    odd = {key: value for key, value in given.items() if key not in known and value}
    if not odd:
        return
    from peft import LoraConfig  # slow to import, and rarely needed

    settings: Any = LoraConfig()  # PEFT has no type annotations for to_dict
    defaults: dict[str, Any] = settings.to_dict()
    for key, value in odd.items():
        if key not in defaults or value != defaults[key]:
            raise ModelError(
                f"{path}: {brief(key)} is not supported, and is {brief(value)}",
                hint="train the adapter without this setting",
            )


def _absent(folder: Path) -> ModelError:
    """The error for a folder without adapter_config.json; it names what is there instead."""
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "no such folder"
        return ModelError(
            f"{folder}: {what}: this is not an adapter folder",
            hint="pass a folder such as runs/NAME/adapters/rR-sS",
        )
    inside = sorted(path.parent for path in folder.glob(f"*/{NAME}"))
    if inside:
        return ModelError(
            f"{folder}: no {NAME}: this is not an adapter folder, but {_listed(inside)}",
            hint=f"pass {max(inside, key=lambda path: path.stat().st_mtime)}",
        )
    if any(folder.glob("*.safetensors")) and (folder / "config.json").is_file():
        return ModelError(
            f"{folder}: no {NAME}: this is not an adapter folder, but a whole model",
            hint="if an adapter was merged into it, pass the folder of that adapter",
        )
    return ModelError(
        f"{folder}: no {NAME}: this is not an adapter folder",
        hint="pass a folder such as runs/NAME/adapters/rR-sS",
    )


def _listed(folders: Sequence[Path]) -> str:
    """`NAME in it is one`, `A and B in it are`, or `3 folders in it are`."""
    if len(folders) == 1:
        return f"{folders[0].name} in it is one"
    names = f"{folders[0].name} and {folders[1].name}" if len(folders) == 2 else f"{len(folders)} folders"
    return f"{names} in it are"
