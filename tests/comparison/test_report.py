"""The report says what the numbers say, in each of its files."""

import csv
import html.parser
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from comparison import report, results
from comparison.document import Bullets, Code, Heading, Paragraph, Picture, Table, as_latex, markdown, page
from comparison.judge import summarise
from comparison.plan import Failure, Settings
from comparison.plots import Image
from comparison.record import Record, read
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
    assert "| gelu | baseline | – | – | – | 4.512 | 1.5067 ± 0.0208 | 2.1737 | 0.002 | 3 |" in text
    assert "Failed: silu-seed=1: exit code 1: NaN" in text
    assert "| silu | failed: exit code 1: NaN | – | – | – | – | – | – | – | 0, 1 failed |" in text
    assert re.search(r"\n\| relu \| no difference shown \|.*\| 0.002 \| 3, 1 failed \|\n", text)
    assert re.findall(r"^\| ([\w:=]+) \|", text.split("## Differences")[0], re.M)[1:] == [
        "gelu",
        "hermite:degree=3",
        "relu",
        "silu",
    ]
    assert "python compare.py config/tiny.py --seeds 3" in text
    assert "corpus_sha256 c0" in text
    for name in re.findall(r"\]\((\w+)\.png\)", text):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / "out" / f"{name}.svg").read_text()
    with open(tmp_path / "out" / "results.csv", encoding="utf-8", newline="") as file:
        cells = [tuple(row) for row in csv.reader(file)]
    assert [f"| {' | '.join(row)} |" for row in cells] == [line for line in text.splitlines()[4:10] if "---" not in line]
    assert r"hermite:degree=3 & lower loss & -3.15 \% & -3.39 \% to -2.91 \%" in (tmp_path / "out" / "results.tex").read_text()
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page)
    values = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [c["verdict"] for c in values["contrasts"]] == ["lower loss", "no difference shown"]


@pytest.mark.usefixtures("undrawn")
def test_of_many_contrasts_the_best_is_told_and_all_are_counted(make_run: Any, tmp_path: Path) -> None:
    specs = ("gelu", *(f"hermite:degree={n}" for n in range(1, 9)))
    losses = {(spec, seed): 1.5 - 0.05 * (i > 0) + 0.001 * seed * i for i, spec in enumerate(specs) for seed in (1, 2, 3)}
    found = Results(
        Settings(activations=specs), tuple(read(make_run(spec, seed, loss)) for (spec, seed), loss in losses.items())
    )
    summary = report.write(tmp_path, found)
    paragraph = report.abstract(found, summary)
    assert len(summary.contrasts) == 15
    assert [arm.loss for arm in summary.arms[1:]] == sorted(arm.loss for arm in summary.arms[1:])
    assert "Of 8 comparisons with gelu: 8 lower loss. " in paragraph
    assert f" {summary.arms[1].label} against gelu: -" in paragraph  # the best
    assert len(re.findall(r"\.(?: |$)", paragraph)) == 5
    assert "Holm-corrected for the number of comparisons (8 about activation, 7 about hermite)" in paragraph


@pytest.mark.usefixtures("undrawn")
def test_a_report_can_be_made_again_from_results_alone(make_run: Any, tmp_path: Path) -> None:
    records = tuple(read(make_run(spec, seed, 1.5 + 0.01 * seed)) for spec in ("gelu", "relu") for seed in (1, 2))
    report.write(tmp_path / "a", Results(Settings(), records))
    report.write(tmp_path / "b", results.gather([tmp_path / "a"]))
    assert (tmp_path / "a" / "report.md").read_text() == (tmp_path / "b" / "report.md").read_text()


@pytest.mark.usefixtures("undrawn")
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


@pytest.mark.usefixtures("undrawn")
def test_a_resume_at_another_commit_is_told_where_runs_come_from(make_run: Any, tmp_path: Path) -> None:
    run = {"hardware": {"device": "cpu"}, "resumed": [{"step": 250, "commit": "def"}]}
    report.write(tmp_path, Results(Settings(), tuple(read(make_run("gelu", seed, 1.5, run=run)) for seed in (1, 2))))
    text = (tmp_path / "report.md").read_text()
    assert "- Runs: 2 with seeds 1, 2 from commit abc then def, device cpu.\n" in text
    assert "was resumed: def from step 250." in text


@pytest.mark.usefixtures("undrawn")
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
    Picture("loss", Image(b"\x89PNG", b"<svg/>"), 'a "caption"'),
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
    assert '<td class="words">&lt;b&gt;</td><td>2</td>' in text
    assert "<title>Title &lt;x&gt;</title>" in text


def test_a_table_for_a_paper_has_its_special_characters_escaped() -> None:
    text = as_latex(Table(("a_b", "Δ loss", "p"), (("x & y", "1 ± 2", "< 0.0001"),), words=2))
    assert text.splitlines() == [
        r"\begin{tabular}{llr}", r"\toprule",
        r"a\_b & $\Delta$ loss & p \\", r"\midrule", r"x \& y & 1 $\pm$ 2 & $<$ 0.0001 \\",
        r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip


@pytest.mark.usefixtures("undrawn")
def test_time_to_the_baselines_loss_is_steps_times_the_median_step_time(make_run: Any, tmp_path: Path) -> None:
    def record(spec: str, losses: list[float], ms_per_step: float | None, elapsed: float) -> Record:
        return replace(
            read(make_run(spec, 1, losses[-1])),
            evaluations={"step": [0, 100, 200], "elapsed_s": [0, elapsed, 2 * elapsed], "val_loss": losses},
            ms_per_step=ms_per_step,
            documents={},
        )

    gelu = record("gelu", [5.0, 3.0, 2.0], 40.0, elapsed=1000.0)  # as if its evaluations had taken most of the time
    known, unknown, never = (
        record("relu", [5.0, 3.0, 1.0], 20.0, elapsed=1.0),  # at 2.0 after 150 steps of 20 ms: 3 s of the baseline's 8
        record("silu", [5.0, 3.0, 1.0], None, elapsed=1.0),
        record("relu_squared", [5.0, 3.0, 2.5], 20.0, elapsed=1.0),
    )
    found = {
        c.arm: (c.tokens_ratio, c.seconds_ratio)
        for c in summarise(Results(Settings(), (gelu, known, unknown, never))).contrasts
    }
    assert found == {"relu": (0.75, 0.375), "silu": (0.75, None), "relu_squared": (None, None)}
    report.write(tmp_path, Results(Settings(), (gelu, known, unknown, never)))
    ends = {line[0]: line[-2:] for line in csv.reader((tmp_path / "costs.csv").read_text().splitlines())}
    assert ends["relu"] == ["75 %", "38 %"]
    assert ends["silu"] == ["75 %", "not recorded"]
    assert ends["relu_squared"] == ["not reached", "not reached"]


@pytest.mark.parametrize(
    ("targets", "warning"),
    [
        ([50.0] * 19, "lie in 19 documents, the largest with 5 % of them: too few"),
        ([50.0] * 29 + [400.0], "lie in 30 documents, the largest with 22 % of them: too few"),
        ([50.0] * 29 + [300.0], ""),
        ([128.0] * 29 + [60.0], "The data have no meta.json, so nothing is known of their documents: 30 windows"),
    ],
)
def test_few_documents_a_large_one_and_windows_are_warned_of(make_run: Any, targets: list[float], warning: str) -> None:
    documents = {"nats": [1.5 * count for count in targets], "targets": targets, "bytes": targets}
    records = tuple(replace(read(make_run(spec, 1, 1.5)), documents=documents) for spec in ("gelu", "relu"))
    found = Results(Settings(), records)
    notes = " ".join(summarise(found).notes)
    assert warning in notes
    assert bool(warning) == ("documents" in notes)
    unit = "windows" if "windows" in warning else "documents"
    assert f" in {len(targets)} {unit} (the largest: " in report.abstract(found, summarise(found))
