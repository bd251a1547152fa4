"""A document as a list of blocks, rendered as Markdown or as one HTML page that refers to nothing outside itself."""

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """The first one of a document is its title."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The first column is words, the others are numbers."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Code:
    """Lines as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """A PNG; in Markdown the file `name`.png beside the document."""

    name: str
    png: bytes
    caption: str


Block = Heading | Paragraph | Bullets | Table | Code | Picture


def markdown(blocks: Sequence[Block]) -> str:
    """The blocks as Markdown; pictures are files beside it."""
    return "\n\n".join(_as_markdown(block, first=i == 0) for i, block in enumerate(blocks)) + "\n"


def _as_markdown(block: Block, first: bool) -> str:
    match block:
        case Heading(text):
            return f"{'#' if first else '##'} {text}"
        case Paragraph(text):
            return text
        case Bullets(items):
            return "\n".join(f"- {item}" for item in items)
        case Code(lines):
            return "\n".join(["```", *lines, "```"])
        case Picture(name, _, caption):
            return f"![{caption}]({name}.png)\n\n*{caption}*"
        case Table(header, rows):
            rule = ("---", *("---:" for _ in header[1:]))
            return "\n".join(
                "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)
            )


def page(blocks: Sequence[Block]) -> str:
    """The blocks as one HTML file that refers to nothing outside itself."""
    body = "\n".join(_as_html(block, first=i == 0) for i, block in enumerate(blocks))
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    return _PAGE.format(title=html.escape(title), body=body)


def _as_html(block: Block, first: bool) -> str:
    match block:
        case Heading(text):
            level = "h1" if first else "h2"
            return f"<{level}>{html.escape(text)}</{level}>"
        case Paragraph(text):
            return f"<p>{html.escape(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"
        case Code(lines):
            return "<pre>" + html.escape("\n".join(lines)) + "</pre>"
        case Picture(_, png, caption):
            source = base64.b64encode(png).decode()
            text = html.escape(caption)
            return f'<figure><img alt="{text}" src="data:image/png;base64,{source}"><figcaption>{text}</figcaption></figure>'
        case Table(header, rows):
            cells = [("th", header), *(("td", row) for row in rows)]
            rendered = ["<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>" for tag, row in cells]
            return '<div class="wide"><table>' + "\n".join(rendered) + "</table></div>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #111 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; white-space: nowrap }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
figure {{ margin: 1rem 0 }}
figcaption {{ color: #444; font-size: 13px }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: 12px }}
</style></head>
<body>
{body}
</body></html>
"""
