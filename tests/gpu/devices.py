"""The same backbone and bank on any device."""

from __future__ import annotations

import torch

from rankwise.models import registry as families
from rankwise.nn.backbone import Backbone
from rankwise.nn.bank import Bank
from tests.unit.nn import models
from tests.unit.nn.static.test_step import unlike


def bank_on(device: str, family: str, dropout: float = 0.0) -> tuple[Backbone, Bank]:
    """A random backbone in float32, and a bank of unlike adapters whose B is random too."""
    backbone = families.build(
        models.CONFIGS[family], models.RandomWeights(), torch.float32, torch.device(device)
    )
    specs = unlike(backbone, dropout)
    bank = Bank(specs, backbone.modules(), backbone.d_model, models.CLASSES, backbone.head_std, device)
    filled = models.trained_bank(models.backbone(family), specs)
    for k in range(len(specs)):
        bank.load(k, filled.state(k))
    return backbone, bank
