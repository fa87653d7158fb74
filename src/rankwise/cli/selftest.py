"""A numerical self-test: compares rankwise with transformers + PEFT on tiny random models.

The reference runs in float32 on the CPU, with one padded batch; rankwise runs on the given device in the
given precision. Logits and gradients are compared by relative error: the norm of the difference divided by
the norm of the reference.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rankwise.models.family import Family
from rankwise.models.registry import FAMILIES
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import HEAD, AdapterSpec, Bank, match_modules
from rankwise.nn.batch import Ids
from rankwise.nn.classifier import logits
from rankwise.nn.loss import CrossEntropy
from rankwise.nn.ragged.batch import pack

CLASSES, RANK, ALPHA, VOCABULARY = 3, 2, 4.0, 100
LENGTHS = (1, 9, 4, 30, 2)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Maximum relative error: about 1000 times float32's rounding error; bfloat16 has only 8 bits."""
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}


@dataclass(frozen=True)
class Agreement:
    """Relative errors of a family with respect to the reference."""

    family: str
    precision: str
    logits: float
    gradients: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether both errors are within the tolerance; NaN is not."""
        return self.logits <= self.tolerance and self.gradients <= self.tolerance


def run(device: torch.device, precisions: Sequence[torch.dtype]) -> list[Agreement]:
    """Compare a small model of each family in each precision.

    Args:
        device: device for rankwise.
        precisions: torch.float32 or torch.bfloat16, for the matrix products of rankwise.
    """
    texts = _texts()
    found = []
    for name, family in FAMILIES.items():
        with _quiet():
            peer = _peer(family)
            theirs = _peer_results(peer, family, texts)
        for dtype in precisions:
            ours = _our_results(peer, family, texts, dtype, device)
            in_logits, in_gradients = map(_error, ours, theirs)
            precision = str(dtype).removeprefix("torch.")
            found.append(Agreement(name, precision, in_logits, in_gradients, TOLERANCE[dtype]))
    return found


def _texts() -> list[Ids]:
    random = np.random.default_rng(0)
    return [random.integers(1, VOCABULARY, length) for length in LENGTHS]  # 0 is the pad token


def _targets() -> Tensor:
    return torch.arange(len(LENGTHS)) % CLASSES


def _peer(family: Family) -> Any:
    """A transformers classifier with PEFT's LoRA and random weights, including B."""
    import peft
    import transformers

    values = {**family.peer.small, "vocab_size": VOCABULARY, "num_labels": CLASSES, **_SPECIAL}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, family.peer.config)(**values)
        classifier: Any = transformers.AutoModelForSequenceClassification
        model = classifier.from_config(config, attn_implementation="eager")
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than the usual initialization, so that every weight matters
                torch.nn.init.normal_(parameter, std=0.2)
        lora = peft.LoraConfig(task_type=peft.TaskType.SEQ_CLS, r=RANK, lora_alpha=int(ALPHA))
        wrapped: Any = peft.get_peft_model(model, lora)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return wrapped.eval()


def _peer_results(peer: Any, family: Family, texts: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """(logits, concatenated gradients)."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.from_numpy(text)
    out: Tensor = peer(input_ids=ids, attention_mask=(ids != 0).long()).logits
    torch.autograd.backward(F.cross_entropy(out, _targets()))
    trained = _trained(peer, family)
    return out.detach(), torch.cat([_gradient(trained[name]) for name in sorted(trained)])


def _our_results(
    peer: Any, family: Family, texts: Sequence[Ids], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    backbone = _backbone(peer, family, device)
    backbone.cast(dtype)
    modules = backbone.modules()
    spec = AdapterSpec(
        RANK, ALPHA, ALPHA / RANK, 0, 0.0, match_modules(list(modules), backbone.default_targets)
    )
    bank = Bank([spec], modules, backbone.d_model, CLASSES, device=device)
    bank.load(0, {name: parameter.detach() for name, parameter in _trained(peer, family).items()})
    (out,) = logits(backbone, bank, pack([texts], device))
    torch.autograd.backward(CrossEntropy()([out], [_targets().to(device)]).sum())
    tensors = bank.tensors[0]
    return out.detach(), torch.cat([_gradient(tensors[name]) for name in sorted(tensors)])


def _backbone(peer: Any, family: Family, device: torch.device) -> Backbone:
    """rankwise's backbone with the weights of the reference model."""
    model = peer.get_base_model()
    named = {name.replace(".base_layer", ""): tensor for name, tensor in model.state_dict().items()}
    config = family.config.from_json(model.config.to_dict())
    return family.backbone(config, _Source(named, family.prefix), torch.float32, device)


class _Source:
    def __init__(self, tensors: dict[str, Tensor], prefix: str) -> None:
        self._tensors = {name.removeprefix(f"{prefix}."): tensor for name, tensor in tensors.items()}

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self._tensors[name].detach()


def _trained(peer: Any, family: Family) -> dict[str, Tensor]:
    """PEFT's trained tensors, by rankwise's names."""
    factor = re.compile(rf"base_model\.model\.{family.prefix}\.(.*)\.(lora_[AB])\.default\.weight")
    named = {}
    for name, parameter in peer.named_parameters():
        if parameter.requires_grad:
            found = factor.fullmatch(name)
            named[f"{found[1]}.{found[2]}" if found else HEAD] = parameter
    return named


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros(tensor.numel()) if tensor.grad is None else tensor.grad.detach().flatten().cpu()


def _error(ours: Tensor, theirs: Tensor) -> float:
    difference = ours.cpu().double() - theirs.double()
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(theirs.double()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of transformers and PEFT about such a small model."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
