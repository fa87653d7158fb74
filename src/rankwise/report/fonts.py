"""Fonts of PNG and PDF figures: which fonts draw a text, and how wide it is.

An SVG leaves its text to the fonts of the reader. A PNG or a PDF contains glyphs, so it needs a font of this
machine: matplotlib's DejaVu Sans (Latin, Greek, Cyrillic, Arabic, Hebrew and more), and an installed font for
scripts that DejaVu Sans lacks, such as Chinese and Japanese. If there is none, a figure shows numbers.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

DEJAVU = "DejaVu Sans"
BLANK_FONTS = ("lastresort", "adobeblank")
"""Fonts that map every character to a box or to nothing."""


def families(text: str, *, pdf: bool = False) -> tuple[str, ...] | None:
    """The font families that draw a text, in order of preference; None if the installed fonts cannot.

    Args:
        text: the text.
        pdf: whether it is for a PDF. matplotlib's PDF backend fails for some shaped texts, so scripts whose
            letters are joined or reordered are not drawn there.
    """
    if _needs_shaping(text) and (pdf or not _can_shape()):
        return None
    missing = frozenset(map(ord, text)) - _signs(None)
    if not missing:
        return (DEJAVU,)
    found = _covering(missing)
    return (DEJAVU, found) if found else None


def width(text: str, points: float) -> float:
    """Width of a line of text in DejaVu Sans, in inches; characters that it lacks count as squares."""
    plain = "".join(sign for sign in text if ord(sign) in _signs(None))
    font = _dejavu()
    font.set_size(points, 72)
    font.set_text(plain)
    drawn = font.get_width_height()[0] / 64 if plain else 0.0
    return float((drawn + points * (len(text) - len(plain))) / 72)


def _needs_shaping(text: str) -> bool:
    """Whether a script is written from right to left, or its marks and letters are joined or reordered."""
    return any(
        unicodedata.bidirectional(sign) in ("R", "AL", "AN") or unicodedata.category(sign) in ("Mn", "Mc")
        for sign in text
    )


def _can_shape() -> bool:
    """Whether this matplotlib shapes text, as versions from 3.11 do with libraqm."""
    from matplotlib import ft2font

    return hasattr(ft2font, "__libraqm_version__")


@cache
def _covering(missing: frozenset[int]) -> str | None:
    """The family of an installed font that has all of these characters, registered with matplotlib."""
    from matplotlib import font_manager

    for path in installed():
        if missing <= _signs(path):
            font_manager.fontManager.addfont(path)
            return _family(path)
    return None


def installed() -> list[str]:
    """Paths of the installed fonts, in a fixed order."""
    from matplotlib import font_manager

    return _without_blank(sorted(font_manager.findSystemFonts()))


def _without_blank(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not Path(path).name.lower().replace("-", "").startswith(BLANK_FONTS)]


@cache
def _signs(path: str | None) -> frozenset[int]:
    """The characters of a font, by default DejaVu Sans; empty if the font cannot be read."""
    try:
        return frozenset((_read(path) if path else _dejavu()).get_charmap())
    except (OSError, RuntimeError):  # FreeType refuses some bitmap and variable fonts
        return frozenset()


def _family(path: str) -> str:
    return str(_read(path).family_name)


def _read(path: str) -> Any:
    from matplotlib.ft2font import FT2Font

    return FT2Font(path)


@cache
def _dejavu() -> Any:
    """matplotlib's DejaVu Sans, loaded into memory, because an open file may be closed after a fork."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FT2Font(io.BytesIO(file.read_bytes()))
