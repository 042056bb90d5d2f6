"""Figure of labeled frames of a dataset, to check the data before training."""

import textwrap

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from ..errors import UserError
from ..figures.overlays import legend_patch, paint, write_ids
from ..rng import rng_for
from .base import SurgicalData

COLUMNS = 4
MOST_TARGETS = 20  # with more classes, those with the target 0 are not written
LARGEST = 800  # pixels: maximum width at which frames are drawn
WIDTH, LINE = 3.6, 0.3  # inches: width of a picture, height of a line of text


def show(data: SurgicalData, split: str = "train", num_frames: int = 8, seed: int = 0) -> Figure:
    """Draw frames of a split with their labels.

    For segmentation, each frame appears twice: as it is, and next to that with its mask and class ids on top. A legend
    lists the classes that occur. For classification, each frame has the name of its class or the target of every
    class. With more than 20 classes, targets of 0 are left out.

    The frames come from as many videos as possible. `seed` and the videos in the split determine the choice. Frames
    are drawn in the order of the data. If the split has at most `num_frames` frames, all of them are drawn.

    Args:
        data: the dataset.
        split: name of the split.
        num_frames: number of frames to draw.
        seed: seed of the random choice.

    Raises:
        UserError: the data has no such split, or `num_frames` is less than one.
    """
    dataset = data.split(split)
    if num_frames < 1:
        raise UserError(f"num_frames must be at least 1, got {num_frames}")
    rows = [dataset[i] for i in choose_frames(dataset, num_frames, seed)]
    title = f"{data.name}, {split}: {len(rows)} of {len(dataset)} frames"
    return (_show_masks if data.task == "semantic-segmentation" else _show_labels)(data, rows, title)


def choose_frames(dataset: Dataset, num_frames: int, seed: int) -> list[int]:
    """Choose frame indices in rounds, with one random frame per video and round, until there are enough."""
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
    """Return the wrapped text below a frame: its class, or the targets."""
    if data.is_single_label:
        return [data.labels[int(labels)]]
    targets = [
        f"{name}: {value:.2g}".replace(" ", "\u00a0")
        for name, value in zip(data.labels, labels, strict=True)
        if value or len(data.labels) <= MOST_TARGETS
    ] or ["no class"]
    return textwrap.wrap("  ".join(targets), 46, break_on_hyphens=False)


def _title(row: dict) -> str:
    return f"{'video ' * row['video'].isdigit()}{row['video']}, frame {row['frame']}"


def _shrunk(image):
    return image if image.width <= LARGEST else image.resize((LARGEST, image.height * LARGEST // image.width))


def _grid(frames: list[np.ndarray], title: str, below: int, legend: int) -> tuple[Figure, list]:
    """Return a figure and the axes of its frames.

    Args:
        frames: pictures (H, W, 3).
        title: title of the figure.
        below: number of text lines below each frame. There is always one line above it.
        legend: number of legend lines at the bottom.
    """
    columns = max(2, min(COLUMNS, len(frames)))  # one column would leave no room for the title
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
