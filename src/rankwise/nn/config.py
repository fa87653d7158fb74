"""Checked reading of a model's config.json, which is untrusted input."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from rankwise.errors import ModelError

LARGEST = 1 << 24
"""No size in a config may exceed this; a larger one is an error or an attack."""


def count(json: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; `default` where the key is missing or null."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise ModelError(f"config.json: {key} must be a whole number from 1 to {LARGEST}, not {value!r}")
    return value


def positive(json: Mapping[str, Any], key: str, default: float) -> float:
    """A positive finite number."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < 1e12:
        raise ModelError(f"config.json: {key} must be a positive number, not {value!r}")
    return float(value)


def fraction(json: Mapping[str, Any], key: str, default: float) -> float:
    """A number from 0 to below 1."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 <= value < 1:
        raise ModelError(f"config.json: {key} must lie between 0 and 1, not {value!r}")
    return float(value)


def choice(json: Mapping[str, Any], key: str, default: str, known: Container[str]) -> str:
    """One of the known words."""
    value = json.get(key, default)
    if not isinstance(value, str) or value not in known:
        raise ModelError(f"config.json: {key} = {value!r} is not supported")
    return value


def flag(json: Mapping[str, Any], key: str, default: bool) -> bool:
    """True or false."""
    value = json.get(key)
    value = default if value is None else value
    if type(value) is not bool:
        raise ModelError(f"config.json: {key} must be true or false, not {value!r}")
    return value
