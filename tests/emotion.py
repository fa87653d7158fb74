"""Location of the dataset dair-ai/emotion: RANKWISE_EMOTION, or a folder next to this repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_BESIDE = Path(__file__).parents[2] / "shared" / "data" / "emotion"
EMOTION = Path(os.environ.get("RANKWISE_EMOTION", _BESIDE))
needs_emotion = pytest.mark.skipif(
    not (EMOTION / "train.txt").is_file(),
    reason="dair-ai/emotion is not here; RANKWISE_EMOTION names its folder",
)
