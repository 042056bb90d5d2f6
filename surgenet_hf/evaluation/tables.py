"""Markdown and LaTeX tables of comparisons."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from .compare import Column, Comparison, Pair, Score
from .statistics import CAUTION_BELOW, MIN_VIDEOS, ROUGH_BELOW, interval_warning

TABLE_NOTES = f"""\
Each cell contains the mean over runs. For several runs, it also contains ± the standard deviation and the number of
runs. The [95 % confidence interval] over videos and n, the number of videos, follow. The values of each video are
averaged over runs first, so the interval does not include the variation between runs. A video without a value in some
of the runs counts in the mean, but not in the interval, n, and tests. Bold: the best mean, even if the
differences are not significant. ↑: higher is better. ↓: lower is better. -: no value.

No interval is given below {MIN_VIDEOS} videos, or if the files do not contain enough values to compute one.
Below {ROUGH_BELOW} videos, an interval is rough. Read it with caution below {CAUTION_BELOW} videos (few videos)."""
PAIRED_NOTES = """\
A - B is the mean difference over n videos, after averaging the runs of each model. p: two-sided paired sign-flip
permutation test over videos. p (Holm): p adjusted for the number of model pairs with the same dataset and metric. A
difference is significant if p (Holm) is at most 0.05. With few videos and many pairs, no difference can be
significant, and the verdict is "cannot be significant". This is no evidence that the models are equally good. The
footnotes of the first table also apply here. A difference on videos that were used to train or select a model is no
evidence for other videos.

A metric that pools the frames of all videos, such as mAP, is not a mean over videos. It has no values per video that
could be tested. Instead, its difference has a paired bootstrap [95 % interval] over videos if the files contain
bootstrap draws."""


def markdown_table(comparison: Comparison, with_notes: bool = True) -> str:
    """Format one row per model and one column per dataset and metric, with footnotes and notes on the data.

    Args:
        comparison: comparison.
        with_notes: whether `TABLE_NOTES`, which explain the cells, follow the table.
    """
    footnotes: dict[str, int] = {}
    header, cells = ["model"], {model: [model] for model in comparison.models}
    for column in comparison.columns:
        arrow = "↑" if column.higher_is_better else "↓"
        header.append(f"{column.data}, {column.split}<br>{column.title}, {column.unit} {arrow}")
        column_scores = {model: comparison.scores.get((model, column)) for model in comparison.models}
        means = [score.mean for score in column_scores.values() if score is not None]
        best = (max if column.higher_is_better else min)(means) if len(means) > 1 else None
        for model, score in column_scores.items():
            if score is None:
                cells[model].append("-")
                continue
            texts = comparison.cautions[model, column.task, column.data, column.split]
            marks = ", ".join(str(footnotes.setdefault(text, len(footnotes) + 1)) for text in texts)
            cells[model].append(_cell(score, column, score.mean == best) + f"<sup>{marks}</sup>" * bool(marks))
    lines = [_row(header), _row(["---"] * len(header)), *(_row(row) for row in cells.values()), ""]
    lines += [TABLE_NOTES] * with_notes
    if comparison.left_out:
        lines.append(f"\nModels without a value in any column: {', '.join(comparison.left_out)}.")
    lines += [f"\n<sup>{number}</sup> {text.rstrip('.')}." for text, number in footnotes.items()]
    lines.append("\nData\n")
    for (task, data, split), notes in comparison.notes.items():
        lines.append(f"- {data}, {split} ({task}): {'; '.join(note.rstrip('.') for note in notes)}.")
    return "\n".join(lines) + "\n"


def latex_table(comparison: Comparison) -> str:
    """Format one row per model and one column per dataset and metric, as a `tabular` for the package booktabs."""
    header = []
    for column in comparison.columns:
        arrow = r"$\uparrow$" if column.higher_is_better else r"$\downarrow$"
        first, second = _latex(f"{column.data}, {column.split}"), _latex(f"{column.title}, {column.unit}")
        header.append(rf"\shortstack{{{first} \\ {second} {arrow}}}")
    ranks = comparison.ranks()
    best = (ranks == np.nanmin(ranks, axis=0)) & (len(comparison.models) > 1)
    lines = [rf"\begin{{tabular}}{{l{'r' * len(header)}}}", r"\toprule", _latex_row(["model", *header]), r"\midrule"]
    for model, bold in zip(comparison.models, best, strict=True):
        cells = [_latex(model)]
        for column, is_best in zip(comparison.columns, bold, strict=True):
            score = comparison.scores.get((model, column))
            cells.append("--" if score is None else _latex_cell(score, column, bool(is_best)))
        lines.append(_latex_row(cells))
    lines += [r"\bottomrule", r"\end{tabular}"]
    notes = [
        "Mean over runs, standard deviation over runs, [95 % interval over videos]. Bold: the best mean.",
        *dict.fromkeys(text for texts in comparison.cautions.values() for text in texts),
    ]
    return "\n".join([*lines, *(f"% {note}" for note in notes)]) + "\n"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _latex_cell(score: Score, column: Column, bold: bool) -> str:
    text = rf"\textbf{{{column.text(score.mean)}}}" if bold else column.text(score.mean)
    if len(score.values) > 1:
        text += rf" $\pm$ {column.text(score.sd)}"
    if score.interval is not None:
        text += " [{}, {}]".format(*map(column.text, score.interval))
    return text


def paired_table(pairs: Iterable[Pair], with_notes: bool = True) -> str:
    """Format one row per pair of models and column, with difference, number of videos, p-values, and verdict.

    Args:
        pairs: pairs of models.
        with_notes: whether `PAIRED_NOTES`, which explain the columns, follow the table.
    """
    header = ["dataset and metric", "A", "B", "A - B", "n", "p", "p (Holm)", "verdict"]
    lines = [_row(header), _row(["---"] * len(header))]
    for pair in pairs:
        column = pair.column
        difference = column.text(pair.difference, "+")
        if pair.interval:
            difference += f" [{column.text(pair.interval[0], '+')}, {column.text(pair.interval[1], '+')}]"
        p_values = (_p_text(pair.test.p), _p_text(pair.adjusted_p)) if pair.test else ("-", "-")
        models = (pair.first, pair.second)
        lines.append(
            _row([f"{column}, {column.unit}", *models, difference, str(pair.videos), *p_values, pair.verdict])
        )
    lines += [f"\n{PAIRED_NOTES}"] * with_notes
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(score: Score, column: Column, bold: bool) -> str:
    text = f"**{column.text(score.mean)}**" if bold else column.text(score.mean)
    if len(score.values) > 1:
        text += f" ± {column.text(score.sd)} ({len(score.values)} runs)"
    if score.interval is None:
        return f"{text} n = {score.videos}"
    low, high = map(column.text, score.interval)
    return ", ".join(filter(None, (f"{text} [{low}, {high}] n = {score.videos}", interval_warning(score.videos))))


def _p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
