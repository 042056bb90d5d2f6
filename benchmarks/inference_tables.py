"""Tables and plot of the measurements of `inference.py`."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt

matplotlib.use("Agg")
TITLES = {
    "forward": "Forward pass",
    "loading": "Loading a backbone with a new head",
    "memory": "Peak memory of a process",
    "video": "480p video to masks",
    "folder": "Folder of JPEG files to embeddings",
    "processes": "Processes and number of frames",
}
COLUMNS = "| candidate | p50 ms | p95 ms | p99 ms | images/s | speed |"


def write_tables(record: dict, output_dir: Path) -> None:
    """Write results.md and results.png for a record with the keys machine, arguments, and rows."""
    lines = ["# Prediction", "", ", ".join(f"{name} {value}" for name, value in record["machine"].items()), ""]
    for part, rows in groupby(record["rows"], lambda row: row["part"]):
        lines += [f"## {TITLES[part]}", ""]
        for title, group in groupby(rows, describe):
            lines += [*([title, ""] if title else []), *table(list(group)), ""]
    (output_dir / "results.md").write_text("\n".join(lines))
    if any(row["part"] == "forward" for row in record["rows"]):
        plot([row for row in record["rows"] if row["part"] == "forward"], output_dir / "results.png")


def describe(row: dict) -> str:
    """Return the title of the table of a row."""
    parts = [row.get("task"), row.get("size"), f"batch {row['batch']}" if "batch" in row else None]
    return ", ".join(part for part in parts if part)


def table(rows: list[dict]) -> Iterable[str]:
    """Yield the lines of a table."""
    if "mib" in rows[0]:
        yield "| candidate | MiB |"
        yield "|---|---|"
        yield from (f"| {row['candidate']} | {row['mib']:.0f} |" for row in rows)
        return
    has_agreement = "agreement" in rows[0]
    yield COLUMNS + " agreement |" * has_agreement
    yield "|---" * (6 + has_agreement) + "|"
    for row in rows:
        cells = [row["candidate"], *(f"{row[name]:.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))]
        cells += [
            f"{row['images_per_second']:.1f}",
            f"{row['speed']:.2f} ({row['speed_low']:.2f} to {row['speed_high']:.2f})",
        ]
        if has_agreement:
            cells.append("" if row["agreement"] is None else f"{100 * row['agreement']:.2f} %")
        yield f"| {' | '.join(cells)} |"


def plot(rows: list[dict], path: Path) -> None:
    """Draw images per second over the batch size, a panel for each task and size."""
    tasks, sizes = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "size"))
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    figure, axes = plt.subplots(
        len(tasks), len(sizes), figsize=(4 * len(sizes), 3.2 * len(tasks)), squeeze=False, layout="constrained"
    )
    colors = plt.get_cmap("tab20").colors
    for row_axes, task in zip(axes, tasks, strict=True):
        for axis, size in zip(row_axes, sizes, strict=True):
            for name in names:
                found = [row for row in rows if (row["task"], row["size"], row["candidate"]) == (task, size, name)]
                if found:
                    style = "o-" if name.startswith("ours") else "s--"
                    batches, speeds = [row["batch"] for row in found], [row["images_per_second"] for row in found]
                    axis.plot(batches, speeds, style, label=name, color=colors[names.index(name) % 20])
            axis.set(title=f"{task}, {size}", xlabel="batch size", ylabel="images per second", xscale="log")
            axis.set_ylim(bottom=0)
            ticks = sorted({row["batch"] for row in rows})
            axis.set_xticks(ticks, map(str, ticks))
            axis.minorticks_off()
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)
