"""Drawings: deterministic bytes, escaped text, colors from the page's theme."""

from __future__ import annotations

import logging
import re
from xml.etree import ElementTree

import matplotlib
import pytest
from matplotlib.figure import Figure

from rankwise.report.drawing import DARK, LIGHT, Drawing, shorten

HOSTILE = "</text><script>alert(1)</script> $x^2$ \x00\x1b \u202e & \" ' 表情 🙂"


def drawing(text: str = "a", name: str = "d") -> Drawing:
    def plot(figure: Figure) -> None:
        axes = figure.add_axes((0.1, 0.1, 0.8, 0.8))
        axes.plot([0, 1], [0, 1], marker="o", color=LIGHT["blue"])
        axes.text(0.2, 0.5, shorten(text, 90), color=LIGHT["ink"])

    return Drawing(name, f"title {text}", f"description {text}", plot, (2, 1))


def test_the_same_bytes_whatever_the_users_settings() -> None:
    first, settings = drawing(), dict(matplotlib.rcParams)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": "other"}):
        second = drawing()
        assert first.files == second.files
    assert first.standalone() == second.standalone() and first.inline() == second.inline()
    assert dict(matplotlib.rcParams) == settings


def test_no_dates_and_no_signs_of_the_software() -> None:
    shown = drawing().files["svg"].decode() + drawing().files["png"].decode("latin-1")
    assert not re.search(r"20\d\d-\d\d-\d\d|Software", shown)
    assert "matplotlib" not in drawing().standalone().lower()


def test_hostile_text_stays_text() -> None:
    shown = drawing(HOSTILE)
    for svg in (shown.standalone(), shown.inline()):
        assert "<script" not in svg
        tree = ElementTree.fromstring(svg)
        texts = [each for each in tree.iter() if each.tag.rpartition("}")[2] == "text"]
        found = next("".join(each.itertext()) for each in texts if "alert" in "".join(each.itertext()))
        assert found == "</text><script>alert(1)</script> $x^2$ \ufffd\ufffd \ufffd & \" ' 表情 🙂"


def test_title_and_description_are_there_and_named() -> None:
    tree = ElementTree.fromstring(drawing(name="one").inline())
    title, description = list(tree)[:2]
    assert (title.tag, description.tag) == ("title", "desc")
    assert (title.text, description.text) == ("title a", "description a")
    assert tree.get("role") == "img"
    assert tree.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


def test_ids_are_the_drawings_own_and_references_meet_them() -> None:
    svg = drawing(name="one").inline()
    ids = re.findall(r'\bid="([^"]+)"', svg)
    assert ids and len(set(ids)) == len(ids)
    assert all(each.startswith("one-") for each in ids)
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg)
    assert used and {a or b for a, b in used} <= set(ids)


def test_colours_follow_the_page_inline_and_stand_still_in_a_file() -> None:
    shown = drawing()
    assert "var(--blue)" in shown.inline() and "var(--ink)" in shown.inline()
    assert not any(color in shown.inline() for color in LIGHT.values())
    assert LIGHT["blue"] in shown.standalone() and "var(" not in shown.standalone()


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_paper(palette: dict[str, str]) -> None:
    """WCAG 2.2 contrast: at least 4.5 for text, in both color modes."""
    for name, color in palette.items():
        if name not in ("paper", "rule", "grid"):
            assert contrast(color, palette["paper"]) >= 4.5, name
    assert LIGHT.keys() == DARK.keys()


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_is_said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.DEBUG):
        _ = drawing(HOSTILE).files
    assert [each for each in caplog.records if each.name.startswith("matplotlib")] == []
    assert capfd.readouterr() == ("", "")


def test_a_picture_is_written() -> None:
    assert drawing().files["png"][:8] == b"\x89PNG\r\n\x1a\n"


def test_a_pdf_is_always_the_same_and_embeds_its_font() -> None:
    first = drawing().pdf()
    assert first.startswith(b"%PDF") and first == drawing().pdf()
    assert b"/FontFile2" in first and b"CreationDate" not in first and b"Matplotlib" not in first
