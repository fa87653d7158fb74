"""Limits of a request, all checked before the model does any work."""

from __future__ import annotations

BODY_BYTES = 2 << 20
ALL_BODY_BYTES = 256 << 20
"""Bytes of all requests in progress together."""
TEXTS = 1024
CHARACTERS = 100_000
"""Characters of a text, before it is tokenized. The model only reads its first tokens."""
PAIRS = 8192
"""Texts times adapters."""
NUMBERS = 200_000
"""Probabilities in an answer: texts times adapters times labels."""
NAMES = 256
"""Adapters that a request names."""
HEADER_SECONDS = 10.0
BODY_SECONDS = 20.0
WRITE_SECONDS = 30.0
"""Time that a client may take to read an answer that waits for it."""
IDLE_SECONDS = 30.0
"""Time that a connection stays open between two requests."""
