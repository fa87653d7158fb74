"""Drawings: a plot as standalone SVG, as inline SVG with the page's colors, and as PNG.

Plots use matplotlib's object API with fixed settings, so that they do not depend on the user's
configuration and the same numbers give the same bytes. The SVG is then simplified: text is kept as text in
the reader's font, colors become CSS variables for use in a page, ids are prefixed with the drawing's name,
and a title and a description are added for accessibility.

Text in a PNG is rendered with matplotlib's font, which lacks Chinese and Japanese characters, for example.
If the font cannot render all class names, a PNG shows numbers instead (`png_names`); an SVG shows the names.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rankwise.report.tables import one_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIGHT = {
    "paper": "#ffffff", "ink": "#1c242e", "muted": "#59646f", "rule": "#aeb7c1", "grid": "#e4e8ed",
    "blue": "#1d5fa6", "orange": "#b3480d", "green": "#187554", "purple": "#7b3f98", "gold": "#856404",
}  # fmt: skip
DARK = {
    "paper": "#14181d", "ink": "#e7eaee", "muted": "#a3adb8", "rule": "#56616d", "grid": "#2a323b",
    "blue": "#7fb6f2", "orange": "#f19a63", "green": "#63c9a2", "purple": "#d0a3e8", "gold": "#d9b94f",
}  # fmt: skip
"""The same keys as `LIGHT`. Every color except rule and grid has a contrast of at least 4.5 to paper."""
SERIES = ("blue", "orange", "green", "purple", "gold", "ink")
MARKERS = ("o", "s", "D", "^", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)), (0, (8, 3)))
"""Series differ in marker and dash as well as in color."""
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
WIDTH = 4.4
"""Inches; legible on a phone, and two fit side by side on a wide screen."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": 9.5, "text.parse_math": False,
    "text.color": LIGHT["ink"], "axes.edgecolor": LIGHT["rule"], "axes.labelcolor": LIGHT["muted"],
    "axes.labelsize": 9.5, "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LIGHT["grid"], "grid.linewidth": 0.8,
    "xtick.color": LIGHT["rule"], "ytick.color": LIGHT["rule"], "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["muted"], "xtick.labelsize": 9.5, "ytick.labelsize": 9.5,
    "xtick.major.size": 3, "ytick.major.size": 0, "lines.linewidth": 1.6, "lines.markersize": 5,
    "figure.facecolor": LIGHT["paper"], "axes.facecolor": "none", "savefig.dpi": 200,
}  # fmt: skip
_FONT = re.compile(r"font:([^;]*?)([\d.]+)px[^;]*")
_XLINK = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Drawing:
    """A figure that can be written to files or embedded in a page."""

    name: str  # stem of its file names
    title: str  # includes the split
    description: str  # the plotted values in words
    plot: Callable[[Figure], None]
    size: tuple[float, float]  # inches
    plot_png: Callable[[Figure], None] | None = None  # for the PNG, if its font lacks characters

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Suffix -> content of the figure's files: svg and png."""
        with _settings(self.name):
            figure = self._figure(self.plot)
            drawn = self._figure(self.plot_png) if self.plot_png else figure
            png, svg = io.BytesIO(), io.BytesIO()
            # Omit software name and date, so that the bytes only depend on the data.
            drawn.savefig(png, format="png", metadata={"Software": None})
            figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Format": None})
        return {"svg": svg.getvalue(), "png": png.getvalue()}

    def standalone(self) -> str:
        """An SVG file in the light colors."""
        root = self._plain()
        root.set("xmlns", "http://www.w3.org/2000/svg")
        return '<?xml version="1.0" encoding="utf-8"?>\n' + _text(root) + "\n"

    def inline(self) -> str:
        """SVG for embedding in a page, colored by the page's variables `--paper`, `--ink` and so on."""
        root = self._plain()
        names = {value: f"var(--{name})" for name, value in LIGHT.items()}
        pattern = re.compile("|".join(names))
        for element in root.iter():
            if style := element.get("style"):
                element.set("style", pattern.sub(lambda match: names[match[0]], style))
        return _text(root)

    def _figure(self, plot: Callable[[Figure], None]) -> Figure:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=self.size)
        FigureCanvasAgg(figure)
        plot(figure)
        return figure

    def _plain(self) -> ElementTree.Element:
        """matplotlib's SVG without its metadata and style, with a title and a description."""
        root = ElementTree.fromstring(self.files["svg"])
        for parent in list(root.iter()):
            for child in [each for each in parent if each.tag.endswith(("metadata", "}style"))]:
                parent.remove(child)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
            _rename(element, f"{self.name}-")
        for side in ("width", "height", "version"):
            root.attrib.pop(side, None)
        label = f"{self.name}-title {self.name}-description"
        root.attrib |= {"role": "img", "aria-labelledby": label, "style": f"font-family: {FONTS}"}
        for place, (tag, text) in enumerate((("title", self.title), ("desc", self.description))):
            element = ElementTree.Element(tag, {"id": label.split()[place]})
            element.text = one_line(text)
            root.insert(place, element)
        return root


def _rename(element: ElementTree.Element, prefix: str) -> None:
    """Prefix ids and references with the drawing's name; use the page's fonts."""
    if "id" in element.attrib:
        element.set("id", prefix + element.attrib["id"].removeprefix("matplotlib."))
    if _XLINK in element.attrib:
        element.set("href", f"#{prefix}{element.attrib.pop(_XLINK).removeprefix('#')}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{prefix}"))
    if style := element.get("style"):
        element.set("style", _FONT.sub(r"font-size:\2px", style))


def _text(root: ElementTree.Element) -> str:
    return ElementTree.tostring(root, encoding="unicode")


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """Use fixed matplotlib settings, and silence its messages about the font cache and missing glyphs."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        import matplotlib

        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.simplefilter("ignore")
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE | {"svg.hashsalt": salt})
            yield
    finally:
        logger.setLevel(level)


def shorten(text: str, longest: int = 22) -> str:
    """Shorten text for a figure. Wide East Asian characters count as two.

    >>> shorten("a" * 30, 10), shorten("\N{HIRAGANA LETTER A}" * 30, 5)
    ('aaaaaaaaa…', 'ああ…')
    """
    text = one_line(text)
    if sum(map(_letters, text)) <= longest:
        return text
    kept, room = "", longest - 1
    for sign in text:
        room -= _letters(sign)
        if room < 0:
            break
        kept += sign
    return kept + "…"


def _letters(sign: str) -> int:
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def width(text: str, points: float) -> float:
    """Width of a line of text in the PNG's font, in inches; missing characters count as squares."""
    plain = "".join(sign for sign in text if ord(sign) in _font_signs())
    font = _font()
    font.set_size(points, 72)
    font.set_text(plain)
    drawn = font.get_width_height()[0] / 64 if plain else 0.0
    return float((drawn + points * (len(text) - len(plain))) / 72)


def png_names(labels: Sequence[str]) -> list[str] | None:
    """Numbers to replace the labels in a PNG; None if its font can render all of them."""
    shown = "".join(map(one_line, labels))
    return None if set(map(ord, shown)) <= _font_signs() else [str(i) for i in range(len(labels))]


@cache
def _font_signs() -> frozenset[int]:
    return frozenset(_font().get_charmap())


@cache
def _font() -> Any:
    """matplotlib's DejaVu Sans, loaded into memory, because an open file may be closed after a fork."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return FT2Font(io.BytesIO(file.read_bytes()))
