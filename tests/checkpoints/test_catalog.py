import re

import pytest

from surgenet_hf.checkpoints.catalog import (
    CATALOG,
    NORMALIZATIONS,
    RANDOM_WEIGHTS,
    base_entry,
    find_by_sha256,
    find_entry,
    is_from_scratch,
    known_videos,
    leakage_note,
    pretraining_name,
)
from surgenet_hf.configuration_surgenet import SurgeNetConfig


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("SurgeNetXL", "SurgeNetXL"),
        ("surgenetxl", "SurgeNetXL"),
        ("surgenet/surgenetxl", "SurgeNetXL"),
        ("SurgNet", "SurgeNet"),
        ("SurgeNet-CHOLEC", "SurgeNet-Cholec"),
        ("SurgeNetCholec", "SurgeNet-Cholec"),
        ("surgenet_small", "SurgeNet-Small"),
        ("SurgeNet-ConvNextv2", "SurgeNet-ConvNeXtV2"),
        ("PVTv2", "SurgeNet-PVTv2"),
        ("ImageNet1k", "ImageNet1k"),
        ("surgenetxl_dinov3_vit_l", "SurgeNetXL-DINOv3-ViT-L"),
        ("SurgeNet2M-DINOv1-ViT-B", "SurgeNet2M-DINOv1-ViT-B"),
    ],
)
def test_spellings(spelling, name):
    assert find_entry(spelling).name == name


def test_unknown_names_get_the_near_ones():
    with pytest.raises(ValueError, match="did you mean SurgeNet-RAMIE"):
        find_entry("SurgeNet-RAMY")
    with pytest.raises(ValueError, match="the names are SurgeNetXL, "):
        find_entry("resnet50")


def test_frames_add_up_to_what_the_authors_count():
    counts = {"SurgeNetXL": 4_711_024, "SurgeNet": 2_636_790, "SurgeNet-Small": 263_679, "SurgeNet-Public": 1_997_987}
    assert {name: find_entry(name).pretraining_frames for name in counts} == counts


def test_public_means_public():
    assert all(data.public for data in find_entry("SurgeNet-Public").pretraining_sets)
    assert "RAMIE-UMCU" in {data.name for data in find_entry("SurgeNet").pretraining_sets}


def test_records_are_consistent():
    assert len(CATALOG) == 10 + 8 + 5
    for attribute in ("name", "repo_name", "teacher_file"):
        assert len({getattr(entry, attribute) for entry in CATALOG}) == len(CATALOG)
    for entry in CATALOG:
        if not entry.is_vit:
            SurgeNetConfig(backbone=entry.backbone, activation=entry.activation)
        assert entry.normalization in NORMALIZATIONS
        # a full file must never be mistaken for a teacher file
        assert "teacher" in entry.teacher_file or entry.full_file is None
        for checksum in (entry.teacher_sha256, entry.full_sha256):
            assert checksum is None or (len(checksum) == 64 and find_by_sha256(checksum) is entry)


@pytest.mark.parametrize(
    ("pretraining", "data", "note"),
    [
        ("SurgeNetXL", "cholec80-phase", "76 of the 80"),
        ("SurgeNet-Cholec", "cholecseg8k", "76 of the 80"),
        ("SurgeNet-PVTv2", "endoscapes-cvs", "Endoscapes shares videos with Cholec80"),
        ("SurgeNet-Public", "dsad", "frames of DSAD"),
        ("SurgeNet-RAMIE", "cholec80-phase", None),
        (
            "SurgeNetXL",
            "autolaparo",
            "^it is unknown whether the YouTube videos in the pretraining",
        ),
        ("SurgeNet", "autolaparo", None),
        ("SurgeNet-Small", "cholec80-phase", "on one tenth of the frames of 76 of the 80"),
        ("SurgeNet-Small", "dsad", "on one tenth of the frames of DSAD"),
        ("SurgeNet", "cholecseg8k-9", "at least 13 of the 17.*at least one of EndoViT's validation and test videos"),
        ("SurgeNetXL", "folder", "unknown"),
        ("ImageNet1k", "cholec80-phase", None),
        ("SurgeNetXL-DINOv3-ViT-L", "cholec80-phase", "76 of the 80"),
        ("SurgeNet", "multibypass140-step", "without labels on frames of all 140 videos of MultiBypass140$"),
        ("SurgeNet-Cholec", "multibypass140-phase", None),
        (
            "SurgeNet-Cholec",
            "cholect50-tools",
            "share 45 videos with CholecT50, at least 41 of them in the pretraining",
        ),
        ("SurgeNet-RAMIE", "cholect50-tools", None),
        ("EndoViT", "cholect50-tools", "CholecT50 shares 45 of its 50 videos"),
        ("SurgeNetXL", "sarrarp50-gestures", "^it is unknown whether SurgeNetXL was pretrained on these videos$"),
        ("SurgeNet-RARP", "sarrarp50-segmentation", "^it is unknown"),
        ("SurgeNetXL", "atlas120k", "^it is unknown whether SurgeNetXL was pretrained on these videos$"),
        ("ImageNet1k", "sarrarp50-gestures", None),
        ("SurgeNet2M-DINOv3-ViT-L", "dsad", "^it is unknown whether SurgeNet2M-DINOv3-ViT-L was pretrained on these"),
        ("none (random initialization)", "cholec80-phase", None),
        ("unknown", "cholec80-phase", "unknown"),
        (None, "endoscapes", "unknown"),
        (None, "autolaparo", "unknown"),
        (None, "synthetic-phases", None),
        (
            "SurgeNetXL, continued on mine",
            "cholec80-phase",
            "76 of the 80.*; it is unknown whether .* on mine included",
        ),
        ("SurgeNetXL, continued on mine", "autolaparo", "unknown whether its pretraining on mine"),
        ("SurgeNetXL, continued on a, continued on b", "endoscapes", "shares videos.*; it is unknown.*a and b"),
        ("ImageNet1k, continued on mine", "cholec80-phase", "unknown whether its pretraining on mine"),
        ("unknown, continued on mine", "autolaparo", "origin .* is unknown .*; it is unknown whether .* mine"),
        ("DINO on mine", "autolaparo", "^it is unknown whether its pretraining on mine included these videos$"),
        ("DINO on mine, continued on more", "dsad", "on mine and more included"),
        ("DINO on SurgeNet-RAMIE", "cholec80-phase", "unknown"),
        ("none such", "cholec80-phase", "unknown"),
        ("SurgeNetXL, continued on mine", "synthetic", None),
    ],
)
def test_leakage(pretraining, data, note):
    found = leakage_note(pretraining, data)
    assert found is None if note is None else re.search(note, found)


@pytest.mark.parametrize(
    ("num_videos", "note"),
    [
        (40, "76 of the 80 videos of Cholec80, including at least 36 of these 40$"),
        (8, "at least 4 of these 8$"),
        (4, "; which 4 videos were omitted is not published$"),
        (None, "at least 36 of its 40 test videos"),
    ],
)
def test_how_many_videos_of_an_evaluation_were_surely_seen(num_videos, note):
    assert re.search(note, leakage_note("SurgeNetXL", "cholec80-phase", num_videos))


@pytest.mark.parametrize(
    ("videos", "note"),
    [
        (
            ["VID06", "VID51", "VID80", "VID42", "VID73", "VID111"],
            "share 5 videos .*evaluation, at least 1 of them in",
        ),
        (["VID06", "VID111"], "share 1 videos with this evaluation; which 4 videos were omitted is not published$"),
        (
            ["VID92", "VID96", "VID103"],
            "unknown whether SurgeNet was pretrained on these videos, which are not in Chol",
        ),
    ],
)
def test_videos_of_cholect50_that_are_not_in_cholec80(videos, note):
    assert re.search(note, leakage_note("SurgeNet", "cholect50-triplets", known_videos("cholect50-triplets", videos)))


def test_names_of_own_pretraining():
    """Test that the name of a pretraining includes the name of its start weights."""
    assert pretraining_name(RANDOM_WEIGHTS, ["a", "b"]) == "DINO on a + b"
    name = pretraining_name(pretraining_name("SurgeNetXL", ["a"]), ["b"])
    assert name == "SurgeNetXL, continued on a, continued on b"
    assert base_entry(name) is find_entry("SurgeNetXL")
    assert base_entry("DINO on SurgeNetXL") is None
    assert base_entry(None) is None
    scratch = {RANDOM_WEIGHTS: True, "DINO on a, continued on b": True, name: False, "unknown": False, None: False}
    assert {name: is_from_scratch(name) for name in scratch} == scratch
