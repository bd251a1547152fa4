"""The report says what the numbers say, in each of its files."""

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from comparison import report, results
from comparison.plan import Failure, Settings
from comparison.record import read
from comparison.report import Bullets, Code, Heading, Paragraph, Picture, Table, markdown, page
from comparison.results import Results


def test_report_of_a_sweep(make_run: Any, tmp_path: Path) -> None:
    losses = {("gelu", 1): 1.50, ("gelu", 2): 1.53, ("gelu", 3): 1.49, ("relu", 1): 1.51, ("relu", 2): 1.52, ("relu", 3): 1.50}
    losses |= {
        ("hermite:degree=3", seed): loss - 0.03 - 0.001 * seed for (spec, seed), loss in losses.items() if spec == "gelu"
    }
    settings = Settings(
        commands=("python compare.py config/tiny.py --seeds 3",),
        failures=(Failure("silu", "silu-seed=1", "exit code 1: NaN"), Failure("relu", "relu-seed=4", "exit code 1: NaN")),
    )
    found = Results(settings, tuple(read(make_run(spec, seed, loss)) for (spec, seed), loss in losses.items()))
    report.write(tmp_path / "out", found)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "hermite:degree=3 against gelu: -3.15 % perplexity (95 % over 3 seeds: -3.39 % to -2.91 %, p = 0.0007; " in text
    assert re.search(r"relu against gelu: .*no difference shown", text)
    assert "| gelu | 0.002 | 3 | 1.5067 ± 0.0208 | 4.512 | 2.1737 | – | – | – | baseline |" in text
    assert "Failed: silu-seed=1: exit code 1: NaN" in text
    assert "| silu | – | 0, 1 failed | – | – | – | – | – | – | failed: exit code 1: NaN |" in text
    assert "| relu | 0.002 | 3, 1 failed |" in text
    assert "python compare.py config/tiny.py --seeds 3" in text
    assert "corpus_sha256 c0" in text
    for name in re.findall(r"\]\((\w+\.png)\)", text):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    values = json.loads((tmp_path / "out" / "results.json").read_text())
    assert values["summary"]["contrasts"][0]["verdict"] == "no difference shown"


def test_many_contrasts_are_told_by_verdict(make_run: Any, tmp_path: Path) -> None:
    specs = ("gelu", *(f"hermite:degree={n}" for n in range(1, 9)))
    losses = {(spec, seed): 1.5 - 0.05 * (i > 0) + 0.001 * seed * i for i, spec in enumerate(specs) for seed in (1, 2, 3)}
    found = Results(
        Settings(activations=specs), tuple(read(make_run(spec, seed, loss)) for (spec, seed), loss in losses.items())
    )
    summary = report.write(tmp_path, found)
    paragraph = report.abstract(found, summary)
    assert len(summary.contrasts) == 15
    for contrast in summary.contrasts:
        assert re.search(rf"{contrast.verdict}: [^;]*{contrast.arm} [+-]", paragraph)
    assert "Perplexity against gelu, 95 % intervals: " in paragraph
    assert "Perplexity against hermite:degree=1, 95 % intervals: " in paragraph
    assert "Holm-corrected for the number of comparisons (8 about activation, 7 about hermite)" in paragraph


def test_a_report_can_be_made_again_from_results_alone(make_run: Any, tmp_path: Path) -> None:
    records = tuple(read(make_run(spec, seed, 1.5 + 0.01 * seed)) for spec in ("gelu", "relu") for seed in (1, 2))
    report.write(tmp_path / "a", Results(Settings(), records))
    report.write(tmp_path / "b", results.gather([tmp_path / "a"]))
    assert (tmp_path / "a" / "report.md").read_text() == (tmp_path / "b" / "report.md").read_text()


def test_every_commit_and_machine_is_named_with_its_seeds(make_run: Any, tmp_path: Path) -> None:
    origins = {1: ("abc", "Zen 3"), 2: ("def", "Zen 4"), 3: ("def", "Zen 4")}
    records = tuple(
        read(make_run(spec, seed, 1.5, run={"commit": commit, "hardware": {"device": device}}))
        for seed, (commit, device) in origins.items()
        for spec in ("gelu", "relu")
    )
    report.write(tmp_path, Results(Settings(), records))
    text = (tmp_path / "report.md").read_text()
    assert "- Runs: 2 with seeds 1 from commit abc, device Zen 3.\n" in text
    assert "- Runs: 4 with seeds 2, 3 from commit def, device Zen 4.\n" in text


def test_rates_are_explained(make_run: Any, tmp_path: Path) -> None:
    records = tuple(
        read(make_run("gelu", seed, 1.5 + rate, learning_rate=rate)) for seed in (1, 2) for rate in (1e-3, 2e-3, 4e-3)
    )
    report.write(tmp_path, Results(Settings(rates=(1e-3, 2e-3, 4e-3), rate_seeds=(1, 2)), records))
    text = (tmp_path / "report.md").read_text()
    assert "its own best learning rate of 0.001, 0.002, 0.004" in text
    assert "edge of its grid" in text


def test_unfair_runs_leave_nothing_behind(make_run: Any, tmp_path: Path) -> None:
    records = (read(make_run("gelu", 1, 1.5)), read(make_run("relu", 1, 1.5, n_layer=2)))
    with pytest.raises(ValueError, match="differ in n_layer"):
        report.write(tmp_path / "out", Results(Settings(), records))
    assert not (tmp_path / "out").exists()


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
