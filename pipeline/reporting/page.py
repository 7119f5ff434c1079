"""The page around the sections: one file, no script, nothing asked of anybody. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""What a browser may load for the page: what stands in it. Keys and captions are not trusted."""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1b2230; --soft: #5d6778;
  --rule: #e1e5eb; --accent: #3563e9; --fill: #3563e926; --track: #eceff4; --good: #12805c;
  --warn: #a15c00; --bad: #b3261e; --s0: #3563e9; --s1: #e58e26; --s2: #9aa5b8; --s3: #12805c; }
@media (prefers-color-scheme: dark) { :root { --page: #10141b; --card: #181e28; --ink: #e7ebf2;
  --soft: #97a3b6; --rule: #2a3342; --accent: #7ea2ff; --fill: #7ea2ff2e; --track: #232c3a;
  --good: #56c596; --warn: #f0b35a; --bad: #ff8a80; --s0: #7ea2ff; --s1: #f0b35a; --s2: #5b677b;
  --s3: #56c596; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 0 0 2px; } h3 { font-size: 14px; margin: 18px 0 8px; }
p { margin: 0 0 12px; } .soft, .note { color: var(--soft); } .note { font-size: 13px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 20px 22px; margin-top: 18px; }
nav { margin-top: 14px; display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 14px; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.badge { display: inline-block; border-radius: 999px; padding: 1px 10px; font-size: 13px;
  font-weight: 600; border: 1px solid currentColor; vertical-align: 4px; margin-left: 10px; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); }
.alert { border-left: 4px solid var(--warn); background: var(--card); border-radius: 6px;
  padding: 8px 14px; margin-top: 14px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 10px;
  margin-top: 18px; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 12px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 21px; white-space: nowrap; line-height: 1.25; font-weight: 650;
  font-variant-numeric: tabular-nums; } .tile span { color: var(--soft); font-size: 13px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr));
  gap: 0 32px; }
.bars { display: grid; gap: 5px; } .bar { display: grid; align-items: center; gap: 10px;
  grid-template-columns: minmax(72px, 34%) 1fr minmax(64px, auto); font-size: 13px; }
.bar .label { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bar .number { text-align: right; color: var(--soft); font-variant-numeric: tabular-nums; }
.track { background: var(--track); border-radius: 4px; height: 10px; overflow: hidden; }
.track i { display: block; height: 100%; min-width: 1px; background: var(--accent);
  border-radius: 4px; }
svg { display: block; width: 100%; height: auto; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--rule); } .column { fill: var(--accent); } .area { fill: var(--fill); }
.line { fill: none; stroke: var(--accent); stroke-width: 2; }
.break { stroke: var(--soft); stroke-dasharray: 3 4; }
.stack { display: flex; height: 14px; border-radius: 7px; overflow: hidden;
  background: var(--track); } .stack i { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; margin-top: 6px; }
.legend b { display: inline-block; width: 10px; height: 10px; border-radius: 3px;
  margin-right: 6px; } .s0 { background: var(--s0); } .s1 { background: var(--s1); }
.s2 { background: var(--s2); } .s3 { background: var(--s3); }
.strip { margin: 16px 0 0; } .strip img { display: block; width: 100%; border-radius: 4px; }
.strip img + img { margin-top: 3px; }
.strip figcaption, .map figcaption { font-size: 13px; color: var(--soft); margin: 6px 0 0;
  overflow-wrap: anywhere; } figcaption b { color: var(--ink); font-weight: 600; }
.maps, .gallery { display: grid; gap: 16px; margin-top: 12px;
  grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.gallery { grid-template-columns: repeat(auto-fill, minmax(190px, 1fr)); }
figure { margin: 0; } .map img { width: 100%; image-rendering: pixelated; border-radius: 4px; }
.still { height: 128px; background: var(--track); border-radius: 6px; display: flex;
  align-items: center; justify-content: center; overflow: hidden; color: var(--soft);
  font-size: 13px; } .still img { max-width: 100%; max-height: 100%; }
.gallery figcaption { font-size: 13px; margin-top: 6px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; overflow-wrap: anywhere; } tr:last-child > * { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); } td.n, th.n { text-align: right;
  font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: 12.5px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { overflow-x: auto; background: var(--track); border-radius: 8px; padding: 10px 12px;
  font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; max-height: 320px; }
footer { margin-top: 24px; color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { main { padding: 20px 12px 40px; } section { padding: 16px 14px; }
  h1 { font-size: 23px; } .tiles { grid-template-columns: repeat(2, 1fr); } }
@media print { section { break-inside: avoid; } nav { display: none; } }
"""


def page(*, title: str, head: str, sections: Mapping[str, tuple[str, str]], foot: str) -> str:
    """The whole document.

    Args:
        title: of the window; plain text.
        head: markup above the sections.
        sections: id -> heading (plain text) and markup.
        foot: plain text at the end.
    """
    links = "".join(
        f'<a href="#{name}">{escape(heading)}</a>' for name, (heading, _) in sections.items()
    )
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>{markup}</section>'
        for name, (heading, markup) in sections.items()
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
        f"<body><main>{head}<nav>{links}</nav>{body}<footer>{escape(foot)}</footer>"
        "</main></body></html>\n"
    )


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Large numbers with their names, (number, name), as plain text."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(number)}</b><span>{escape(name)}</span></div>'
            for number, name in values
        )
        + "</div>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; columns behind the first whose cells are all numbers stand right."""
    numeric = [
        at > 0 and bool(rows) and all(_is_number(row[at]) for row in rows)
        for at in range(len(rows[0]) if rows else 0)
    ]

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = [' class="n"' if number else "" for number in numeric] or [""] * len(cells)
        inner = (f"<{tag}{k}>{escape(c)}</{tag}>" for k, c in zip(kinds, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    top = line("th", head) if head else ""
    return f'<div class="scroll"><table>{top}{"".join(line("td", r) for r in rows)}</table></div>'


def _is_number(text: str) -> bool:
    return text[:1].isdigit() or text in ("", "-", "∞")


def note(text: str) -> str:
    """A remark in small print; plain text."""
    return f'<p class="note">{escape(text)}</p>'


def alert(text: str) -> str:
    """What must not be overlooked; plain text."""
    return f'<div class="alert warn">{escape(text)}</div>'
