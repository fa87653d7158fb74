"""Whether an operation is followed by a backward pass.

An autograd function costs several microseconds per call even if nothing is recorded. A single short text
makes hundreds of calls, so without a gradient they are left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_needed(x: Tensor) -> bool:
    """Whether autograd records operations on x."""
    return x.requires_grad and torch.is_grad_enabled()
