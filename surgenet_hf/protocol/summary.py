"""Report of a protocol: one table of all numbers, tables of the comparisons, and figures."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..atomic import atomic_write
from ..errors import UserError
from ..evaluation.tables import PAIRED_NOTES, TABLE_NOTES, latex_table, markdown_table, paired_table
from .cells import cell_state, cells_of
from .collect import check_training_data, compare_cells, read_cells, write_table
from .definition import Protocol
from .storage import check_cells

FOLDER = "report"
MODE_TITLES = {
    "finetuned": "fine-tuned",
    "linear": "frozen with a linear head",
    "knn": "frozen, k-NN",
}


@dataclass
class Report:
    """Written report: its text, its files, and what was omitted and why."""

    text: str = ""
    files: list[Path] = field(default_factory=list)
    omitted: list[str] = field(default_factory=list)


def write_report(protocol: Protocol, output_dir: Path, draw: Callable) -> Report:
    """Write results.parquet, report.md, and for each mode and fraction a LaTeX table and the charts of ranks.

    The folder of tables and charts is replaced.

    Args:
        protocol: protocol of the folder.
        output_dir: output folder of `surgenet protocol run`.
        draw: function that draws the charts of a comparison to a folder, and returns files and omissions.

    Raises:
        UserError: no cell is done, or a cell has another definition than in the protocol.
    """
    cells = list(cells_of(protocol))
    done = [cell for cell in cells if cell_state(output_dir, cell) == "done"]
    check_cells(done, protocol, output_dir, with_weights=False)  # the weights can be on another machine
    found = read_cells(cells, output_dir)
    if not found:
        raise UserError(f"{output_dir} has no finished cell; run `surgenet protocol run` first")
    check_training_data(found)
    comparisons = list(compare_cells(protocol, found))
    if (output_dir / FOLDER).exists():  # tables and figures of an earlier report, perhaps of other cells
        shutil.rmtree(output_dir / FOLDER)
    report = Report(files=[output_dir / "results.parquet", output_dir / "report.md"])
    write_table(protocol, found, report.files[0])
    sections = [f"# Protocol {protocol.name}", protocol.description.strip(), f"{len(found)} of {len(cells)} cells."]
    if missing := [cell.name for cell in cells if cell not in [each for each, _ in found.values()]]:
        sections.append("Without results: " + ", ".join(missing) + ".")
    for mode, fraction, comparison in comparisons:
        title = f"{MODE_TITLES[mode]}, {100 * fraction:g} % of the training videos"
        folder = output_dir / FOLDER / f"{mode}-{100 * fraction:g}"
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "table.tex"
        with atomic_write(table) as temporary:
            Path(temporary).write_text(latex_table(comparison), encoding="utf-8")
        charts, omitted = draw(comparison, folder)
        report.files += [table, *charts]
        report.omitted += [f"{title}: {reason}" for reason in omitted]
        sections += [f"## {title[0].upper()}{title[1:]}", markdown_table(comparison, with_notes=False)]
        sections += [f"![{path.stem}]({FOLDER}/{folder.name}/{path.name})" for path in charts if path.suffix == ".png"]
        sections += [f"Omitted: {reason}." for reason in omitted]
        if pairs := comparison.pairs():
            sections += ["### Pairs", paired_table(pairs, with_notes=False)]
    sections += ["## How to read the tables", TABLE_NOTES, PAIRED_NOTES]
    report.text = "\n\n".join(section for section in sections if section) + "\n"
    with atomic_write(report.files[1]) as temporary:
        Path(temporary).write_text(report.text, encoding="utf-8")
    return report
