"""Two renderings of one list of blocks."""

import html.parser
from pathlib import Path

from comparison.document import Bullets, Code, Heading, Paragraph, Picture, Table, markdown, page

BLOCKS = [
    Heading("Title <x>"),
    Paragraph("a & b"),
    Bullets(("one", "two")),
    Table(("name", "number"), (("gelu|relu", "1"), ("<b>", "2"))),
    Picture("loss", b"\x89PNG", 'a "caption"'),
    Heading("Next"),
    Code(("python x < y",)),
]


def test_markdown() -> None:
    text = markdown(BLOCKS)
    assert text.startswith("# Title <x>\n\na & b\n\n- one\n- two\n\n| name | number |\n| --- | ---: |\n| gelu\\|relu | 1 |\n")
    assert '![a "caption"](loss.png)' in text
    assert text.endswith("## Next\n\n```\npython x < y\n```\n")


def test_page_is_well_formed_escaped_and_self_contained(tmp_path: Path) -> None:
    class Checker(html.parser.HTMLParser):
        stack: list[str]
        sources: list[str]

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag not in ("meta", "img"):
                self.stack.append(tag)
            self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    text = page(BLOCKS)
    checker = Checker()
    checker.stack, checker.sources = [], []
    checker.feed(text)
    assert checker.stack == []
    assert checker.sources == ["data:image/png;base64,iVBORw=="]
    assert "<h1>Title &lt;x&gt;</h1>" in text
    assert "<td>&lt;b&gt;</td>" in text
    assert "<title>Title &lt;x&gt;</title>" in text
