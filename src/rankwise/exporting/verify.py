"""Logits that the consumer's own library computes from an exported folder, with the folder's own tokenizer.

Every function returns (texts, classes) float32 in the order of the given labels, on the CPU. The names of the
labels come from the folder, so a wrong or missing name is an error and not another column.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rankwise import hardware
from rankwise.errors import ModelError
from rankwise.exporting.decoder import IDS, LOGITS, MASK
from rankwise.exporting.tokenizer import read_settings
from rankwise.models.tokenizer import WHOLE

BATCH = 16
"""Texts in a batch."""
Logits = NDArray[np.float32]


def merged_logits(folder: Path, texts: Sequence[str], labels: Sequence[str]) -> Logits:
    """What `transformers.pipeline("text-classification", folder)` says."""
    import transformers

    with _quiet(), hardware.own_torch():
        classify: Any = transformers.pipeline("text-classification", str(folder), device="cpu")
        size = 1 if classify.tokenizer.pad_token_id is None else BATCH
        order = np.argsort([len(text) for text in texts], kind="stable")
        found = classify(
            [texts[i] for i in order], top_k=None, function_to_apply="none", truncation=True, batch_size=size
        )
        _require(classify.model.config.id2label, labels)
    logits = np.empty((len(texts), len(labels)), dtype=np.float32)
    for i, scores in zip(order, found, strict=True):
        by_label = {each["label"]: each["score"] for each in scores}
        logits[i] = [by_label[label] for label in labels]
    return logits


def peft_logits(folder: Path, texts: Sequence[str], labels: Sequence[str]) -> Logits:
    """What `peft.AutoPeftModelForSequenceClassification.from_pretrained(folder)` says."""
    import peft
    import transformers

    with _quiet(), hardware.own_torch(), torch.no_grad():
        model: Any = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder))
        model.eval()
        _require(model.config.id2label, labels)
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(folder))
        pads = tokenizer.pad_token_id is not None
        size = BATCH if pads else 1
        logits = np.empty((len(texts), len(labels)), dtype=np.float32)
        for members in _batches(texts, size):
            batch = tokenizer([texts[i] for i in members], truncation=True, padding=pads, return_tensors="pt")
            logits[members] = model(**batch).logits.numpy()
        return logits


def onnx_logits(model: Path, texts: Sequence[str], labels: Sequence[str]) -> Logits:
    """What ONNX Runtime says, with `tokenizers` and the tokenizer.json beside the model."""
    import onnxruntime
    from tokenizers import Tokenizer

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    _require(json.loads(session.get_modelmeta().custom_metadata_map["id2label"]), labels)
    tokenizer = Tokenizer.from_file(str(model.parent / WHOLE))
    tokenizer.encode_special_tokens = read_settings(model.parent)["split_special_tokens"]
    logits = np.empty((len(texts), len(labels)), dtype=np.float32)
    for members in _batches(texts, BATCH):
        encoded = tokenizer.encode_batch([texts[i] for i in members])
        ids = np.array([each.ids for each in encoded], dtype=np.int64)
        mask = np.array([each.attention_mask for each in encoded], dtype=np.int64)
        logits[members] = session.run([LOGITS], {IDS: ids, MASK: mask})[0]
    return logits


def _require(names: Mapping[Any, str], labels: Sequence[str]) -> None:
    """Check that a library reads the names of the labels, in their order."""
    found = [name for _, name in sorted((int(number), name) for number, name in names.items())]
    if found != list(labels):
        raise ModelError(f"the export has the labels {', '.join(found)}, not {', '.join(labels)}")


def _batches(texts: Sequence[str], size: int) -> Iterator[NDArray[np.int64]]:
    """Indices of texts in batches of similar length."""
    order = np.argsort([len(text) for text in texts], kind="stable")
    yield from (order[i : i + size] for i in range(0, len(order), size))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the notes and progress bars of transformers and PEFT."""
    from transformers.utils import logging as settings

    logger, bars = logging.getLogger("transformers"), settings.is_progress_bar_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    settings.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no annotation
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            settings.enable_progress_bar()  # type: ignore[no-untyped-call]  # as above
