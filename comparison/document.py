"""A document as a list of blocks, rendered as Markdown or as one HTML page that refers to nothing outside itself.

A table is rendered as CSV and as LaTeX too.
"""

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from comparison import plots
from comparison.statistics import Interval, percent
from data.files import write_bytes, write_text

UNKNOWN = "–"  # in the place of a number
_LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%$#_{}"}
    | {"–": "--", "−": "$-$", "Δ": r"$\Delta$", "±": r"$\pm$", "<": "$<$", ">": "$>$", "~": r"\textasciitilde{}"}
    | {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}"}
)


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
    """Its first `words` columns are words, the others numbers; one with a name is a .csv and a .tex file too."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    name: str = ""


@dataclass(frozen=True)
class Code:
    """Lines as they are."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """In Markdown the file `name`.png beside the document."""

    name: str
    image: plots.Image
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
        case Table(header, rows, words):
            rule = ("---",) * words + ("---:",) * (len(header) - words)
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
        case Picture(_, image, caption):
            source = base64.b64encode(image.png).decode()
            text = html.escape(caption)
            width = int.from_bytes(image.png[16:20]) // 2  # of the PNG's header: 200 dots an inch are drawn as 100
            img = f'<img alt="{text}" width="{width}" src="data:image/png;base64,{source}">'
            return f"<figure>{img}<figcaption>{text}</figcaption></figure>"
        case Table(header, rows, words):
            cells = [("th", header), *(("td", row) for row in rows)]
            classes = [' class="words"' if i < words else "" for i in range(len(header))]
            rendered = [
                "".join(f"<{tag}{of}>{html.escape(cell)}</{tag}>" for cell, of in zip(row, classes, strict=True))
                for tag, row in cells
            ]
            return '<div class="wide"><table>' + "\n".join(f"<tr>{line}</tr>" for line in rendered) + "</table></div>"


def as_csv(table: Table) -> str:
    """The cells as they stand in the report; summary.json has the numbers in full."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.header, *table.rows])
    return text.getvalue()


def as_latex(table: Table) -> str:
    """A tabular for a paper that uses booktabs."""
    header, *lines = [" & ".join(cell.translate(_LATEX) for cell in row) + r" \\" for row in (table.header, *table.rows)]
    columns = "l" * table.words + "r" * (len(table.header) - table.words)
    parts = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *lines, r"\bottomrule", r"\end{tabular}"]
    return "\n".join(parts) + "\n"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #111 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: 13px; white-space: nowrap }}
th, td {{ padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top }}
.words {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 7rem; max-width: 16rem }}
@media (max-width: 600px) {{ table {{ font-size: 12px }} th, td {{ padding: .25rem .35rem }} .words {{ max-width: 8.5rem }} }}
img {{ max-width: 100%; height: auto }}
figure {{ margin: 1rem 0 }}
figcaption {{ color: #444; font-size: 13px }}
pre {{ overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: 12px }}
</style></head>
<body>
{body}
</body></html>
"""


def change(difference: float, interval: Interval | None, digits: int = 1) -> str:
    """A difference in nats as a change of perplexity, with the limits of its interval where there are any."""
    if not interval or interval.low is None or interval.high is None:
        return f"{percent(difference):+.2f} %"
    return f"{percent(difference):+.2f} % ({percent(interval.low):+.{digits}f} to {percent(interval.high):+.{digits}f})"


def write(folder: Path, name: str, blocks: Sequence["Block"]) -> None:
    """`name`.md and `name`.html (self-contained) in `folder`, and beside them every picture and table under its own name."""
    folder.mkdir(parents=True, exist_ok=True)
    for block in blocks:
        if isinstance(block, Picture):
            write_bytes(folder / f"{block.name}.png", block.image.png)
            write_bytes(folder / f"{block.name}.svg", block.image.svg)
        elif isinstance(block, Table):
            write_text(folder / f"{block.name}.csv", as_csv(block))
            write_text(folder / f"{block.name}.tex", as_latex(block))
    write_text(folder / f"{name}.md", markdown(blocks))
    write_text(folder / f"{name}.html", page(blocks))
