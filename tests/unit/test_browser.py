"""report.html in a real browser: no horizontal overflow, no requests, light and dark modes.

Needs Chromium or Chrome on the path; otherwise these tests are skipped.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rankwise.report import build
from rankwise.report.drawing import DARK, LIGHT
from rankwise.store.run_folder import RunFolder
from tests.made import made_run
from tests.tuned import OPTIMA, made_tuning, tune

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = (
    "--headless", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND",
    "--virtual-time-budget=10000",
)  # fmt: skip
MEASURE = """
<script>
const wide = [...document.querySelectorAll("body *")].filter(each => {
  const box = each.getBoundingClientRect();
  return box.right > innerWidth + 1 && !each.closest(".scroll, pre, svg, .skip");
});
parent.postMessage(JSON.stringify({
  width: innerWidth,
  scroll: document.documentElement.scrollWidth,
  wide: wide.map(each => each.tagName + "." + each.className),
  fetched: performance.getEntriesByType("resource").map(each => each.name),
  background: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  text: getComputedStyle(document.querySelector("svg text")).fill,
  dots: getComputedStyle(document.querySelector("svg [style*='--blue']")).fill,
  smallest: Math.min(...[...document.querySelectorAll("svg text")].map(each => {
    const svg = each.ownerSVGElement;
    return parseFloat(getComputedStyle(each).fontSize) * svg.clientWidth / svg.viewBox.baseVal.width;
  })),
}), "*");
</script>
"""
FRAMES = """<!doctype html>
<script>
const found = [];
addEventListener("message", each => {
  found.push(JSON.parse(each.data));
  document.documentElement.dataset.found = JSON.stringify(found);
});
</script>
"""
"""A page of frames: unlike a window, a frame can be as narrow as a phone."""
TRY = """
<script>
const table = document.querySelector("#ranks table");
const heads = [...table.tHead.rows[0].cells];
const column = heads.findIndex(each => each.textContent.includes("trainable params"));
const cells = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent.trim());
const button = heads[column].querySelector("button");
button.click();
const sorted = cells();
button.click();
const box = document.querySelector("#samples .examples");
const input = document.querySelector("#samples input");
const rows = [...box.querySelectorAll("tbody tr")];
input.value = rows[0].cells[0].textContent.trim().toUpperCase();
input.dispatchEvent(new Event("input"));
document.documentElement.dataset.tried = JSON.stringify({
  sorted, reversed: cells(), all: rows.length, left: rows.filter(each => each.offsetParent).length,
});
</script>
"""
"""Sorts a table by a click, sorts it again, and searches the samples for the first text."""
WIDTHS = (360, 800, 1440)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that measures itself, with the content security policy removed so that scripts run."""
    long = "Donaudampfschifffahrtsgesellschaft" * 8
    folder = tmp_path_factory.mktemp("made") / ("name-" * 30)
    run = made_run(folder, labels=("yes", "no", "x" * 200), texts=("a text", long, "<b>bold</b> " * 40))
    tune(run, made_tuning(OPTIMA, others={"targets": (["q_proj", "k_proj"], [long])}))
    build.rebuild(run)
    source = (RunFolder(folder).path / "report.html").read_text("utf-8")
    assert MEASURE not in source
    source, policies = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    assert policies == 1
    target = tmp_path_factory.mktemp("page") / "page.html"
    target.write_text(source.replace("</body>", f"{MEASURE}</body>"), "utf-8")
    return target


def measured(page: Path, profile: Path, *, dark: bool) -> list[dict[str, Any]]:
    """The page's measurements at each width."""
    assert BROWSER is not None
    frames = page.with_name("frames.html")
    shown = [
        f'<iframe src="{page.name}" width="{width}" height="900" style="border:0"></iframe>'
        for width in WIDTHS
    ]
    frames.write_text(FRAMES + "".join(shown), "utf-8")
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--window-size=1600,3000", "--dump-dom"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")
    command += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", frames.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    match = re.search(r'data-found="([^"]+)"', done.stdout)
    assert match, done.stderr
    found: list[dict[str, Any]] = json.loads(html.unescape(match[1]))
    return sorted(found, key=lambda each: each["width"])


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_its_window(page: Path, tmp_path: Path, dark: bool) -> None:
    palette, measures = DARK if dark else LIGHT, measured(page, tmp_path, dark=dark)
    assert [found["width"] for found in measures] == list(WIDTHS)
    for found in measures:
        assert found["scroll"] <= found["width"]
        assert found["wide"] == []
        assert found["fetched"] == []
        assert found["background"] == rgb(palette["paper"])
        assert found["ink"] == rgb(palette["ink"])
        assert found["text"] in {rgb(palette["ink"]), rgb(palette["muted"])}
        assert found["dots"] in {rgb(palette["blue"]), "none"}
        assert found["smallest"] >= 8  # pixels


@pytest.mark.parametrize("changed", [False, True], ids=["as written", "changed"])
def test_the_script_runs_only_as_it_was_written(tmp_path: Path, changed: bool) -> None:
    """The page's policy names the digest of its script: tables get buttons, and examples a search box."""
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,), sizes={"validation": 60})
    build.rebuild(made, extras=build.Extras(interactive=True))
    target = made.path / "report.html"
    if changed:
        target.write_text(target.read_text("utf-8").replace('"use strict";', '"use strict"; ', 1), "utf-8")
    shown = dumped(target, tmp_path / "profile")
    assert ('<button type="button" class="sort">' in shown) == (not changed)
    assert shown.count('<input type="search">') == (0 if changed else 2)


def test_a_click_sorts_and_a_word_filters(tmp_path: Path) -> None:
    made = made_run(tmp_path / "run", accuracies={1: 0.8, 4: 0.9}, seeds=(0,), sizes={"validation": 60})
    build.rebuild(made, extras=build.Extras(interactive=True))
    source = (made.path / "report.html").read_text("utf-8")
    source = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", source)
    target = made.path / "tried.html"
    target.write_text(source.replace("</body>", f"{TRY}</body>"), "utf-8")
    match = re.search(r'data-tried="([^"]+)"', dumped(target, tmp_path / "profile"))
    assert match
    found = json.loads(html.unescape(match[1]))
    numbers = [float(cell.replace(",", "")) for cell in found["sorted"] if cell]
    assert numbers == sorted(numbers) and len(set(numbers)) > 1
    assert found["sorted"][len(numbers) :] == [""] * (len(found["sorted"]) - len(numbers))  # empty ones last
    assert [float(cell.replace(",", "")) for cell in found["reversed"] if cell] == numbers[::-1]
    assert 0 < found["left"] < found["all"]


def dumped(page: Path, profile: Path) -> str:
    """The page's document after its scripts have run."""
    assert BROWSER is not None
    command = [BROWSER, *QUIET, f"--user-data-dir={profile}", "--dump-dom"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--no-sandbox")
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def rgb(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgb({red}, {green}, {blue})"
