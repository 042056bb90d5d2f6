import math

from surgenet_hf.reporting import comparison_table


def test_comparison_table():
    def metrics(dice, iou):
        per_class = {"background": {"dice": dice, "iou": iou}, "tool": {"dice": math.nan, "iou": math.nan}}
        return {"video_dice": dice, "video_iou": iou, "per_class": per_class}

    lines = comparison_table({"before": metrics(0.1, 0.05), "after": metrics(1.0, 1.0)}).splitlines()
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["class", "Dice", "IoU", "Dice", "IoU"]
    assert lines[3].split() == ["background", "10.0", "5.0", "100.0", "100.0"]
    assert lines[4].split() == ["tool", "-", "-", "-", "-"]
    assert lines[6].split() == ["mean", "over", "videos", "10.0", "5.0", "100.0", "100.0"]
    assert len({len(line) for line in lines}) == 1
