"""CholecSeg8k: laparoscopic cholecystectomy, clips of 80 consecutive frames with a class for every pixel.

Citation: Hong et al., "CholecSeg8k: A Semantic Segmentation Dataset for Laparoscopic Cholecystectomy Based on
Cholec80", arXiv 2012.12453. National Taiwan University created it from 17 videos of Cholec80.
License: CC BY-NC-SA 4.0 (non-commercial, attribution, share alike).
Download: https://www.kaggle.com/datasets/newslab/cholecseg8k

Layout, limited to the files that this module reads (17 videos, 101 clips, 8,080 frames of 854x480):

    video01/video01_00080/                      a clip, named by its first frame, here frames 80 to 159
        frame_80_endo.png                       the frame
        frame_80_endo_watershed_mask.png        a gray code for each class, in each of three equal channels

The module does not read `_endo_color_mask.png` (a colored mask) or `_endo_mask.png` (the mask of the annotation tool).

Classes: the 13 of `LABELS`, with the gray codes `CODES`. The codes 255 (a border of one pixel) and 0 (annotation
errors) are ignored. `KEPT_LABELS` are the 9 classes of the SurgeNet group. `GROUPED_LABELS` are the 8 groups of
EndoViT (Batić et al., 2024). EndoViT counts nine, because it includes the ignored pixels. Source:
https://github.com/DominikBatic/EndoViT, datasets/CholecSeg8k/utils.

Background: `background_id` is class 0, black background, in all three class lists. It is the area outside the
endoscope's image. The averages of the SurgeNet group and of ATLAS-bench exclude it.

Splits: there is no official split. "endovit" is EndoViT's split, by video. EndoViT's code attributes it to the paper
"Analysis of Current Deep Learning Networks for Semantic Segmentation of Anatomical Structures in Laparoscopic
Surgery".

Overlap: the videos are from Cholec80, which is in the pretraining data of most SurgeNet backbones. Mention this with
any results.

Known issues: four masks (frames 1216 of video18, 858 of video35, 865 and 926 of video37) were corrected later and
saved with transparency. Transparent pixels are ignored, as in EndoViT.
"""

import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ...errors import MissingFileError, UserError
from ..base import IGNORE_INDEX, Sample, SurgicalData, build_splits
from ..images import raw_values, read_upright
from ..masks import count_values, lookup_table, require_pairs, stray_notes
from ..names import frame_number, named, require_folder
from ..splits import require_splits

SOURCE = "https://www.kaggle.com/datasets/newslab/cholecseg8k (free, with a Kaggle account; 3 GB)"

LABELS = (
    "black background",
    "abdominal wall",
    "liver",
    "gastrointestinal tract",
    "fat",
    "grasper",
    "connective tissue",
    "blood",
    "cystic duct",
    "L-hook electrocautery",
    "gallbladder",
    "hepatic vein",
    "liver ligament",
)
COLORS = (
    (127, 127, 127),
    (210, 140, 140),
    (255, 114, 114),
    (231, 70, 156),
    (186, 183, 75),
    (170, 255, 0),
    (255, 85, 0),
    (255, 0, 0),
    (255, 255, 0),
    (169, 255, 184),
    (255, 160, 165),
    (0, 50, 128),
    (111, 74, 0),
)
CODES = (50, 11, 21, 13, 12, 31, 23, 24, 25, 32, 22, 33, 5)  # gray value of each class in LABELS
NO_LABEL = (0, 255)

# The 9 classes of the SurgeNet group (SurgeNetDINO). Blood, cystic duct, hepatic vein, and liver ligament are ignored.
KEPT = (0, 1, 2, 3, 4, 5, 6, 9, 10)  # indices of LABELS
KEPT_LABELS = tuple(LABELS[i] for i in KEPT)
KEPT_COLORS = tuple(COLORS[i] for i in KEPT)

# Groups of EndoViT.
GROUPED_LABELS = (
    "black background",
    "abdominal wall",
    "liver",
    "gastrointestinal tract",
    "fat",
    "gallbladder",
    "miscellaneous",
    "instruments",
)
GROUPED_COLORS = (*COLORS[:5], (255, 255, 0), (45, 158, 227), (170, 255, 0))
GROUPS = (0, 1, 2, 3, 4, 7, 6, 6, 6, 7, 5, 6, 6)  # group of each class in LABELS

ENDOVIT_SPLIT = {
    "train": (1, 9, 18, 20, 24, 25, 26, 28, 35, 37, 43, 48, 55),
    "validation": (17, 52),
    "test": (12, 27),
}
BACKGROUND_ID = 0
# number of classes: (names, colors, new id of each class in LABELS)
CLASS_LISTS = {
    13: (LABELS, COLORS, tuple(range(13))),
    9: (KEPT_LABELS, KEPT_COLORS, tuple(KEPT.index(i) if i in KEPT else IGNORE_INDEX for i in range(13))),
    8: (GROUPED_LABELS, GROUPED_COLORS, GROUPS),
}
VIDEOS = tuple(sorted(video for videos in ENDOVIT_SPLIT.values() for video in videos))
NUM_CLIPS, FRAMES_PER_CLIP, NUM_FRAMES = 101, 80, 8080
WIDTH, HEIGHT = 854, 480

_LAYOUT = (
    "expected the layout of the CholecSeg8k archive: videoNN/videoNN_SSSSS/ with frame_F_endo.png and "
    "frame_F_endo_watershed_mask.png"
    f". Get it from {SOURCE}"
)


def load(
    data_dir: str | Path, classes: int = 13, split_protocol: str | Mapping[str, Iterable[int]] = "endovit"
) -> SurgicalData:
    """Load CholecSeg8k from its folder. If it holds only some clips, `notes` says so.

    Args:
        data_dir: folder with `video01/`, `video09/`, ...
        classes: 13, 9 (the SurgeNet group's classes, which ignore four of the 13), or 8 (EndoViT's groups).
        split_protocol: "endovit", or video numbers by split: `{"train": [...], "validation": [...], "test": [...]}`.
            "test" is optional. Videos without a split are left out.

    Raises:
        MissingFileError: a folder is missing or empty, a frame has no mask, or a mask has no frame.
        UserError: the number of classes is invalid. Also if the split is random, overlaps, or names unknown videos or
            splits. Also if a clip is in the folder of another video, a file is unreadable, or a mask has another size
            than its frame. Also if training or validation has no frames.
    """
    if classes not in CLASS_LISTS:
        raise UserError(f"classes={classes}; expected 13 (all of CholecSeg8k), 9 (SurgeNet group) or 8 (EndoViT)")
    labels, colors, ids = CLASS_LISTS[classes]
    split_of = _split_of(split_protocol)
    root = require_folder(Path(data_dir).absolute(), _LAYOUT)
    clips = _find_clips(root)

    samples: dict[str, list[Sample]] = {name: [] for name in ENDOVIT_SPLIT}
    for (video, _), frames in sorted(clips.items()):
        if video in split_of:
            samples[split_of[video]] += [
                Sample(*frames[frame], f"video{video:02d}", frame) for frame in sorted(frames)
            ]
    require_splits(samples, ("train", "validation"), root, _LAYOUT)
    samples = {name: samples[name] for name in samples if samples[name]}
    numbers = {name: len(samples[name]) for name in samples}
    notes = (*_clip_notes(clips, split_of, numbers), *_pixel_notes([_read(samples[name]) for name in samples]))
    splits = build_splits(samples, lookup_table(dict(zip(CODES, ids, strict=True))))
    return SurgicalData(
        "cholecseg8k" if classes == 13 else f"cholecseg8k-{classes}",
        "semantic-segmentation",
        labels,
        colors,
        splits,
        notes=notes,
        videos_are_public=True,
        split_protocol="EndoViT" if split_protocol == "endovit" else "custom, by video number",
        background_id=BACKGROUND_ID,
    )


def _split_of(split_protocol: str | Mapping[str, Iterable[int]]) -> dict[int, str]:
    """Return the split of each video number."""
    if split_protocol == "random":
        raise UserError(
            "CholecSeg8k has 80 consecutive frames in each clip. A random split of frames puts near-duplicates of "
            "training frames into the test set, so its metrics measure memorization. Split by video: 'endovit', or "
            "{'train': [...], 'validation': [...], 'test': [...]} with video numbers"
        )
    splits = ENDOVIT_SPLIT if split_protocol == "endovit" else split_protocol
    if isinstance(splits, str) or not {"train", "validation"} <= set(splits) <= {"train", "validation", "test"}:
        raise UserError(
            f"split_protocol={split_protocol!r}: expected 'endovit', or video numbers for 'train', 'validation' "
            "and optionally 'test'"
        )
    split_of: dict[int, str] = {}
    for name, videos in splits.items():
        for video in videos:
            if video not in VIDEOS:
                raise UserError(
                    f"the split {name!r} names video {video!r}, but CholecSeg8k has only {', '.join(map(str, VIDEOS))}"
                )
            if split_of.setdefault(video, name) != name:
                raise UserError(f"video {video} is in the splits {split_of[video]!r} and {name!r}; choose one")
    return split_of


def _find_clips(root: Path) -> dict[tuple[int, int], dict[int, tuple[Path, Path]]]:
    """Return the files of each clip, as {(video, first frame): {frame number: (frame path, mask path)}}."""
    clips: dict[tuple[int, int], dict[int, tuple[Path, Path]]] = {}
    for folder in sorted(root.glob("video*/*/")):
        if folder.name.startswith("."):
            continue
        match = re.fullmatch(r"video(\d+)_(\d+)", folder.name)
        if not match or folder.parent.name != f"video{match[1]}":
            raise UserError(f"{folder} is not a clip of {folder.parent.name}; {_LAYOUT}")
        video, start = int(match[1]), int(match[2])
        if video not in VIDEOS:
            raise UserError(f"{folder}: CholecSeg8k has no video {video}, only {', '.join(map(str, VIDEOS))}")
        clips[video, start] = _find_frames(folder)
    if not clips:
        raise MissingFileError(f"{root} contains no clips; {_LAYOUT}")
    return clips


def _find_frames(folder: Path) -> dict[int, tuple[Path, Path]]:
    frames: dict[str, dict[int, Path]] = {"": {}, "_watershed_mask": {}}
    for path in folder.iterdir():
        if match := re.fullmatch(r"frame_(\d+)_endo(|_watershed_mask)\.png", path.name):
            frames[match[2]][frame_number(match[1], path)] = path
    images, masks = frames.values()
    endings = {"frame": "", "mask": "_watershed_mask"}
    require_pairs(
        images,
        masks,
        lambda kind, frame: f"frame_{frame}_endo{endings[kind]}.png in the same folder",
        "unpack the archive again",
    )
    return {frame: (images[frame], masks[frame]) for frame in images}


def _read(samples: list[Sample]) -> tuple[list[str], np.ndarray]:
    """Return the frame names and the pixel count of each gray value, and check all frames and masks.

    Masks with transparency are replaced in `samples` by masks on a white background.
    """
    counts = count_values(samples)
    for i, sample in enumerate(samples):
        if _is_rgba(sample.target):
            samples[i], counts[i] = _on_white(sample)
    return [f"{sample.video} frame {sample.frame}" for sample in samples], counts


def _is_rgba(path: Path) -> bool:
    """Return whether the header of a PNG file gives color type 6 (RGBA)."""
    with path.open("rb") as file:
        return file.read(26)[25:] == b"\x06"


def _on_white(sample: Sample) -> tuple[Sample, np.ndarray]:
    """Return the sample with its mask on a white background, and the pixel count of each value.

    White is ignored, so transparent pixels get no label.
    """
    mask = read_upright(sample.target)
    flat = Image.alpha_composite(Image.new("RGBA", mask.size, "white"), mask).convert("RGB")
    values, buffer = raw_values(flat), io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return replace(sample, target=buffer.getvalue()), np.bincount(values.ravel(), minlength=256)


def _clip_notes(clips: dict, split_of: dict[int, str], numbers: dict[str, int]) -> list[str]:
    total = sum(len(frames) for frames in clips.values())
    videos = {video for video, _ in clips}
    used = ", ".join(f"{number} {name}" for name, number in numbers.items())
    if (len(videos), len(clips), total) == (len(VIDEOS), NUM_CLIPS, NUM_FRAMES):
        notes = [f"Found all {NUM_FRAMES} frames of {NUM_CLIPS} clips and {len(VIDEOS)} videos ({used})."]
    else:
        notes = [
            f"Found {total} of {NUM_FRAMES} frames, {len(clips)} of {NUM_CLIPS} clips and {len(videos)} of "
            f"{len(VIDEOS)} videos ({used}). Results are not comparable with those on the full dataset."
        ]
    if missing := [f"video{video:02d} ({split_of[video]})" for video in sorted(split_of.keys() - videos)]:
        notes.append(f"Missing: {', '.join(missing)}.")
    if unused := [f"video{video:02d}" for video in sorted(videos - split_of.keys())]:
        notes.append(f"Excluded, because in no split: {', '.join(unused)}.")
    for (video, start), frames in sorted(clips.items()):
        expected = set(range(start, start + FRAMES_PER_CLIP))
        if expected == set(frames):
            continue
        missing, extra = sorted(expected - frames.keys()), sorted(frames.keys() - expected)
        odd = [f"missing {named(missing, 3)}"] * bool(missing) + [f"unexpected {named(extra, 3)}"] * bool(extra)
        notes.append(
            f"Clip video{video:02d}_{start:05d} has {len(frames)} frames; expected {FRAMES_PER_CLIP} with the numbers "
            f"{start} to {start + FRAMES_PER_CLIP - 1}: {'; '.join(odd)}."
        )
    return notes


def _pixel_notes(read: list[tuple[list[str], np.ndarray]]) -> list[str]:
    names = [name for part, _ in read for name in part]
    counts = np.concatenate([part for _, part in read])
    codes = sorted(set(range(256)) - {*CODES, *NO_LABEL})
    notes = stray_notes(counts, names, codes, "Gray level {} is not the code of a class")
    if other := [name for name, row in zip(names, counts, strict=True) if row.sum() != WIDTH * HEIGHT]:
        notes.append(f"{len(other)} frame(s) do not have {WIDTH}x{HEIGHT} pixels ({named(other, 3)}).")
    return notes
