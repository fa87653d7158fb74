"""Names by which columns and splits are known."""

from __future__ import annotations

import re

TEXT_COLUMNS = (
    "text", "texts", "sentence", "content", "body", "document", "tweet", "message", "msg", "sms", "review",
    "review_text", "review_body", "comment", "comment_text", "post", "utterance", "query", "question",
    "input", "title", "headline", "description", "abstract", "article", "email", "feedback",
)  # fmt: skip
"""A column with the first name is taken; if several others are in a table, the user has to choose."""

LABEL_COLUMNS = (
    "label", "labels", "emotion", "class", "category", "target", "sentiment", "intent", "topic", "rating",
    "ratings", "star_rating", "stars", "score", "polarity", "stance", "genre", "y",
)  # fmt: skip
"""As for texts, the first name is taken."""

SPLIT_COLUMN = "split"
SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "val", "valid", "dev"), "test": ("test",)}
"""Split -> names of its file or of its split on the Hub."""
SPLIT_VALUES = {
    **{name: split for split, names in SPLIT_NAMES.items() for name in names},
    **{"training": "train", "development": "validation", "testing": "test"},
}
"""Value of a split column -> split."""


def key(name: str) -> str:
    """A column name without case, spaces, hyphens and underscores.

    >>> key("Review Text"), key("review_text")
    ('reviewtext', 'reviewtext')
    """
    return re.sub(r"[\s_-]+", "", name).casefold()


TEXT_KEYS = tuple(map(key, TEXT_COLUMNS))
LABEL_KEYS = tuple(map(key, LABEL_COLUMNS))


def known(columns: list[str]) -> int:
    """The number of columns that are known as texts or labels."""
    return sum(key(column) in (*TEXT_KEYS, *LABEL_KEYS) for column in columns)
