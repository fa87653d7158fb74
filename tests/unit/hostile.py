"""Texts and labels that could be read as markup, formulas, links or control characters."""

from __future__ import annotations

TEXTS = (
    "<script>fetch('https://example.org')</script>",
    "<img src=x onerror=alert(1)>",
    "<svg><style>*{display:none}</style></svg>",
    "</style></title></textarea><h1>x",
    "]]> <!-- --> &lt;b&gt; &amp; {{ 7 * 7 }} {% raw %}",
    "\u202egnirts \u2066iso\u2069 \x1b[31mred\x07",
    '" onmouseover="alert(1)',
    '=HYPERLINK("https://example.org")',
    "a | b `code` [x](https://example.org) $x^2$ ``` ~~~",
    "two\nlines",
    "表情 🙂 עברית",
)
LABELS = ("<b>joy</b>", "</script><script>alert(1)</script>", '"}; --- !!python/object:x')
