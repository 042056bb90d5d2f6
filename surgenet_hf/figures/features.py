"""Figures of backbone features: t-SNE of embeddings, and dense features as colors."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from ..errors import UserError
from .style import NORMAL, SMALL, WIDTH, color, marker, new_figure, outline, picture_rows

NAMED_GROUPS = 12  # largest number of groups whose names are also written in the plot


def tsne(embeddings: np.ndarray, seed: int = 0) -> np.ndarray:
    """Compute t-SNE coordinates (N, 2) of embeddings (N, C).

    The embeddings are first reduced to at most 50 principal components. The perplexity is 30, or (N - 1) / 3 if that
    is less. Both steps use scikit-learn.

    Raises:
        UserError: there are fewer than 4 embeddings, or some are not finite.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    embeddings = np.asarray(embeddings, np.float32)
    if embeddings.ndim != 2 or len(embeddings) < 4 or not np.isfinite(embeddings).all():
        raise UserError(
            f"t-SNE needs finite embeddings (N, C) with N at least 4, found {embeddings.shape}: use more frames"
        )
    components = min(50, *embeddings.shape)
    reduced = PCA(components, random_state=seed).fit_transform(embeddings)
    perplexity = min(30, (len(embeddings) - 1) / 3)
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(reduced)


def scatter_figure(
    coordinates: np.ndarray, groups: Sequence[str] | np.ndarray, title: str = "", group_name: str = ""
) -> Figure:
    """Draw a point for each frame, with the color and marker of its group.

    Up to 12 groups also have their names in the plot, if they are separate from the others.

    Args:
        coordinates: array (N, 2), such as the result of `tsne`. Its scale has no meaning, so the axes have no ticks.
        groups: N names, such as datasets, procedures, videos, or phases.
        title: title of the figure.
        group_name: what the groups are, for the legend.
    """
    coordinates, groups = np.asarray(coordinates), np.asarray(groups)
    names = list(dict.fromkeys(groups.tolist()))
    columns = -(-len(names) // 24)
    figure = new_figure(WIDTH + 1.4 * (columns - 1), 5, title)
    axes = figure.add_subplot()
    size = float(np.clip(6000 / len(groups), 8, 45))
    order = np.random.default_rng(0).permutation(len(groups))  # so that no group covers the others
    height = np.empty(len(groups), int)
    height[order] = np.arange(len(groups))
    layers = 8
    for i, name in enumerate(names):
        for layer in range(layers):
            members = (groups == name) & (height % layers == layer)
            x, y = coordinates[members].T
            axes.scatter(
                x,
                y,
                s=size,
                color=color(i),
                marker=marker(i),
                edgecolor="white",
                linewidth=0.3,
                zorder=2 + layer / layers,
            )
        label = f"{name} ({np.sum(groups == name)})"
        axes.scatter([], [], s=45, color=color(i), marker=marker(i), label=label)
    middle = (coordinates.min(0) + coordinates.max(0)) / 2
    reach = 0.55 * max(np.ptp(coordinates, axis=0).max(), 1e-12)  # a square plot for any distribution of points
    axes.set(xticks=[], yticks=[], aspect="equal")
    axes.set(xlim=(middle[0] - reach, middle[0] + reach), ylim=(middle[1] - reach, middle[1] + reach))
    axes.set_xlabel("t-SNE 1", fontsize=NORMAL)
    axes.set_ylabel("t-SNE 2", fontsize=NORMAL)
    axes.spines[:].set_color("0.75")
    figure.legend(
        loc="outside right upper",
        fontsize=NORMAL if columns == 1 else SMALL,
        frameon=False,
        ncols=columns,
        title=f"{group_name} (frames)" if group_name else None,
        title_fontsize=NORMAL,
    )
    if 1 < len(names) <= NAMED_GROUPS:
        _write_names(figure, axes, coordinates, groups, names)
    return figure


def pca_to_rgb(features: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Convert the dense features of each frame to colors, by their first three principal components.

    The components are computed over all frames together, so that a color has the same meaning in every frame. Each
    component is scaled from its 2nd to its 98th percentile.

    Args:
        features: array (C, h, w) of each frame.

    Returns:
        An array (h, w, 3) from 0 to 1 for each frame.
    """
    pixels = np.concatenate([np.reshape(feature, (len(feature), -1)).T for feature in features]).astype(np.float64)
    centered = pixels - pixels.mean(0)
    _, directions = np.linalg.eigh(centered.T @ centered)
    components = centered @ directions[:, :-4:-1]
    components *= np.sign((components**3).sum(0) + 1e-30)  # the sign is arbitrary, so the longer tail is made positive
    low, high = np.percentile(components, [2, 98], axis=0)
    colors = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    sizes = [np.shape(feature)[1:] for feature in features]
    parts = np.split(colors, np.cumsum([h * w for h, w in sizes])[:-1])
    return [part.reshape(*size, 3) for part, size in zip(parts, sizes, strict=True)]


def feature_figure(
    frames: Sequence, features: Sequence[np.ndarray], row_titles: Sequence[str] = (), title: str = ""
) -> Figure:
    """Draw one row per frame: the frame, its dense features as colors, and their first component in gray.

    The gray map shows the first component to readers who cannot distinguish the colors.

    Args:
        frames: RGB images, PIL or (H, W, 3).
        features: array (C, h, w) of each frame.
        row_titles: a line of text for each frame, such as its dataset and video.
        title: title of the figure.
    """
    maps = pca_to_rgb(features)
    frames = [np.asarray(frame) for frame in frames]
    names = ("frame", "features: 3 components", "component 1")
    figure, rows = picture_rows(frames, names, row_titles, title, WIDTH / 3)
    for row, frame, colors in zip(rows, frames, maps, strict=True):
        for axes, picture in zip(row, (frame, colors, colors[..., 0]), strict=True):
            axes.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    return figure


def _write_names(figure: Figure, axes, coordinates: np.ndarray, groups: np.ndarray, names: list[str]) -> None:
    """Write the name of each separate group above its points, unless it would overlap another name."""
    some = np.random.default_rng(0).permutation(len(groups))[:2000]
    points, of_points = coordinates[some], groups[some]
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    to_others = distances + np.diag(np.full(len(some), np.inf))
    texts = []
    for name in names:
        members = of_points == name
        neighbors = min(5, members.sum() - 1)
        if neighbors < 1:
            continue
        nearest = np.argpartition(to_others[members], neighbors - 1, axis=1)[:, :neighbors]
        if np.mean(of_points[nearest] == name) < 0.7:
            continue
        within = distances[np.ix_(members, members)].sum(0)
        x, y = points[members][within.argmin()]  # the most central member, which is inside the group for any shape
        near = points[members & (np.abs(points[:, 0] - x) < np.std(points[members, 0]) + 1e-9)]
        top = np.percentile(near[:, 1], 95)
        style = {"fontsize": NORMAL, "weight": "bold", "ha": "center", "va": "bottom", "zorder": 4, "clip_on": True}
        text = axes.annotate(name, (x, max(y, top)), (0, 4), textcoords="offset points", **style)
        text.set_path_effects(outline(3))
        texts.append(text)
    figure.draw_without_rendering()  # computes the text positions
    kept: list[Bbox] = []
    for text in texts:
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(box)
