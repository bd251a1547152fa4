"""The report of a comparison: report.md and report.html, with pictures (PNG, SVG) and tables (CSV, LaTeX) beside them."""

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import document, plots, results
from comparison.document import UNKNOWN, Block, Bullets, Code, Heading, Paragraph, Picture, Table
from comparison.judge import Arm, Contrast, Summary, TaskResult, documents_of, summarise, task_results, to_json
from comparison.plan import Failure, Settings, short
from comparison.record import Record
from comparison.results import Results
from comparison.statistics import Interval, percent
from data.files import write_json

_PARAGRAPH = 2  # contrasts that get a sentence each; more of them are counted, and the best is named


def write(folder: Path, found: Results) -> Summary:
    """Write results.json, report.md, report.html (self-contained), pictures and tables into `folder`; returns what they say.

    summary.json has the verdicts and their numbers for machines.

    Raises ValueError where the runs may not be compared, before anything is written.
    """
    summary = summarise(found)
    blocks = compose(found, summary)
    document.write(folder, "report", blocks)
    write_json(folder / "summary.json", to_json(summary))
    results.save(folder / results.FILE, found)
    return summary


def compose(found: Results, summary: Summary) -> list[Block]:
    """What the report says, in order."""
    blocks: list[Block] = [Heading("Comparison of activations"), Paragraph(abstract(found, summary))]
    detailed = summary
    if summary.lengths:
        blocks += [*_against_length(summary, found.settings), Heading("All results")]
        detailed = summary.at(summary.lengths[-1])
    pictures = plots.figures(detailed)
    blocks.append(_result_table(summary, found.settings.failures))
    if found.settings.rates:
        blocks.append(Paragraph(_rates_sentence(found)))
    blocks += [Heading("Differences"), _difference_table(summary), Paragraph(_METHOD)]
    blocks += _of_tasks(detailed)
    blocks += [Heading("Cost"), _cost_table(detailed), Paragraph(_COST_METHOD)]
    for name, (title, caption) in _CAPTIONS.items():
        if name in pictures:
            blocks += [Heading(title), Picture(name, pictures[name], caption)]
    if summary.notes:
        blocks += [Heading("Notes"), Bullets(summary.notes)]
    return [
        *blocks,
        Heading("What varied, commands and versions"),
        Bullets(tuple(_varied(found, summary))),
        Code(_commands(found)),
    ]


def abstract(found: Results, summary: Summary) -> str:
    """The paragraph for a paper: at most five sentences."""
    config, arms, first = found.records[0].config, summary.arms, found.records[0]
    seeds = sorted({record.seed for record in found.records})
    steps = found.settings.lengths or (config["max_steps"],)
    tokens = " / ".join(f"{first.tokens_per_step * number:,}" for number in steps)
    count = len(summary.curves())
    alike = ", within gated and within plain MLPs," if len({record.config["mlp"] for record in found.records}) > 1 else ""
    sentences = [
        f"We trained GPT-2 models ({config['n_layer']} layers, width {config['n_embd']}, context {config['block_size']}) on "
        f"{tokens} tokens of {Path(config['data_dir']).name} with {count} settings of the MLP activation and "
        f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''} each; runs of one seed share their data order and"
        f"{alike} all initial weights outside the activation."
    ]
    reference = next((arm for arm in arms if arm.activation == summary.baseline), arms[0])
    measured = ""
    if first.documents:
        number, largest = documents_of(first)
        unit = "windows" if first.documents_are_windows else "documents"
        targets = sum(first.documents["targets"])
        measured = f", measured on {targets:,.0f} targets in {number} {unit} (the largest: {100 * largest:.0f} %)"
    sentences.append(f"{reference.label} reaches a validation perplexity of {reference.perplexity:.3f}{measured}.")
    if found.settings.lengths:
        return " ".join([*sentences, *_by_length(found, summary)])
    chosen = [c for c in summary.contrasts if c.about == "activation"] or list(summary.contrasts)
    if len(chosen) > _PARAGRAPH:
        verdicts = Counter(contrast.verdict for contrast in chosen)
        against = "each other" if len({contrast.reference for contrast in chosen}) > 1 else reference.label
        counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
        sentences.append(f"Of {len(chosen)} comparisons with {against}: {counts}.")
        chosen = [min(chosen, key=lambda contrast: contrast.interval.mean)]
    sentences += [_sentence(contrast) for contrast in chosen]
    if counts_about := Counter(contrast.about for contrast in summary.contrasts if contrast.p_holm is not None):
        numbers = ", ".join(f"{count} about {about}" for about, count in counts_about.items())
        sentences.append(f"p-values are Holm-corrected for the number of comparisons ({numbers}).")
    return " ".join(sentences)


def _by_length(found: Results, summary: Summary) -> list[str]:
    """How the verdicts are at the shortest and at the longest length."""
    sentences = []
    for number in dict.fromkeys((found.settings.lengths[0], found.settings.lengths[-1])):
        there = [c for c in summary.at(number).contrasts if c.about == "activation"]
        counts = ", ".join(f"{count} {verdict}" for verdict, count in Counter(c.verdict for c in there).most_common())
        if there:
            best = _sentence(min(there, key=lambda contrast: contrast.interval.mean))
            sentences.append(f"After {number:,} steps, of {len(there)} comparisons: {counts}. The lowest: {best}")
    return sentences


def _sentence(contrast: Contrast) -> str:
    what = f"{contrast.arm} against {contrast.reference}"
    change = f"{percent(contrast.interval.mean):+.2f} % perplexity"
    if contrast.interval.low is None:
        over = f" (95 % over documents, one seed: {_limits(contrast.documents)})" if contrast.documents else ""
        return f"{what}: {change}{over}, {contrast.verdict}."
    p = "" if contrast.p_holm is None else f", p = {_p(contrast.p_holm)}"
    text = f"; over seeds and documents: {_limits(contrast.documents)}" if contrast.documents else ""
    seeds = f"95 % over {len(contrast.seeds)} seeds: {_limits(contrast.interval)}{p}"
    return f"{what}: {change} ({seeds}{text}), {contrast.verdict}."


def _result_table(summary: Summary, failures: Sequence[Failure]) -> Table:
    """A row an arm, those without a finished run at the end; the verdict comes first, so that a narrow page shows it."""
    failed = Counter(failure.arm for failure in failures)
    judged = ("verdict", "Δ perplexity", "95 % over seeds", "p (Holm)")
    header = ("activation", *judged, "perplexity", "validation loss", "bits per byte", "learning rate", "seeds")
    rows: list[tuple[str, ...]] = []
    for arm in summary.arms:
        contrast = summary.contrast(arm)
        deviation = "" if arm.deviation is None else f" ± {arm.deviation:.4f}"
        status = "baseline" if arm.activation == summary.baseline else "not compared"
        cells = (
            f"{arm.perplexity:.3f}",
            f"{arm.loss:.4f}{deviation}",
            _number(arm.bits_per_byte, ".4f"),
            f"{arm.rate:g}",
            f"{len(arm.seeds)}, {failed[arm.label]} failed" if failed[arm.label] else str(len(arm.seeds)),
        )
        rows.append((arm.label, *(_contrast_cells(contrast) if contrast else (status, *[UNKNOWN] * 3)), *cells))
    for label in [label for label in failed if label not in {arm.label for arm in summary.arms}]:
        reason = next(failure.reason for failure in failures if failure.arm == label)
        rows.append((label, f"failed: {reason}", *[UNKNOWN] * (len(header) - 3), f"0, {failed[label]} failed"))
    return Table(header, tuple(rows), words=2, name="results")


def _difference_table(summary: Summary) -> Table:
    header = ("comparison", "verdict", "Δ loss", "95 % over seeds", "95 % over seeds and documents", "p (Holm)")
    rows = tuple(
        (
            f"{contrast.arm} − {contrast.reference}",
            contrast.verdict,
            f"{contrast.interval.mean:+.4f}",
            _limits(contrast.interval, in_percent=False),
            _limits(contrast.documents, in_percent=False),
            _p(contrast.p_holm),
        )
        for contrast in summary.contrasts
    )
    return Table(header, rows, words=2, name="differences")


def _cost_table(summary: Summary) -> Table:
    header = (
        "activation",
        "parameters",
        "of them activation",
        "tokens/s",
        "ms per step",
        "peak memory",
        "tokens to baseline's loss",
        "step time to it",
    )
    rows = []
    for arm in summary.arms:
        contrast = summary.contrast(arm)
        memory = arm.mean("peak_memory_bytes")
        rows.append(
            (
                arm.label,
                f"{arm.records[0].parameters:,}",
                f"{arm.records[0].activation_parameters:,}",
                _number(arm.mean("tokens_per_second"), ",.0f"),
                _number(arm.mean("ms_per_step"), ".1f"),
                UNKNOWN if memory is None else f"{memory / 2**20:,.0f} MiB",
                *(
                    (
                        _reached(contrast, contrast.tokens_ratio),
                        _reached(contrast, contrast.seconds_ratio, unknown="not recorded"),
                    )
                    if contrast
                    else (UNKNOWN, UNKNOWN)
                ),
            )
        )
    return Table(header, tuple(rows), name="costs")


def _against_length(summary: Summary, settings: Settings) -> list[Block]:
    """What the verdict is at each length, and the curve."""
    rate = "Each arm has its best learning rate at each length. " if settings.rates else ""
    found: list[Block] = [Heading("Difference against length"), _length_table(summary), Paragraph(_LENGTH_METHOD.format(rate))]
    if any(summary.contrast(arm) for arm in summary.arms):
        found.append(Picture("lengths", plots.lengths(summary), _LENGTH_CAPTION))
    return found


def _length_table(summary: Summary) -> Table:
    """A row an arm and length, so that a narrow screen shows the longest runs too: the difference stands in column two."""
    rows = []
    for name, arms in summary.curves().items():
        for arm in sorted(arms, key=lambda arm: arm.length or 0):
            steps, first = arm.length or 0, arm.records[0]
            tokens = steps * first.tokens_per_step
            numbers = (f"{steps:,}", f"{tokens / 1e6:.3g}M", f"{tokens / first.parameters:.2g}")
            rows.append((name, _length_cell(summary, arm), *numbers))
    return Table(("activation", "perplexity", "steps", "tokens", "a parameter"), tuple(rows), words=2, name="lengths")


def _length_cell(summary: Summary, arm: Arm) -> str:
    contrast = summary.contrast(arm)
    if not contrast:
        return f"baseline, perplexity {arm.perplexity:.3f}" if arm.activation == summary.baseline else "not compared"
    return f"{contrast.verdict}: {document.change(contrast.interval.mean, contrast.shown)}"


def _of_tasks(summary: Summary) -> list[Block]:
    """The section of tasks; empty where no run has scores."""
    scored = task_results(summary)
    if not scored:
        return []
    header = ("task", "activation", "verdict", "metric", "value", "Δ", "95 % over items and seeds", "items", "seeds")
    rows = []
    for result in scored:
        change, limits = _task_change(result)
        counts = (f"{result.items:,}", str(result.seeds))
        rows.append((result.task, result.arm, result.verdict, result.metric, f"{result.value:.4f}", change, limits, *counts))
    method = Paragraph(f"{_items_of(summary)} {_TASK_METHOD}")
    return [Heading("Tasks"), Table(header, tuple(rows), words=4, name="tasks"), method]


def _task_change(result: TaskResult) -> tuple[str, str]:
    """The difference and its limits, in points, per cent or bits."""
    found = result.difference
    if found is None:
        return UNKNOWN, UNKNOWN

    def cell(value: float) -> str:
        if result.kind == "mean":
            return f"{100 * value:+.2f}"
        return f"{percent(value):+.2f} %" if result.kind == "perplexity" else f"{value:+.4f}"

    limits = UNKNOWN if found.low is None or found.high is None else f"{cell(found.low)} to {cell(found.high)}"
    return cell(found.mean), limits


def _items_of(summary: Summary) -> str:
    """Where the items come from, and which of them were scored."""
    sentences = []
    for name, of in {n: of for arm in summary.arms for record in arm.records for n, of in record.tasks.items()}.items():
        which = "all" if of.every == 1 else f"one item in {of.every} of each set,"
        sentences.append(f"{name}: {which} {of.items:,} of {of.available:,} items ({of.source}, {of.harness})")
    return "; ".join(sentences) + "."


def _contrast_cells(contrast: Contrast) -> tuple[str, str, str, str]:
    return contrast.verdict, f"{percent(contrast.interval.mean):+.2f} %", _limits(contrast.shown), _p(contrast.p_holm)


def _reached(contrast: Contrast, ratio: float | None, unknown: str = UNKNOWN) -> str:
    if ratio is None:
        return "not reached" if contrast.seeds_reached == 0 else unknown
    missing = (
        "" if contrast.seeds_reached == len(contrast.seeds) else f" ({contrast.seeds_reached} of {len(contrast.seeds)} seeds)"
    )
    return f"{100 * ratio:.0f} %{missing}"


def _rates_sentence(found: Results) -> str:
    grid = ", ".join(f"{rate:g}" for rate in found.settings.rates)
    seeds = found.settings.rate_seeds or sorted({record.seed for record in found.records})
    what = "window of the validation set" if found.records[0].selects_by_window else "validation document"
    return (
        f"Each activation has its own best learning rate of {grid} (min_lr in proportion), by mean loss over seeds "
        f"{', '.join(map(str, seeds))} on every other {what}; losses, perplexities and differences are on the rest, curves and "
        "times on all."
    )


_METHOD = (
    "Differences are paired by seed: with the baseline activation, of further variants of a family with the first one named, "
    "of further values of a varied field with the first one. Intervals over seeds are Student's t at 95 %; p-values are "
    "corrected (Holm) for the number of comparisons about the same: activation, one family, varied fields. They say whether "
    "other seeds would do the same on this text. Intervals over seeds and documents cover other text as well (two-way "
    "clustering, Cameron, Gelbach & Miller 2011); with one seed they cover documents alone. The verdict is the interval's over "
    "seeds; 'on this text' is added where the one over seeds and documents holds zero. No difference is shown where it "
    "holds zero."
)
_COST_METHOD = (
    "Medians over training rows, means over seeds. The last columns: training tokens, and step time, until the validation loss "
    "is at the baseline's final one, as a share of what the baseline took. Step time is the number of steps times the run's "
    "median time of a step: evaluations and pauses of the machine are no cost. Linear interpolation between evaluations, mean "
    "over the seeds that reached it."
)
_LENGTH_CAPTION = (
    "Difference to the baseline of the same length against training tokens, below zero is better; the axis on top counts "
    "tokens a parameter of the baseline. Bands: 95 % over seeds; with one seed bars, over documents. Hollow: the interval "
    "holds zero."
)
_LENGTH_METHOD = (
    "Differences in perplexity to the baseline of the same number of steps, with 95 % intervals over seeds (over documents "
    "where there is one seed). {}p-values are corrected for the comparisons of one length, not for the number of "
    "lengths. Loss curves, costs and shapes below are those of the longest runs."
)
_TASK_METHOD = (
    "Scores are of the last checkpoints, by lm_eval's definitions, in float32. Differences are to the baseline, paired by item "
    "and by seed: percentage points of accuracy, per cent of perplexity, or bits per byte. Their intervals cover other items "
    "and other seeds (two-way clustering, as for documents); with one seed they cover items alone. They are not widened for "
    "the number of comparisons. Accuracies are better where they are higher, perplexities and bits where they are lower."
)
_CAPTIONS = {
    "loss": (
        "Loss curves",
        "Left: validation loss, mean over seeds, band from the lowest to the highest seed. "
        "Right: training loss minus the baseline's on the same batches, running mean; below zero is better.",
    ),
    "differences": (
        "Paired differences",
        "Bars: 95 % interval, dashed where only one seed was run (over documents). Grey marks: single seeds. "
        "Hollow: the interval holds zero. No interval is widened for the number of comparisons; the table's p-values are.",
    ),
    "degrees": ("Degrees", "Mean over seeds and 95 % interval of the paired difference to the baseline."),
    "cost": (
        "Loss against cost",
        "Left: validation loss against training FLOPs (6 N + 12 L C T a token, activations not counted). Middle: against steps "
        "times the median step time. Right: final perplexity against the time of a step; bars: lowest to highest seed.",
    ),
    "rates": (
        "Learning rates",
        "Mean loss by which each arm's learning rate was chosen, against the rate; filled: the chosen one.",
    ),
    "shapes": (
        "Learned shapes",
        "The activation of each layer through training, first seed; light is early, dark is late, dashed is GELU. Grey: the "
        "density of the layer's inputs, or the normal law of their deviation where only that was recorded. Each panel shows "
        "the values where the density is above 0.15 of its highest; layers are counted from 1. At most ten arms are drawn.",
    ),
    "coefficients": (
        "Coefficients",
        "Each coefficient less its first value through training, mean over channels, first seed; from light, the first "
        "coefficient, to dark, the last. At most ten arms are drawn.",
    ),
    "gains": (
        "Gains",
        "Measured on training inputs, first seed. At 1 the activation keeps the second moment of inputs and of gradients. At "
        "most ten arms are drawn.",
    ),
}


def _varied(found: Results, summary: Summary) -> list[str]:
    first = found.records[0]
    lines = [
        "Varied: "
        + ", ".join(["activation", "seed", *found.settings.free])
        + ". All other fields, the bytes fed and the initial weights were checked to be equal."
    ]
    lines.append("Baseline: " + short(summary.baseline) + ".")
    lines.append("Data: " + ", ".join(f"{name} {value}" for name, value in first.data.items()) + ".")
    return lines + _origins(found.records)


def _origins(records: Sequence[Record]) -> list[str]:
    """A line for every commit and machine that runs come from."""
    seeds: dict[str, list[int]] = {}
    for record in records:
        commits = dict.fromkeys(str(launch.get("commit")) for launch in record.launches)
        facts = {"commit": " then ".join(commits)} | (record.provenance.get("hardware") or {})
        seeds.setdefault(", ".join(f"{name} {value}" for name, value in facts.items()), []).append(record.seed)
    return [f"Runs: {len(of)} with seeds {', '.join(map(str, sorted(set(of))))} from {origin}." for origin, of in seeds.items()]


def _commands(found: Results) -> tuple[str, ...]:
    return found.settings.commands + tuple(_command(record) for record in found.records)


def _command(record: Record) -> str:
    command = record.provenance.get("command")
    return shlex.join(["python", *map(str, command)]) if isinstance(command, list) else str(command)


def _limits(interval: Interval | None, in_percent: bool = True) -> str:
    if interval is None or interval.low is None or interval.high is None:
        return UNKNOWN
    if in_percent:
        return f"{percent(interval.low):+.2f} % to {percent(interval.high):+.2f} %"
    return f"{interval.low:+.4f} to {interval.high:+.4f}"


def _p(value: float | None) -> str:
    return UNKNOWN if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _number(value: Any, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
