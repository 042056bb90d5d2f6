"""A figure of some frames of a dataset with their labels, to check the data before training."""

import textwrap

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from ..errors import UserError
from ..figures.overlays import legend_patch, paint, write_ids
from ..rng import rng_for
from .base import SurgicalData

COLUMNS = 4
LARGEST = 800  # pixels: the width that frames are drawn in at most
WIDTH, LINE = 3.6, 0.3  # inches: of a picture, of a line of text


def show(data: SurgicalData, split: str = "train", num_frames: int = 8, seed: int = 0) -> Figure:
    """Draw frames of a split with their labels.

    Segmentation: each frame, and beside it the frame under its mask, with class ids and a legend of the classes that
    occur. Classification: each frame with the name of its class, or with the target of every class.

    The frames are of as many videos as possible; which ones is a function of `seed` and of the videos in the split.
    They are drawn in the order of the data, and all of them where there are no more than `num_frames`.

    Raises:
        UserError: the data has no such split, or `num_frames` is less than one.
    """
    dataset = data.split(split)
    if num_frames < 1:
        raise UserError(f"num_frames={num_frames}: draw at least one frame")
    rows = [dataset[i] for i in choose_frames(dataset, num_frames, seed)]
    title = f"{data.name}, {split}: {len(rows)} of {len(dataset)} frames"
    return (_show_masks if data.task == "semantic-segmentation" else _show_labels)(data, rows, title)


def choose_frames(dataset: Dataset, num_frames: int, seed: int) -> list[int]:
    """Choose indices of frames: in each round, every video gives one random frame, until there are enough."""
    frames: dict[str, list[int]] = {}
    for i, video in enumerate(dataset.select_columns(["video"])[:]["video"]):
        frames.setdefault(video, []).append(i)
    draws = rng_for(seed, 0, len(dataset))
    videos = [draws.permutation(frames[video]) for video in frames]
    order = draws.permutation(len(videos))
    rounds = [int(videos[v][k]) for k in range(max(map(len, videos))) for v in order if k < len(videos[v])]
    return sorted(rounds[:num_frames])


def _show_masks(data: SurgicalData, rows: list[dict], title: str) -> Figure:
    cells, present = [], set()
    for row in rows:
        stride = -(-row["mask"].shape[1] // LARGEST)
        class_map = row["mask"][::stride, ::stride]
        frame = np.asarray(row["image"].resize(class_map.shape[::-1]))
        present |= set(np.unique(class_map).tolist())
        overlay = paint(frame, class_map, data.labels, data.colors, data.ignore_index)
        cells += [(frame, _title(row), None), (overlay, "", class_map)]
    patches = [legend_patch(i, data.labels, data.colors, data.ignore_index) for i in sorted(present)]
    columns = min(COLUMNS, len(cells))
    figure, grid = _grid([frame for frame, *_ in cells], title, below=0, legend=-(-len(patches) // columns))
    for axes, (frame, text, class_map) in zip(grid, cells, strict=True):
        axes.imshow(frame, aspect="auto")
        axes.set_title(text, fontsize=9, loc="left", color="0.25", pad=3)
        if class_map is not None:
            write_ids(axes, class_map, data.ignore_index)
    figure.legend(handles=patches, loc="lower center", ncols=min(columns, len(patches)), frameon=False, fontsize=10)
    return figure


def _show_labels(data: SurgicalData, rows: list[dict], title: str) -> Figure:
    texts = [_label_lines(data, row["labels"]) for row in rows]
    frames = [np.asarray(_shrunk(row["image"])) for row in rows]
    figure, grid = _grid(frames, title, below=max(map(len, texts)), legend=0)
    for axes, frame, row, lines in zip(grid, frames, rows, texts, strict=True):
        axes.imshow(frame, aspect="auto")
        axes.set_title(_title(row), fontsize=9, loc="left", color="0.25", pad=3)
        text = axes.annotate(
            "\n".join(lines), (0, 0), (2, -4), "axes fraction", "offset points", va="top", fontsize=10
        )
        if data.is_single_label:
            color = np.divide(data.colors[int(row["labels"])], 255)
            text.set(text="■", color=color)
            axes.annotate(lines[0], (0, 0), (16, -4), "axes fraction", "offset points", va="top", fontsize=10)
    return figure


def _label_lines(data: SurgicalData, labels) -> list[str]:
    """Return the text below a frame: the class, or the targets, in lines that fit."""
    if data.is_single_label:
        return [data.labels[int(labels)]]
    targets = [f"{name}: {value:.2g}".replace(" ", "\u00a0") for name, value in zip(data.labels, labels, strict=True)]
    return textwrap.wrap("  ".join(targets), 46, break_on_hyphens=False)


def _title(row: dict) -> str:
    return f"{'video ' * row['video'].isdigit()}{row['video']}, frame {row['frame']}"


def _shrunk(image):
    return image if image.width <= LARGEST else image.resize((LARGEST, image.height * LARGEST // image.width))


def _grid(frames: list[np.ndarray], title: str, below: int, legend: int) -> tuple[Figure, list]:
    """Return a figure and axes for the frames: a line above each, `below` lines below it, `legend` lines last."""
    columns = max(2, min(COLUMNS, len(frames)))  # one alone would leave no room for the title
    rows = [frames[i : i + columns] for i in range(0, len(frames), columns)]
    heights = [WIDTH * max(frame.shape[0] / frame.shape[1] for frame in row) for row in rows]
    total = LINE * (1.5 + (1 + 0.75 * below) * len(rows) + (legend + 0.5) * bool(legend)) + sum(heights)
    figure = Figure(figsize=(columns * WIDTH, total), facecolor="white")
    figure.text(0.5, 1 - LINE / total, title, ha="center", va="center", fontsize=12, weight="bold")
    grid, top = [], total - 1.5 * LINE
    for row, height in zip(rows, heights, strict=True):
        top -= LINE
        for column, frame in enumerate(row):
            own = WIDTH * frame.shape[0] / frame.shape[1]
            box = ((column + 0.01) / columns, (top - own) / total, 0.98 / columns, 0.98 * own / total)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            grid.append(axes)
        top -= height + 0.75 * below * LINE
    return figure, grid
