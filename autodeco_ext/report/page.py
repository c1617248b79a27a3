"""The frame of every page: one file, no outside resources, light and dark, also on a phone."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fdfdfb; --panel: #f4f5f4; --ink: #1d2126; --soft: #5d6670; --rule: #dcdfe2;
  --accent: #b3470b; --cut: #6d4bb8; --good: #19733a;
  --sans: system-ui, -apple-system, "Segoe UI", sans-serif;
  --serif: ui-serif, Charter, "Iowan Old Style", Georgia, "Times New Roman", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --panel: #1d2125; --ink: #e4e6e8; --soft: #9aa3ac; --rule: #343a40;
    --accent: #ff9a52; --cut: #b79cf2; --good: #6fcf8e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.6 var(--serif); }
main { max-width: 46rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1 {
  font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em;
  text-wrap: balance;
}
h2 { font-size: 1.25rem; line-height: 1.3; margin: 3rem 0 .6rem; }
p { margin: .6rem 0; max-width: 40rem; }
figure { margin: 1.2rem 0; }
.lead { font-size: 1.15rem; }
.small, figcaption, .meta { color: var(--soft); font-size: .875rem; line-height: 1.5; }
.small p, figcaption p { margin: .3rem 0; }
.meta, figcaption, table, dl { font-family: var(--sans); }
.scroll { overflow-x: auto; margin: 1rem 0; }
table {
  border-collapse: collapse; width: 100%; font-size: .875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums;
}
th, td {
  text-align: right; white-space: nowrap; padding: .45rem 0 .45rem 1rem;
  border-bottom: 1px solid var(--rule);
}
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tr.ours td { font-weight: 600; color: var(--accent); }
td .interval { display: block; color: var(--soft); font-weight: 400; font-size: .8rem; }
dl {
  display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.2rem;
  font-size: .9rem; line-height: 1.5;
}
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre { font: .85rem/1.5 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere; }
pre { background: var(--panel); padding: .8rem 1rem; border-radius: 6px; }
@media (max-width: 34rem) {
  body { font-size: 16px; }
  main { padding-top: 1.75rem; }
  h1 { font-size: 1.6rem; }
  th, td { padding-left: .7rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .5rem; }
}
"""


def escape(text: object) -> str:
    """Text made safe for element content and quoted attributes."""
    return html.escape(str(text), quote=True)


def page(title: str, body: str, *, styles: Iterable[str] = (), script: str = "") -> str:
    """A complete HTML document around body, which is HTML already; title is plain text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}{''.join(styles)}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n"
        + (f"<script>{script}</script>\n" if script else "")
        + "</body>\n</html>\n"
    )


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], highlighted: int | None = None
) -> str:
    """A table of cells that are HTML already; one row may be highlighted."""
    head = "".join(f"<th>{cell}</th>" for cell in header)
    lines = []
    for index, row in enumerate(rows):
        mark = ' class="ours"' if index == highlighted else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>")
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names and values, both plain text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs) + "</dl>"
