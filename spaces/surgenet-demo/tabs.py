"""Functions of the tabs.

They read uploads, predict with `surgenet_hf.inference`, and draw pictures with `surgenet_hf.figures`. Each result
depends only on the arguments and the model, and no state is kept between calls. Uploads arrive as gradio describes
them (`preprocess=False`) and are checked before they are opened. The docstrings of the methods of `Tabs` are the
documentation of the API endpoints with the same names.
"""

import copy
import time
from collections.abc import Iterator

import gradio as gr
import numpy as np
from about import note
from demo import DEMO, TRAINED
from folders import check_answer
from media import MAX_FRAMES, Refused, check_video, film, read_frames, read_image, read_number, write_mask
from models import ModelStore
from PIL import Image

from surgenet_hf.data.sets import endoscapes_cvs
from surgenet_hf.figures.features import pca_to_rgb
from surgenet_hf.figures.web import (
    bars_html,
    enlarge,
    heat_picture,
    legend_html,
    overlay_picture,
    phase_picture,
    ribbon_html,
)
from surgenet_hf.inference.prediction import predict, predict_scores, predict_segmentation, stream_phases

SHOWN_EVERY = 0.3  # minimum seconds between updates while a clip is processed
PROGRESS = gr.Progress()  # default value that gradio replaces in each call
MAX_WORK_SECONDS = 900  # maximum time for a clip, as other visitors have to wait
CVS_MET = 0.5  # minimum score of a fulfilled criterion, as in Endoscapes-CVS201


class Tabs:
    """Functions of the tabs and API endpoints."""

    def __init__(self, store: ModelStore):
        self.store = store

    def segment(self, image: dict, model: str, progress=PROGRESS) -> tuple[np.ndarray, list, str, str]:
        """Segment a frame.

        Args:
            image: JPEG, PNG, WebP, or BMP file.
            model: name from the list, or Hub id.

        Returns:
            The frame with its classes painted over it.
            The classes in the frame, the largest first, as {"id", "class", "percent"} with their share of the area.
            The mask as a lossless PNG, whose pixel values are class ids.
            The legend (HTML).
        """
        image = read_image(image)
        loaded = self._get(model, ("segmentation",), progress)
        ((_, class_map),) = predict_segmentation(loaded.model, loaded.processor, [{"image": image}])
        labels, colors = loaded.labels, loaded.colors
        shares = np.bincount(class_map.ravel(), minlength=len(labels)) / class_map.size
        order = [int(i) for i in np.argsort(-shares, kind="stable") if shares[i] > 0]
        areas = [{"id": i, "class": labels[i], "percent": round(100 * float(shares[i]), 3)} for i in order]
        overlay = overlay_picture(np.asarray(image), class_map, labels, colors)
        legend = legend_html(labels, colors, shares, f"{size_note(image)}{loaded.note}")
        return overlay, areas, str(write_mask(class_map, colors)), legend

    def classify(self, image: dict, model: str, progress=PROGRESS) -> tuple[dict, str]:
        """Classify a frame by its phase, its tools, or the criteria of the critical view of safety (CVS).

        Args:
            image: JPEG, PNG, WebP, or BMP file.
            model: name from the list, or Hub id.

        Returns:
            {label: score from 0 to 1}
            A bar chart of the scores (HTML).
        """
        image = read_image(image)
        loaded = self._get(model, ("classification",), progress)
        ((_, scores),) = predict_scores(loaded.model, loaded.processor, [{"image": image}])
        scores = [round(float(score), 4) for score in scores]
        notes, caption = [], loaded.note
        if loaded.name in DEMO:  # no verdict, because the model is untrained
            pass
        elif loaded.labels == list(endoscapes_cvs.LABELS):
            notes = ["met" if score >= CVS_MET else "not met" for score in scores]
            whole = "all three criteria are met" if min(scores) >= CVS_MET else "not all three criteria are met"
            caption = (
                f"Critical view of safety: the model predicts that {whole} (score of at least 50 %). {loaded.note}"
            )
        elif loaded.model.config.problem_type == "single_label_classification":
            caption = f"Most likely: {loaded.labels[int(np.argmax(scores))]}. {loaded.note}"
        return dict(zip(loaded.labels, scores, strict=True)), bars_html(loaded.labels, scores, notes, caption)

    def features(
        self,
        image_a: dict,
        image_b: dict | None = None,
        model: str = TRAINED,
        progress=PROGRESS,
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Show dense features of one or two frames as colors, by their first three joint principal components.

        Args:
            image_a: JPEG, PNG, WebP, or BMP file.
            image_b: second file, or none.
            model: name from the list, or Hub id.

        Returns:
            A picture of frame A, in which similar colors mean similar features.
            The same for frame B, or none.
            A note (HTML).
        """
        images = [read_image(image) for image in (image_a, image_b) if image or image is image_a]
        loaded = self._get(model, ("features",), progress)
        maps = pca_to_rgb([dense_features(loaded, image) for image in images])
        pictures = [enlarge(part, image.size) for part, image in zip(maps, images, strict=True)]
        text = "Similar colors indicate similar features. The colors themselves have no meaning."
        return pictures[0], pictures[1] if len(pictures) > 1 else None, note(f"{text} {loaded.note}")

    def similarity(
        self,
        image_a: dict,
        image_b: dict | None = None,
        x: float = 50,
        y: float = 50,
        model: str = TRAINED,
        progress=PROGRESS,
    ) -> tuple[np.ndarray, np.ndarray | None, str]:
        """Find a point of frame A in both frames, by the cosine similarity of its feature to all features.

        Args:
            image_a: JPEG, PNG, WebP, or BMP file.
            image_b: second file, or none.
            x: horizontal position of the point from the left edge, in percent of the width.
            y: vertical position of the point from the top edge, in percent of the height.
            model: name from the list, or Hub id.

        Returns:
            A heat map over frame A, with the point.
            A heat map over frame B, with a ring at the most similar location, or none.
            A note (HTML).
        """
        image_a, image_b = read_image(image_a), read_image(image_b) if image_b else None
        point = tuple(read_number(value, 0, 100, name) / 100 for name, value in (("x", x), ("y", y)))
        loaded = self._get(model, ("features",), progress)
        dense = dense_features(loaded, image_a)
        feature = dense[:, min(int(point[1] * dense.shape[1]), dense.shape[1] - 1),
                        min(int(point[0] * dense.shape[2]), dense.shape[2] - 1)]  # fmt: skip
        alike = [cosine(feature, dense)]
        text = "Yellow: most similar to the point. Blue: least similar."
        if image_b is not None:
            alike.append(cosine(feature, dense_features(loaded, image_b)))
        low, high = min(part.min() for part in alike), max(part.max() for part in alike)
        alike = [(part - low) / max(high - low, 1e-6) for part in alike]
        picture_a, picture_b = heat_picture(np.asarray(image_a), alike[0], point), None
        if image_b is not None:
            row, column = np.unravel_index(alike[1].argmax(), alike[1].shape)
            place = (column + 0.5) / alike[1].shape[1], (row + 0.5) / alike[1].shape[0]
            picture_b = heat_picture(np.asarray(image_b), alike[1], place)
        return picture_a, picture_b, note(f"{text} {loaded.note}")

    def video(
        self,
        clip: dict,
        frames_per_second: float,
        model: str,
        progress=PROGRESS,
    ) -> Iterator[tuple[np.ndarray, str, str | None]]:
        """Segment a clip frame by frame, or predict the phases of a procedure in it.

        Args:
            clip: MP4, MOV, MKV, WebM, AVI, MPEG, or WMV file.
            frames_per_second: number of processed frames per second of the clip. Phase models use their own rate.
            model: name from the list, or Hub id.

        Returns:
            The current frame.
            The progress, with the ribbon of phases or the legend so far (HTML).
            The result as an MP4 clip, only at the end.
        """
        path, seconds = check_video(clip)
        rate = read_number(frames_per_second, 0.2, 5, "The number of frames per second")
        loaded = self._get(model, ("segmentation", "phases", "classification"), progress)
        config = loaded.model.config
        if "classification" in loaded.tasks and config.problem_type != "single_label_classification":
            raise Refused(
                f"{loaded.name} predicts several classes per frame; the Video tab needs a model that predicts one. "
                "Please use this model in the Classify tab."
            )
        if "phases" in loaded.tasks:
            rate = read_number(config.frames_per_second, 0.2, 5, f"The frame rate of {loaded.name}")
        length = max(1, round(seconds * rate))
        if length > MAX_FRAMES:  # an error, because the end of the clip would otherwise be missing without notice
            raise Refused(
                f"At {rate:g} frames per second, this clip has {length} frames; up to {MAX_FRAMES} can be processed. "
                "Please choose fewer frames per second or a shorter clip."
            )
        show = self._segmented if "segmentation" in loaded.tasks else self._phased
        began, shown = time.monotonic(), 0.0
        with film(rate) as (add, result):
            for number, (picture, html) in enumerate(show(loaded, read_frames(path, rate), rate, length), start=1):
                if time.monotonic() > began + MAX_WORK_SECONDS:
                    raise Refused(
                        f"Processing this clip with {loaded.name} takes longer than the {MAX_WORK_SECONDS // 60} "
                        "minutes allowed. Please choose fewer frames per second, a shorter clip, a clip with a lower "
                        "resolution, or another model."
                    )
                add(picture)
                if time.monotonic() - shown > SHOWN_EVERY:
                    shown = time.monotonic()
                    yield picture, progress_html(number, max(number, length), shown - began) + html, None
        yield picture, html, str(result)

    @staticmethod
    def _segmented(loaded, frames: Iterator[Image.Image], rate: float, length: int):
        labels, colors, total = loaded.labels, loaded.colors, 0
        for number, image in enumerate(frames, start=1):
            ((_, class_map),) = predict_segmentation(loaded.model, loaded.processor, [{"image": image}])
            total = total + np.bincount(class_map.ravel(), minlength=len(labels)) / class_map.size
            caption = f"Mean area over {number} frames. {loaded.note}"
            html = legend_html(labels, colors, total / number, caption)
            yield overlay_picture(np.asarray(image), class_map, labels, colors), html

    @staticmethod
    def _phased(loaded, frames: Iterator[Image.Image], rate: float, length: int):
        phases, present = [], []

        def passing():
            for image in frames:
                present[:] = [np.asarray(image)]
                yield image

        for scores in stream_phases(loaded.model, loaded.processor, passing()):
            check_answer(loaded.name, scores)
            phases.append(int(scores.argmax()))
            caption = f"Phases of the first {len(phases) / rate:.0f} s. {loaded.note}"
            html = ribbon_html(np.array(phases), loaded.labels, length, 1 / rate, caption)
            yield phase_picture(present[0], np.array(phases), loaded.labels, length), html

    def model_info(self, model: str) -> dict:
        """Describe a model, with its tasks, backbone, pretraining, and classes. No weights are loaded."""
        return self.store.describe(str(model or "").strip())

    def _get(self, model: str, tasks: tuple[str, ...], progress):
        return self.store.get(str(model or ""), tasks, lambda share, what: progress(share, desc=what))


def dense_features(loaded, image: Image.Image) -> np.ndarray:
    """Compute the features (C, h, w) of the backbone's last stage."""
    finer = copy.deepcopy(loaded.processor)
    finer.size = {"height": loaded.feature_side, "width": loaded.feature_side}
    backbone = getattr(loaded.model, "base_model", loaded.model)
    ((_, outputs),) = predict(backbone, finer, [{"image": image}], [0])
    check_answer(loaded.name, outputs.last_hidden_state)
    return outputs.last_hidden_state[0].float().cpu().numpy()


def cosine(feature: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """Compute the cosine similarity (h, w) of a feature (C,) to dense features (C, h, w)."""
    lengths = np.linalg.norm(feature) * np.linalg.norm(dense, axis=0)
    return np.tensordot(feature, dense, 1) / np.maximum(lengths, 1e-12)


def progress_html(done: int, frames: int, seconds: float) -> str:
    """Format the progress of a clip and its remaining time. gradio hides its own progress bar at each new frame.

    Args:
        done: number of processed frames.
        frames: total number of frames.
        seconds: elapsed time.
    """
    left = seconds / done * (frames - done)
    left = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    bar = f'<progress value="{done}" max="{frames}" aria-label="Processed frames"></progress>'
    return f'<div class="progress">{bar}{note(f"Frame {done} of {frames}, {left} left")}</div>'


def size_note(image: Image.Image) -> str:
    """Return a note that the picture was resized, or an empty text."""
    before = image.info.get("uploaded_size", image.size)
    return "" if before == image.size else f"Resized to {image.width} x {image.height} pixels, including the mask. "
