"""Adapters on the Hub, named OWNER/NAME or OWNER/NAME@REVISION.

Of a repository, only the files of an adapter are downloaded: JSON, safetensors and the tokenizer. They are
untrusted, like those of any adapter folder, and `peft_format` reads them.
"""

from __future__ import annotations

import re
from pathlib import Path

from rankwise.errors import ModelError
from rankwise.models import peft_config, peft_format
from rankwise.models.download import hub_folder
from rankwise.models.tokenizer import FILE_NAMES
from rankwise.store import files

ADAPTER_FILES = (
    *(peft_config.NAME, peft_format.WEIGHTS, peft_format.OWN, files.DIGESTS),
    *FILE_NAMES,
)
"""The files of an adapter folder."""
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w.-][\w./-]*))?", re.ASCII)


def on_hub(given: str) -> tuple[str, str | None] | None:
    """(id, revision) of the repository that a path means; None if it means a folder.

    A folder wins over a repository. Without a revision, so does a folder that only has the owner's name: in
    `runs/frist`, the owner of a typing error is not looked up on the Hub.

    >>> on_hub("someone/reviews@v2"), on_hub("./reviews")
    (('someone/reviews', 'v2'), None)
    """
    match = _NAME.fullmatch(given)
    if match is None or Path(given).exists():
        return None
    name, revision = match.groups()
    if revision is None and Path(name).parent.exists():
        return None
    return name, revision


def fetch(name: str, revision: str | None) -> Path:
    """The folder of an adapter in the Hub's cache, after downloading what is new.

    Raises:
        ModelError: there is no such repository or revision, or it is not an adapter that can be used.
        Unreachable: the Hub does not answer, and the adapter is not in its cache.
        ResourceError: the disk is full.
    """
    without = "the folder of an adapter"
    # Fetch the settings first, to reject anything else before downloading the weights.
    settings = hub_folder(name, revision, [peft_config.NAME], otherwise=without)
    if not (settings / peft_config.NAME).is_file():
        raise ModelError(
            f"{name}: no {peft_config.NAME}: this is not an adapter",
            hint="if it is a whole model, load it with transformers; rankwise uses it as a base model only",
        )
    peft_config.read_config(settings)
    # Adapters of rankwise 0.1 have their label names in config.json.
    return hub_folder(name, revision, [*ADAPTER_FILES, "config.json"], otherwise=without)
