import io
import itertools

import numpy as np
import pytest
from PIL import Image

from surgenet_hf.data import load_data
from surgenet_hf.data.sets import synthetic_phases
from surgenet_hf.data.sets.synthetic import encode_image
from surgenet_hf.data.sets.synthetic_phases import PHASES, plan

SMALL = {"num_videos": 4, "length": (24, 30), "size": (32, 48)}


def _rows(data):
    return [(row["video"], row["labels"], np.asarray(row["image"])) for split in data.splits.values() for row in split]


def _same(first, second):
    return len(first) == len(second) and all(
        a[:2] == b[:2] and np.array_equal(a[2], b[2]) for a, b in zip(first, second, strict=True)
    )


@pytest.fixture(scope="module")
def small():
    return load_data("synthetic-phases", **SMALL)


def test_schema(small):
    assert small.name == "synthetic-phases"
    assert small.labels == PHASES
    assert len(set(small.colors)) == 7
    assert small.problem_type == "single_label_classification"
    assert small.frames_per_second == 1
    assert "Synthetic" in small.notes[0]
    assert small.videos_are_public
    assert small.split_protocol == "by video number, the last three eighths are half validation, half test"
    videos = {name: list(dict.fromkeys(split["video"])) for name, split in small.splits.items()}
    assert videos == {"train": ["video00", "video01"], "validation": ["video02"], "test": ["video03"]}
    for split in small.splits.values():
        columns = split.select_columns(["video", "frame"])[:]
        for video in set(columns["video"]):
            frames = [f for v, f in zip(columns["video"], columns["frame"], strict=True) if v == video]
            assert frames == list(range(len(frames)))
            assert 24 <= len(frames) <= 30
    assert small.splits["train"][0]["image"].size == (48, 32)


def test_default_size():
    steps = [plan(0, video, (60, 120)) for video in range(16)]
    assert all(60 <= len(step) <= 120 for step in steps)
    assert len({len(step) for step in steps}) > 8


def test_a_frame_is_a_function_of_seed_video_and_frame(small):
    first = _rows(small)
    more = load_data("synthetic-phases", **{**SMALL, "num_videos": 5})
    number = sum(video < "video03" for video, *_ in first)
    assert _same(first[:number], _rows(more)[:number])
    assert not _same(first, _rows(load_data("synthetic-phases", seed=1, **SMALL)))
    synthetic_phases._tissue.cache_clear()
    _, view = plan(0, 1, SMALL["length"])[7]
    alone = encode_image(synthetic_phases.draw(0, 1, 7, view, SMALL["size"]), "JPEG", quality=95)
    image = next(row["image"] for row in small.splits["train"] if (row["video"], row["frame"]) == ("video01", 7))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(alone))), np.asarray(image))


def test_phases_have_realistic_orders_and_durations():
    sequences, durations = [], {phase: [] for phase in range(7)}
    for video in range(200):
        runs = [
            (phase, len(list(run)))
            for phase, run in itertools.groupby(phase for phase, _ in plan(0, video, (60, 120)))
        ]
        sequences.append([phase for phase, _ in runs])
        for phase, number in runs:
            durations[phase].append(number)
    assert all(len(set(sequence)) == len(sequence) for sequence in sequences)  # no phase occurs twice
    skipped = [sum(phase not in sequence for sequence in sequences) / 200 for phase in range(7)]
    assert 0.1 < skipped[0] < 0.3
    assert skipped[1:5] == [0, 0, 0, 0]
    swapped = sum(sequence != sorted(sequence) for sequence in sequences) / 200
    assert 0.2 < swapped < 0.6
    assert min(min(numbers) for numbers in durations.values()) >= 3
    for numbers in durations.values():  # durations have a long right tail
        assert np.mean(numbers) > np.median(numbers) * 0.98
        assert max(numbers) > 1.8 * np.median(numbers)
    assert np.mean(durations[1]) > 2 * np.mean(durations[4])


def test_single_frames_are_ambiguous_and_their_order_is_not():
    """Test that a filter with memory outperforms the best guess per frame.

    Both know exactly what is in view. Only the forward filter uses earlier frames.
    """
    plans = [plan(0, video, (60, 120)) for video in range(150)]
    views = {view: i for i, view in enumerate(dict.fromkeys(view for steps in plans for _, view in steps))}
    phases = [np.array([phase for phase, _ in steps]) for steps in plans]
    seen = [np.array([views[view] for _, view in steps]) for steps in plans]
    joint, moves, start = np.full((len(views), 7), 0.01), np.full((7, 7), 0.01), np.full(7, 0.01)
    for phase, view in zip(phases[:100], seen[:100], strict=True):
        np.add.at(joint, (view, phase), 1)
        np.add.at(moves, (phase[:-1], phase[1:]), 1)
        start[phase[0]] += 1
    likelihood, moves = joint / joint.sum(0), moves / moves.sum(1, keepdims=True)

    def remembering(view):
        belief, guesses = start * likelihood[view[0]], []
        for i in view:
            belief = (belief / belief.sum()) @ moves * likelihood[i] if guesses else belief
            guesses.append(belief.argmax())
        return guesses

    tests = list(zip(phases[100:], seen[100:], strict=True))
    by_frame = np.mean([(joint.argmax(1)[view] == phase).mean() for phase, view in tests])
    by_order = np.mean([(remembering(view) == phase).mean() for phase, view in tests])
    assert 0.55 < by_frame < 0.72
    assert by_order > by_frame + 0.1


def test_a_view_shows():
    """Test that each object in a view is clearly visible."""
    bare = synthetic_phases.View()
    for thing in ({"gallbladder": True}, {"tool": "hook"}, {"tool": "clipper"}, {"bag": True}, {"blood": True}):
        view = synthetic_phases.View(**thing)
        without, with_it = (synthetic_phases.draw(0, 0, 3, v, (64, 96)).astype(float) for v in (bare, view))
        changed = np.abs(with_it - without).max(-1) > 40
        assert changed.mean() > 0.005, thing


def test_dissections_look_alike():
    assert synthetic_phases._VIEWS[1] == synthetic_phases._VIEWS[3]


@pytest.mark.slow
def test_files_hold_the_same_as_memory_and_are_used_again(tmp_path, small, monkeypatch):
    files = load_data("synthetic-phases", tmp_path, **SMALL)
    assert _same(_rows(small), _rows(files))
    (root,) = tmp_path.iterdir()
    lost = sorted(root.rglob("*.jpg"))[5]
    lost.unlink()
    drawn, draw = [], synthetic_phases.draw
    monkeypatch.setattr(synthetic_phases, "draw", lambda *args: drawn.append(args) or draw(*args))
    assert _same(_rows(small), _rows(load_data("synthetic-phases", tmp_path, **SMALL)))
    assert len(drawn) == 1
    load_data("synthetic-phases", tmp_path, **{**SMALL, "length": (24, 31)})
    assert len(list(tmp_path.iterdir())) == 2  # other parameters use another folder


def test_the_files_are_a_data_set_of_videos(tmp_path, small):
    load_data("synthetic-phases", tmp_path, **SMALL)
    (root,) = tmp_path.iterdir()
    data = load_data("videos", root)
    assert data.labels == PHASES
    assert sorted(row[:2] for row in _rows(data)) == sorted(row[:2] for row in _rows(small))


@pytest.mark.parametrize("bad", [{"num_videos": 2}, {"length": (20, 30)}, {"length": (30, 24)}, {"size": (16, 64)}])
def test_impossible_numbers_are_refused(bad):
    with pytest.raises(ValueError, match="needed"):
        load_data("synthetic-phases", **{**SMALL, **bad})
