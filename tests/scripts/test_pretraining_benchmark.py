"""The benchmark runs every part, and its table shows what was measured; how fast is not a matter of tests."""

import pytest

from surgenet_hf.pretraining.benchmark import take_turns
from tests.scripts import load_script

SMALL = "--backbone tiny --batch_size 2 --rounds 1 --out_dim 32 --frame_size 160 120 --local_crops_number 1"
SMALL += " --global_crops_size 48 --local_crops_size 32"


def test_every_part_is_measured(capsys):
    load_script("benchmark_pretraining").main(f"{SMALL} --channels_last".split())
    said = capsys.readouterr().out
    for part in ("decode:", "crops:", "forward backward:", "step:", "end to end:"):
        assert f"\n{part}" in said
    assert said.count("ours, bf16, channels last") == 2


def test_candidates_take_turns():
    order = []
    seconds = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2, 1)
    assert order == ["a", "b"] * 3  # the first round does not count
    assert seconds.keys() == {"a", "b"}


def test_wrong_checkout(tmp_path):
    with pytest.raises(SystemExit, match=r"holds no main_dino\.py: give the folder of a checkout"):
        load_script("benchmark_pretraining").main(["--dino_repo", str(tmp_path)])
