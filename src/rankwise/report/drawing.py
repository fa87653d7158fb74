"""Drawings: a plot as standalone SVG, as inline SVG with the page's colors, as PNG, and as PDF.

Plots use matplotlib's object API with fixed settings, so that they do not depend on the user's
configuration and the same numbers give the same bytes. The SVG is then simplified: text is kept as text in
the reader's font, colors become CSS variables for use in a page, ids are prefixed with the drawing's name,
and a title and a description are added for accessibility.

An SVG always shows class names, because the reader's fonts draw them. If the fonts of this machine cannot
draw all of them (`report.fonts`), a PNG or a PDF shows numbers instead.
"""

from __future__ import annotations

import io
import logging
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from rankwise.report.fonts import DEJAVU, families
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
    "svg.fonttype": "none", "pdf.fonttype": 42, "font.size": 9.5, "text.parse_math": False,
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
    names: Sequence[str] = ()  # class names that it shows
    numbered: Callable[[Figure], None] | None = None  # the plot with numbers for these names

    @cached_property
    def files(self) -> dict[str, bytes]:
        """Suffix -> content of the figure's files: svg and png."""
        # Omit software name and date, so that the bytes only depend on the data.
        return {
            "svg": self._saved(self.plot, "svg", {"Date": None, "Creator": None, "Format": None}),
            "png": self._saved(self.in_file(), "png", {"Software": None}),
        }

    def pdf(self) -> bytes:
        """The figure as PDF, with embedded TrueType fonts, as publishers ask for."""
        metadata = {"CreationDate": None, "Creator": None, "Producer": None}
        return self._saved(self.in_file(pdf=True), "pdf", metadata)

    def shows_numbers(self, *, pdf: bool = False) -> bool:
        """Whether its PNG, or its PDF, shows numbers instead of class names."""
        return families(_together(self.names), pdf=pdf) is None

    def in_file(self, *, pdf: bool = False) -> Callable[[Figure], None]:
        """The plot of its PNG or PDF."""
        return self.numbered if self.numbered and self.shows_numbers(pdf=pdf) else self.plot

    def _saved(self, plot: Callable[[Figure], None], kind: str, metadata: dict[str, None]) -> bytes:
        content = io.BytesIO()
        with _settings(self.name, families(_together(self.names)) or (DEJAVU,)):
            self._figure(plot).savefig(content, format=kind, metadata=metadata)
        return content.getvalue()

    @property
    def is_wide(self) -> bool:
        """Whether its text is too small on a phone, so that a page should let it scroll."""
        return self.size[0] > WIDTH

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
def _settings(salt: str, family: Sequence[str] = (DEJAVU,)) -> Iterator[None]:
    """Use fixed matplotlib settings, and silence its messages about the font cache and missing glyphs."""
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        import matplotlib

        with warnings.catch_warnings(), matplotlib.rc_context():
            warnings.simplefilter("ignore")
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE | {"svg.hashsalt": salt, "font.family": list(family)})
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


def shorten_all(names: Sequence[str], longest: int) -> list[str]:
    """Shorten names for an axis; in the middle, if they begin alike.

    >>> shorten_all(["card arrival", "card arrest"], 9), shorten_all(["love", "disappointment"], 9)
    (['card…ival', 'card…rest'], ['love', 'disappoi…'])
    """
    plain = [shorten(name, longest) for name in names]
    if len(set(plain)) == len(set(names)):
        return plain
    return [_elided(one_line(name), longest) for name in names]


def _elided(text: str, longest: int) -> str:
    if sum(map(_letters, text)) <= longest:
        return text
    end, room = "", (longest - 1) // 2
    for sign in reversed(text):
        room -= _letters(sign)
        if room < 0:
            break
        end = sign + end
    return shorten(text, longest - (longest - 1) // 2) + end


def _letters(sign: str) -> int:
    return 2 if unicodedata.east_asian_width(sign) in "WF" else 1


def png_names(labels: Sequence[str]) -> list[str] | None:
    """Numbers to replace the labels in a PNG; None if the installed fonts can draw all of them."""
    return [str(i) for i in range(len(labels))] if families(_together(labels)) is None else None


def _together(names: Iterable[str]) -> str:
    return "".join(map(one_line, names))
