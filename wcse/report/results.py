"""A page of results: tiles, figures and tables, without script. What is in them, others say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from wcse.data.tables import clean
from wcse.report.assets import asset, fill, source, template


def page(
    title: str, options: Mapping[str, Any], tiles: Sequence[tuple[str, str, str]], sections: Sequence[str]
) -> bytes:
    """The whole page.

    Args:
        title, options, tiles: plain text, escaped here; a tile is what it shows, the number, and a note.
        sections: made by ``section``.
    """
    style = asset("page.css")
    values = {
        "csp": f"default-src 'none'; style-src {source(style)}",
        "title": escape(title),
        "style": style,
        "facts": facts(options),
        "tiles": "".join(tile(*texts) for texts in tiles),
        "sections": "\n".join(sections),
    }
    return fill(template("{{sections}}"), values).encode()


def facts(options: Mapping[str, Any]) -> str:
    """Options with their values; those that are None are left out."""
    given = ((name, value) for name, value in options.items() if value is not None)
    return "".join(f"<span><i>{escape(name)}</i> {escape(clean(str(value)))}</span>" for name, value in given)


def tile(what: str, number: str, note: str) -> str:
    """One headline number."""
    return (
        f'<div class="tile"><div class="what">{escape(what)}</div><div class="number">{escape(number)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
    )


def section(heading: str, html: str) -> str:
    """A card with a heading; wide content scrolls in it."""
    return f'<section class="card scroll"><h2>{escape(heading)}</h2>{html}</section>'


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of plain text, the first of them the heads."""
    if len(rows) < 2:
        return '<p class="note">nothing to show</p>'
    texts = {column for row in rows[1:] for column, cell in enumerate(row) if cell[:1].isalpha()}

    def line(tag: str, row: Sequence[str]) -> str:
        marked = ((' class="text"' if column in texts else "", cell) for column, cell in enumerate(row))
        return f"<tr>{''.join(f'<{tag}{kind}>{escape(cell)}</{tag}>' for kind, cell in marked)}</tr>"

    body = "".join(line("td", row) for row in rows[1:])
    return f'<table class="results"><thead>{line("th", rows[0])}</thead><tbody>{body}</tbody></table>'
