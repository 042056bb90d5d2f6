import math

import pytest

from surgenet_hf.evaluation.reporting import _dice_intervals, comparison_table
from surgenet_hf.evaluation.statistics import student_interval


def test_comparison_table():
    def metrics(dice, iou):
        per_class = {
            "background": {"video_dice": dice, "video_iou": iou},
            "tool": {"video_dice": math.nan, "video_iou": math.nan},
        }
        return {"video_dice": dice, "video_iou": iou, "per_class": per_class}

    lines = comparison_table({"before": metrics(0.1, 0.05), "after": metrics(1.0, 1.0)}).splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["class", "Dice", "IoU", "Dice", "IoU"]
    assert lines[3].split() == ["background", "10.0", "5.0", "100.0", "100.0"]
    assert lines[4].split() == ["tool", "-", "-", "-", "-"]
    assert lines[6].split() == ["mean", "over", "videos", "10.0", "5.0", "100.0", "100.0"]
    assert len({len(line) for line in lines}) == 1


def test_intervals_of_classes_are_over_the_videos_that_have_them():
    def counts(reference, predicted, intersection):
        return {"reference_pixels": reference, "predicted_pixels": predicted, "intersection_pixels": intersection}

    dice = [0.5, 0.6, 0.7, 0.8, 0.9]
    per_video = {
        str(i): {"per_class": {"tool": counts(50, 50, 50 * value), "duct": counts(50 * (i < 4), 50, 25)}}
        for i, value in enumerate(dice)
    }
    tool, duct = _dice_intervals({"data": {"labels": ["tool", "duct"]}, "per_video": per_video})
    expected = student_interval(dice)
    assert tool == pytest.approx((expected.low, expected.high))
    assert all(map(math.isnan, duct))  # only four videos have this class
