"""Linear probes on features that are computed once.

Without dropout, a text's last hidden state under a frozen backbone is the same in every epoch. A bank that
consists of linear probes alone therefore needs the backbone only once for each text::

    features(texts)         (texts, d_model)    computed at first, then kept
    features @ head.T       (texts, classes)    all that is trained

Texts are always computed in the same windows, whichever of them is needed first, so a resumed run has the
same features. With products in bfloat16, a hidden state is bit-identical whatever the texts beside it. In
float32, its last bits depend on them, so float32 features are not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, Bank
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import pooled
from rankwise.nn.dropout import DropoutHook
from rankwise.nn.inference import most_tokens, windows
from rankwise.nn.loss import Loss
from rankwise.nn.ragged.batch import pack
from rankwise.nn.step import Batches, Targets, Windows

MOST_BYTES = 1 << 28
"""Bytes of features that a set of texts may need: 116,000 texts of SmolLM2."""


class Features:
    """The last hidden states of texts under a frozen backbone without dropout, each computed once.

    Args:
        backbone: the frozen model.
        texts: token ids, each (length,) int64; not empty.
    """

    def __init__(self, backbone: Backbone, texts: Sequence[Ids]) -> None:
        self._backbone, self._texts, self._device = backbone, texts, backbone.tokens.device
        self.windows = list(windows(texts, most_tokens(self._device)))
        """(texts,) int64 indices of the texts that are computed together."""
        self._found: list[Tensor | None] = [None] * len(self.windows)
        self._places = {
            texts[text].tobytes(): (number, row)
            for number, members in enumerate(self.windows)
            for row, text in enumerate(members)
        }

    @staticmethod
    def fit(backbone: Backbone, texts: Sequence[Ids]) -> bool:
        """Whether features of these texts may be kept: they are not too many, and products are in bfloat16.

        In float32, the last bits would differ from those of a bank with other adapters.
        """
        size = 4 * backbone.d_model * len(texts)
        return backbone.dtype == torch.bfloat16 and 0 < size <= MOST_BYTES

    def window(self, number: int) -> Tensor:
        """(texts, d_model) float32: the features of the texts of a window."""
        found = self._found[number]
        if found is None:
            packed = pack([[self._texts[i] for i in self.windows[number]]], self._device, shared=True)
            with torch.no_grad():
                found = self._found[number] = pooled(self._backbone, None, packed, DropoutHook(None))
        return found

    def __call__(self, texts: Sequence[Ids]) -> Tensor:
        """(texts, d_model) float32: the features of some of the texts."""
        places = [self._places[text.tobytes()] for text in texts]
        return torch.stack([self.window(number)[row] for number, row in places])


class ProbeStep:
    """A training step of linear probes alone. See `TrainingStep`.

    A batch is never split into micro-batches: a head needs little memory.

    Args:
        features: of the training texts.
        bank: the linear probes.
        loss: the loss, with its tensors on the bank's device.
    """

    def __init__(self, features: Features, bank: Bank, loss: Loss) -> None:
        self._features, self._bank, self._loss = features, bank, loss

    def __call__(
        self, batches: Batches, targets: Targets, numbers: Sequence[int], windows: Windows | None = None
    ) -> Tensor:
        """See `TrainingStep`."""
        device, tensors = self._bank.flat.device, self._bank.tensors
        outputs = [self._features(texts) @ own[HEAD].T for texts, own in zip(batches, tensors, strict=True)]
        labels = [torch.from_numpy(of_probe).to(device) for of_probe in targets]
        counts = None if windows is None else [torch.from_numpy(each).to(device) for each in windows]
        of_probes = self._loss(outputs, labels, windows=counts)
        torch.autograd.backward(of_probes.sum())
        return of_probes.detach()


def probe_logits(
    features: Features, bank: Bank, on_texts: Callable[[int], None] = lambda done: None
) -> NDArray[np.float32]:
    """The logits of linear probes on all texts; the counterpart of `inference.bank_logits`.

    Args:
        features: of the texts.
        bank: the linear probes.
        on_texts: called with the number of texts in each window that is done.

    Returns:
        (probes, texts, classes) float32, in the order of the texts.
    """
    out = np.empty((len(bank.specs), sum(map(len, features.windows)), bank.classes), dtype=np.float32)
    with torch.inference_mode():
        for number, members in enumerate(features.windows):
            hidden = features.window(number)
            out[:, members] = torch.stack([hidden @ own[HEAD].T for own in bank.tensors]).cpu().numpy()
            on_texts(len(members))
    return out
