"""Results of all cells of a protocol as one table, and their comparison."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..atomic import atomic_write
from ..errors import UserError
from ..evaluation.compare import Comparison, compare
from ..evaluation.results import interval_bounds, read_results_file
from .cells import Cell, cell_definition, cell_folder, cell_state, fingerprint
from .definition import Protocol
from .run_cell import RESULTS

SCHEMA = pa.schema(
    [
        ("protocol", pa.string()),
        ("fingerprint", pa.string()),
        ("model", pa.string()),
        ("dataset", pa.string()),
        ("split_protocol", pa.string()),
        ("split", pa.string()),
        ("task", pa.string()),
        ("mode", pa.string()),
        ("fraction", pa.float64()),
        ("seed", pa.int64()),
        ("video", pa.string()),
        ("class", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("leakage", pa.string()),
    ]
)


def read_cells(cells: Sequence[Cell], output_dir: Path) -> dict[Path, tuple[Cell, dict]]:
    """Return the cells that are done, and their results, by the path of the results file."""
    found = {}
    for cell in cells:
        if cell_state(output_dir, cell) == "done":
            path = cell_folder(output_dir, cell) / RESULTS
            found[path] = (cell, read_results_file(path))
    return found


def check_training_data(found: dict[Path, tuple[Cell, dict]]) -> None:
    """Check that the cells of a dataset, fraction, and seed had the same training videos and frames.

    Raises:
        UserError: they differ, for example because the dataset was changed between two runs of the protocol.
    """
    first: dict[tuple, tuple[Path, dict]] = {}
    for path, (cell, results) in found.items():
        training = results.get("training") or {}
        data = {name: training.get(name) for name in ("train_videos", "train_frames", "train_video_names")}
        seed = cell.seed if cell.fraction < 1 else None  # the seed chooses the videos of a fraction
        key = (cell.dataset.name, cell.dataset.split_protocol, cell.fraction, seed)
        other, expected = first.setdefault(key, (path, data))
        if data != expected:
            counts = [f"{each['train_videos']} videos and {each['train_frames']} frames" for each in (expected, data)]
            names = ", with other videos" if counts[0] == counts[1] else ""
            raise UserError(
                f"{other} and {path} were trained on different data: {counts[0]} against {counts[1]}{names}. Restore "
                "the dataset, and delete the folders of the cells with the other data to compute them again"
            )


def rows_of(protocol: Protocol, cell: Cell, results: dict) -> Iterator[dict]:
    """Yield the rows of a cell: a row per metric, and one per metric and video, for all classes and for each class.

    The columns `video` and `class` are None for metrics over all videos and over all classes. Only metrics over both
    have intervals.
    """
    data = results["data"]
    common = {
        "protocol": protocol.name,
        "fingerprint": fingerprint(cell_definition(cell, protocol)),
        "model": cell.model.name,
        "dataset": data["name"],
        "split_protocol": data.get("split_protocol"),
        "split": data["split"],
        "task": results["task"],
        "mode": cell.mode,
        "fraction": cell.fraction,
        "seed": cell.seed,
        "leakage": data.get("leakage"),
    }
    tables = [(None, results["metrics"]), *sorted((results.get("per_video") or {}).items())]
    for video, table in tables:
        for label, values in ((None, table), *(table.get("per_class") or {}).items()):
            for metric, value in values.items():
                if not (isinstance(value, int | float) or value is None):  # per_class, and lists of counts
                    continue
                low, high = interval_bounds(results, metric) if (video, label) == (None, None) else (None, None)
                row = {"video": video, "class": label, "metric": metric, "value": value, "low": low, "high": high}
                yield {**common, **row}


def write_table(protocol: Protocol, found: dict[Path, tuple[Cell, dict]], path: Path) -> int:
    """Write the rows of all cells to a Parquet file, in the order of the protocol. Returns the number of rows."""
    rows = [row for cell, results in found.values() for row in rows_of(protocol, cell, results)]
    with atomic_write(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), temporary)
    return len(rows)


def compare_cells(protocol: Protocol, found: dict[Path, tuple[Cell, dict]]) -> Iterator[tuple[str, float, Comparison]]:
    """Yield the comparison of the models for each mode and fraction that has results."""
    for mode in protocol.modes:
        for fraction in protocol.fractions:
            chosen = {
                path: (cell, results)
                for path, (cell, results) in found.items()
                if cell.mode == mode and cell.fraction == fraction
            }
            if not chosen:
                continue
            labels = {path: cell.model.name for path, (cell, _) in chosen.items()}
            yield mode, fraction, compare({path: _with_suffix(*each) for path, each in chosen.items()}, labels)


def _with_suffix(cell: Cell, results: dict) -> dict:
    """Return results whose dataset is called "NAME (SPLIT PROTOCOL)" if the protocol states the split protocol."""
    data = results["data"]
    return {**results, "data": {**data, "name": data["name"] + cell.dataset.suffix}}
