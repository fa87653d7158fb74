"""The page in a real browser: mouse, keyboard, a dropped file, a download, hostile texts, narrow windows.

Needs Chromium or Chrome on the path; otherwise these tests are skipped.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rankwise.data.writers import neutral
from rankwise.report.drawing import DARK, LIGHT
from tests.serve.browser import PROGRAM, Browser, browser
from tests.serve.made import LETTERS, make_adapter
from tests.serve.running import TOKEN, Running, running
from tests.unit.test_browser import rgb

# A browser is a program of the system, which pip cannot install.
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome on the path")
IDLE = "!document.querySelector('#go').disabled"
HOSTILE = [
    "<script>bad()</script>", "<img src=x onerror=bad()>", "<svg onload=bad()>", "javascript:bad()",
    "\"><script>bad()</script>", "'><img src=x onerror=bad()>", "<a href=javascript:bad()>x</a>",
    "</textarea><script>bad()</script>", "<iframe srcdoc='<script>parent.bad()</script>'></iframe>",
    "<body onload=bad()>", "<style>*{display:none}</style>", "<math><mtext><script>bad()</script>",
    "{{bad()}}", "${bad()}", "<details open ontoggle=bad()>", "<input autofocus onfocus=bad()>",
    "&lt;script&gt;bad()&lt;/script&gt;", "<base href=//evil.example>", "<object data=data:text/html,x>",
    "<meta http-equiv=refresh content=0>",
]  # fmt: skip
THRESHOLDS = (0.3, 0.5, 0.7)
XSS = [f"{shape} {i}" for i in range(5) for shape in HOSTILE]
"""100 texts that would run a script, or change the page, if they were inserted as HTML."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for seed in (1, 2, 3):
        make_adapter(folder / f"s{seed}", gpt2_base, rank=4, seed=seed)
    make_adapter(folder / "hostile", gpt2_base, rank=2, labels=HOSTILE[:3])
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    names = ("s1", "s2", "s3", "hostile")
    with running(*(folder / name for name in names), "--precision", "float32") as found:
        yield found


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, gpt2_base: Path) -> Iterator[Running]:
    """A server with a run, which has a report, a multi-label adapter, and two adapters for pairs."""
    folder = tmp_path_factory.mktemp("kinds")
    make_adapter(folder / "a run" / "adapters" / "r4", gpt2_base, rank=4)
    (folder / "a run" / "report.html").write_text("<title>The report</title>", encoding="utf-8")
    several: dict[str, Any] = {"task": "multi-label", "thresholds": THRESHOLDS, "label_separator": "; "}
    make_adapter(folder / "several", gpt2_base, seed=2, **several)
    for name in ("pairs", "twin"):
        make_adapter(folder / name, gpt2_base, rank=2, text_columns=("premise", "hypothesis"))
    names = ("a run", "several", "pairs", "twin")
    with running(*(folder / name for name in names), "--precision", "float32") as found:
        yield found


@pytest.fixture
def page(tab: Browser, server: Running) -> Iterator[Browser]:
    """The page, with its adapters listed. Afterwards, nothing was fetched from elsewhere or refused."""
    tab.open(server.url)
    tab.until("document.querySelector('#adapters input')")
    yield tab
    assert all(url.startswith((server.url, "data:", "blob:")) for url in tab.requested)
    assert tab.complaints == []
    assert tab.evaluate("typeof bad") == "undefined"


def answers(server: Running, texts: list[str], adapters: list[str]) -> list[list[str]]:
    """For each text, the labels of the adapters, from the API."""
    found = httpx.post(f"{server.url}/v1/predict", json={"texts": texts, "adapters": adapters}).json()
    return [[each["label"] for each in prediction["answers"]] for prediction in found["predictions"]]


def texts_of(page: Browser, selector: str) -> list[str]:
    found: list[str] = page.evaluate(
        f"[...document.querySelectorAll({json.dumps(selector)})].map(each => each.textContent)"
    )
    return found


def tick(page: Browser, *names: str) -> None:
    """Choose exactly these adapters, with the mouse."""
    count = page.evaluate("document.querySelectorAll('#adapters input').length")
    for i in range(1, count + 1):
        box = f"#adapters label:nth-child({i}) input"
        value, checked = page.evaluate(f"(e => [e.value, e.checked])(document.querySelector('{box}'))")
        if checked != (value in names):
            page.click(box)


def test_a_sample_is_answered_by_a_click(page: Browser, server: Running) -> None:
    page.click("#samples button:nth-child(2)")
    page.until("document.querySelector('.panel')")
    text = page.evaluate("document.querySelector('#texts').value")
    assert texts_of(page, ".verdict") == answers(server, [text], ["s1"])[0]
    bars = "[...document.querySelectorAll('.bars .bar')]"
    shares = page.evaluate(f"{bars}.map(each => each.clientWidth / each.parentElement.clientWidth)")
    assert len(shares) == 3 and shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=0.15)


def test_adapters_side_by_side(page: Browser, server: Running) -> None:
    tick(page, "s1", "s2", "s3")
    page.click("#texts")
    page.type("so glad and merry")
    page.press("Enter", control=True)
    page.until(f"{IDLE} && document.querySelectorAll('.panel').length === 3")
    (labels,) = answers(server, ["so glad and merry"], ["s1", "s2", "s3"])
    assert texts_of(page, ".verdict") == labels
    expected = "The adapters agree." if len(set(labels)) == 1 else "The adapters differ."
    assert texts_of(page, ".note") == [expected]


def test_a_rank_averages_its_seeds(page: Browser) -> None:
    tick(page, "4")
    page.click("#samples button:nth-child(1)")
    page.until("document.querySelector('#go').disabled || document.querySelector('.panel')")
    page.until("document.querySelector('.panel')")
    assert texts_of(page, ".panel h3") == ["rank-4"]


def test_words_are_explained(page: Browser, server: Running) -> None:
    page.click("#texts")
    page.type("<b>so</b> very glad")
    page.click("#go")
    page.until("document.querySelector('.panel .link')")
    page.click(".panel .link")
    page.until("document.querySelector('.words')")
    assert texts_of(page, ".words span") == ["<b>so</b>", "very", "glad"]
    found = httpx.post(
        f"{server.url}/v1/explain", json={"text": "<b>so</b> very glad", "adapter": "s1"}
    ).json()
    kinds = page.evaluate("[...document.querySelectorAll('.words span')].map(each => each.className)")
    assert kinds == ["for" if word["effect"] >= 0 else "against" for word in found["words"]]


def test_many_lines_make_a_table(page: Browser, server: Running) -> None:
    lines = ["so glad", "", "my sister was furious", "it left me shaky"] + [f"so {i}" for i in range(80)]
    tick(page, "s1", "s2")
    page.click("#texts")
    page.type("\n".join(lines))
    page.click("#go")
    page.until(f"{IDLE} && document.querySelector('.list tbody tr')")
    kept = [text for text in lines if text]
    labels = answers(server, kept, ["s1", "s2"])
    assert texts_of(page, ".list tbody tr:not([hidden]) td:first-child") == kept
    cells = texts_of(page, ".list tbody tr:not([hidden]) td:nth-child(2)")
    assert [cell.split()[0] for cell in cells] == [first for first, _ in labels]
    marks = texts_of(page, ".list td.mark")
    assert marks == ["= agree" if a == b else "≠ differ" for a, b in labels]
    differ = sum(a != b for a, b in labels)
    assert differ, "the adapters agree: this test shows nothing"
    page.click("#filter")
    assert len(texts_of(page, ".list tbody tr:not([hidden])")) == differ


def test_a_dropped_file_is_labeled_and_downloaded(page: Browser, server: Running, tmp_path: Path) -> None:
    rows = [("1", "so glad", "a,b"), ("2", '=cmd|"x"', "line\nbreak"), ("3", "very furious", " \uff1d1")]
    source = tmp_path / "reviews.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("id", "Review", "note"), *rows])
    page.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "down"))
    page.drop(source)
    page.until("!document.querySelector('#table').hidden")
    assert page.evaluate("document.querySelector('#column').selectedOptions[0].textContent") == "Review"
    page.click("#go")
    page.until(f"{IDLE} && document.querySelector('.list')")
    page.click("#download")
    target = tmp_path / "down" / "reviews-labeled.csv"
    deadline = time.monotonic() + 20
    while not target.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert target.read_bytes().startswith(codecs.BOM_UTF8)  # by which Excel recognizes UTF-8
    with target.open(encoding="utf-8-sig", newline="") as file:
        written = list(csv.reader(file))
    assert written[0] == ["id", "Review", "note", "predicted_label", "probability"]
    safe = [[neutral(cell) for cell in row] for row in rows]
    assert [row[:3] for row in written[1:]] == safe
    assert [row[3] for row in written[1:]] == [
        label for (label,) in answers(server, [text for _, text, _ in rows], ["s1"])
    ]


def test_formulas_are_those_of_every_csv(page: Browser) -> None:
    """The page guards the cells that rankwise guards, whatever they begin with."""
    scalars = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]
    starts = [code for code in scalars if neutral(chr(code)) != chr(code)]
    blanks = [code for code in scalars if neutral(f"{chr(code)}=") != f"{chr(code)}="]
    found = (
        "suffix => Array.from({length: 0x110000}, (_, code) => code)"
        ".filter(code => code < 0xd800 || code > 0xdfff)"
        ".filter(code => (cell => neutral(cell) !== cell)(String.fromCodePoint(code) + suffix))"
    )
    assert page.evaluate(f"({found})('')") == starts
    assert page.evaluate(f"({found})('=')") == blanks
    several = ["'=1", "''", "'so", "'\t1", "\n1", " \xad\u200b-1", "so = glad", ""]
    assert page.evaluate(f"{json.dumps(several)}.map(neutral)") == [neutral(each) for each in several]


MISREAD: list[tuple[str, str | bytes, str]] = [
    ("open.tsv", 'id\ttext\n1\tso\n2\t"glad\n3\tmerry\n', "line 3: a quote is opened and never closed."),
    ("open.csv", 'id,text\r\n1,"so\r\n2,glad\r\n', "line 2: a quote is opened and never closed."),
    ("two.tsv", 'id\ttext\n1\t"so\n2\t"glad\n', "line 2: text follows the quote that ends a cell."),
    ("cut.csv", 'id,text\n1,"so" glad\n', "line 2: text follows the quote that ends a cell."),
    ("rows.tsv", 'id\ttext\n1\t"so\n2\tglad "\n', "line 2: a quote joins lines that are whole rows"),
    ("latin.csv", "id,text\n1,caf\xe9\n".encode("cp1252"), "it is not UTF-8. (save it as UTF-8"),
    ("unmarked.csv", "id,text\n1,so\n".encode("utf-16-le"), "it is not UTF-8."),
    ("odd.csv", "id,text\n1,so\n".encode("utf-16")[:-1], "it is not UTF-8."),
    ("wide.csv", "id,text\n1,so\n".encode("utf-32"), "it is not UTF-8."),
    ("latin.txt", "caf\xe9\n".encode("cp1252"), "it is not UTF-8."),
]


@pytest.mark.parametrize(("name", "content", "message"), MISREAD, ids=[name for name, *_ in MISREAD])
def test_a_file_that_would_be_misread_is_refused(
    page: Browser, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    page.drop(source)
    page.until("!document.querySelector('#problem').hidden || !document.querySelector('#table').hidden")
    assert texts_of(page, "#problem")[0].startswith(f"{name} cannot be read: {message}")
    assert page.evaluate("document.querySelector('#table').hidden && state.table === null")


READ: list[tuple[str, str | bytes, list[list[str]]]] = [
    ("quoted.tsv", '"id"\t"text"\n1\t"so\n""glad"""\n', [["1", 'so\n"glad"']]),
    ("joined.tsv", 'id\ttext\n1\t"so\nglad"\n2\t""\n', [["1", "so\nglad"], ["2", ""]]),
    ("inner.tsv", 'id\ttext\n1\tso "glad\n2\tmerry"\n', [["1", 'so "glad'], ["2", 'merry"']]),
    ("marked.csv", codecs.BOM_UTF8 + b"id,text\n1,so\n", [["1", "so"]]),
    ("little.csv", codecs.BOM_UTF16_LE + "id,text\n1,caf\xe9\n".encode("utf-16-le"), [["1", "caf\xe9"]]),
    ("big.csv", codecs.BOM_UTF16_BE + "id,text\n1,caf\xe9\n".encode("utf-16-be"), [["1", "caf\xe9"]]),
]


@pytest.mark.parametrize(("name", "content", "rows"), READ, ids=[name for name, *_ in READ])
def test_a_file_is_read(
    page: Browser, tmp_path: Path, name: str, content: str | bytes, rows: list[list[str]]
) -> None:
    source = tmp_path / name
    source.write_bytes(content if isinstance(content, bytes) else content.encode())
    page.drop(source)
    page.until("!document.querySelector('#problem').hidden || !document.querySelector('#table').hidden")
    assert page.evaluate("state.table && [state.table.header, state.table.rows]") == [["id", "text"], rows]


def test_hostile_texts_stay_texts(page: Browser) -> None:
    tick(page, "s1", "hostile")
    page.click("#texts")
    page.type("\n".join(XSS))
    page.click("#go")
    page.until(f"{IDLE} && document.querySelectorAll('.list tbody tr').length === 200", 120)
    assert texts_of(page, ".list tbody tr:not([hidden]) td:first-child") == XSS
    inside = "#output :is(script, img, svg, iframe, style, input, object, base, meta, a, math, details)"
    assert texts_of(page, inside) == []
    shown = {cell.rpartition(" ")[0] for cell in texts_of(page, ".list td:nth-child(3)")}
    assert shown <= set(HOSTILE[:3]) and shown
    for i in (1, 3, 5):
        page.click(f".list tbody tr:nth-child({i}) .link")
    page.until("document.querySelectorAll('.panel').length === 6")
    page.click(".panel .link")
    page.until("document.querySelector('.words, .panel .muted.small')")
    assert texts_of(page, inside) == []


def test_hostile_files_stay_texts(page: Browser, tmp_path: Path) -> None:
    source = tmp_path / "<img src=x onerror=bad()>.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([HOSTILE[:3], *([text] * 3 for text in XSS[:20])])
    page.drop(source)
    page.until("!document.querySelector('#table').hidden")
    assert texts_of(page, "#column option") == HOSTILE[:3]
    assert page.evaluate("document.querySelector('#table-name').textContent").startswith("<img src=x")
    assert texts_of(page, "main img, main script") == []


def test_the_keyboard_is_enough(page: Browser, server: Running) -> None:
    page.evaluate("document.querySelector('#texts').focus()")
    page.type("so merry")
    for _ in range(40):
        page.press("Tab")
        if page.evaluate("document.activeElement.id") == "go":
            break
    page.press("Enter")
    page.until("document.querySelector('.verdict')")
    assert texts_of(page, ".verdict") == answers(server, ["so merry"], ["s1"])[0]


def test_controls_have_names(page: Browser) -> None:
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "checkbox", "combobox", "link", "spinbutton", "searchbox"}
    shown = [each for each in nodes if each.get("role", {}).get("value") in roles]
    named = [(each["role"]["value"], each["name"]["value"]) for each in shown]
    assert len(named) >= 12
    assert [role for role, name in named if not name.strip()] == []


def test_problems_are_told(page: Browser) -> None:
    page.click("#go")
    assert texts_of(page, "#problem")[0].startswith("There is no text yet.")
    tick(page)
    page.click("#samples button")
    assert texts_of(page, "#problem")[0].startswith("No adapter is chosen.")


def opened(tab: Browser, server: Running, *names: str) -> None:
    """Open the page, and choose these adapters."""
    tab.open(server.url)
    tab.until("document.querySelector('#adapters input')")
    tick(tab, *names)


def test_the_report_of_a_run_is_a_click_away(tab: Browser, tasks: Running) -> None:
    opened(tab, tasks)
    assert texts_of(tab, "#links a") == ["Report of a run", "API"]
    tab.click("#links a")
    tab.until("document.title === 'The report'")
    assert tab.evaluate("location.pathname") == "/reports/a%20run" and tab.complaints == []


def test_several_labels_have_their_thresholds(tab: Browser, tasks: Running) -> None:
    opened(tab, tasks, "several")
    tab.click("#texts")
    tab.type("so glad")
    tab.click("#go")
    tab.until(f"{IDLE} && document.querySelector('.panel')")
    body = {"texts": "so glad", "adapters": "several"}
    (answer,) = httpx.post(f"{tasks.url}/v1/predict", json=body).json()["predictions"][0]["answers"]
    assert texts_of(tab, ".verdict") == [", ".join(answer["labels"]) or "no label"]
    assert sorted(texts_of(tab, ".best th")) == sorted(answer["labels"])
    titles = tab.evaluate("[...document.querySelectorAll('.limit')].map(each => each.title)")
    assert sorted(titles) == [f"threshold {100 * each:.1f}\u00a0%" for each in THRESHOLDS]


def test_who_abstains_gives_no_label(tab: Browser, tasks: Running) -> None:
    opened(tab, tasks, "r4")
    tab.evaluate("document.querySelector('#abstain').value = '1'")
    tab.click("#samples button")
    tab.until(f"{IDLE} && document.querySelector('.panel')")
    assert texts_of(tab, ".verdict")[0].startswith("no label (") and texts_of(tab, ".best") == []


def test_pairs_are_typed_or_dropped(tab: Browser, tasks: Running, tmp_path: Path) -> None:
    opened(tab, tasks, "pairs", "twin")
    assert texts_of(tab, "#texts-name, #second-name") == ["premise", "hypothesis"]
    tab.click("#texts")
    tab.type("so glad\nvery merry")
    tab.click("#second")
    tab.type("so sad")
    tab.click("#go")
    assert texts_of(tab, "#problem")[0].startswith("Row 2 has only one text of its pair.")
    tab.type("\nless so")
    tab.press("Enter", control=True)
    tab.until(f"{IDLE} && document.querySelectorAll('.list tr.agree').length === 2")
    body = {"texts": [["so glad", "so sad"], ["very merry", "less so"]], "adapters": "pairs"}
    found = httpx.post(f"{tasks.url}/v1/predict", json=body).json()["predictions"]
    cells = texts_of(tab, ".list tbody tr:not([hidden]) td:nth-child(2)")
    assert [cell.split()[0] for cell in cells] == [each["answers"][0]["label"] for each in found]
    tab.click(".list tbody tr .link")
    assert len(texts_of(tab, ".panel")) == 2 and texts_of(tab, ".panel .link") == []  # words of pairs
    source = tmp_path / "pairs.csv"
    source.write_text("Hypothesis,id,Premise\nso sad,1,so glad\n", encoding="utf-8")
    tab.drop(source)
    tab.until("!document.querySelector('#table').hidden")
    chosen = (
        "[...document.querySelectorAll('#table select')].map(each => each.selectedOptions[0].textContent)"
    )
    assert tab.evaluate(chosen) == ["Premise", "Hypothesis"]
    tab.click("#go")
    tab.until(f"{IDLE} && document.querySelector('#output > div > .panels')")
    assert texts_of(tab, ".verdict") == [found[0]["answers"][0]["label"]] * 2
    tick(tab, "pairs", "several")
    tab.click("#go")
    assert texts_of(tab, "#problem")[0].startswith("The chosen adapters do not take the same texts.")
    assert tab.complaints == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_the_page_fits_its_window(page: Browser, server: Running, width: int, dark: bool) -> None:
    page.open(server.url, width, dark=dark)
    page.until("document.querySelector('#adapters input')")
    tick(page, "s1", "s2", "hostile")
    page.click("#texts")
    page.type("so glad\n" + "Donaudampfschifffahrtsgesellschaft" * 9)
    page.click("#go")
    page.until(f"{IDLE} && document.querySelector('.list')")
    page.click(".list tbody tr .link")
    palette = DARK if dark else LIGHT
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == rgb(palette["paper"])
    assert page.evaluate("getComputedStyle(document.body).color") == rgb(palette["ink"])
    heights = page.evaluate("[...document.querySelectorAll('main button')].map(each => each.offsetHeight)")
    assert [height for height in heights if 0 < height < 32] == []  # large enough for a finger


def test_a_token_is_asked_for(tab: Browser, folder: Path) -> None:
    with running(folder / "s1", "--precision", "float32", token=TOKEN) as server:
        tab.open(server.url)
        tab.until("!document.querySelector('#auth').hidden")
        assert texts_of(tab, "#about") == ["This server needs a token."]
        tab.click("#token")
        tab.type(TOKEN)
        tab.press("Enter")
        tab.until("document.querySelector('#adapters input')")
        tab.click("#samples button")
        tab.until("document.querySelector('.verdict')")
        assert texts_of(tab, ".verdict")[0] in LETTERS


def test_the_page_of_the_api_is_rendered(tab: Browser, server: Running) -> None:
    for width in (375, 1280):
        tab.open(f"{server.url}/docs", width)
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("getComputedStyle(document.querySelector('h2')).borderTopStyle") == "solid"
        assert tab.complaints == []
        assert all(url.startswith((server.url, "data:")) for url in tab.requested)
