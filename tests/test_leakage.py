"""Tests of leakage records, which fine-tuning writes, every save keeps, and evaluations report."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from transformers import AutoConfig

from surgenet_hf import (
    SurgeNetBackbone,
    SurgeNetForImageClassification,
    SurgeNetForPhaseRecognition,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from surgenet_hf.checkpoints.catalog import RANDOM_WEIGHTS
from surgenet_hf.data import SurgicalData
from surgenet_hf.leakage import Leakage, leakage_report, record_finetuning, start_record
from tests.checkpoints.files import tiny

UNRECORDED = "the training videos of this model are unknown (not recorded)"


@pytest.fixture(autouse=True)
def hf_home(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hf_home"))


def data_of(name, public=True, protocol="official", **splits):
    rows = {split: [{"video": video} for video in videos] for split, videos in splits.items()}
    return SurgicalData(
        name,
        "phase-recognition",
        ("a",),
        ((0, 0, 0),),
        rows,
        problem_type="single_label_classification",
        frames_per_second=1.0,
        videos_are_public=public,
        split_protocol=protocol,
    )


@pytest.fixture
def config():
    """Return the config of random weights that were never trained."""
    config = tiny(num_labels=3)
    config.pretraining = {"name": RANDOM_WEIGHTS}
    config.finetuning = []
    return config


CHOLEC80 = data_of(
    "cholec80-phase", train=["video12", "video13", "video14", "video15"], validation=["video33"], test=["video41"]
)


@pytest.mark.parametrize(
    ("name", "video", "other"),
    [
        ("cholec80-tools", "video12", "video52"),
        ("cholecseg8k", "video12", "video52"),
        ("cholecseg8k-9", "video12", "video52"),
        ("cholect50", "VID12", "VID111"),
    ],
)
def test_the_same_video_in_another_data_set(config, name, video, other):
    record_finetuning(config, CHOLEC80, True)
    report = leakage_report(config, data_of(name, test=[video, other]), "test")
    assert report == Leakage(f"1 of 2 videos were used to train this model ({video})", (video,), ())
    assert leakage_report(config, data_of(name, test=[other]), "test") == Leakage(None, (), ())


def test_a_note_lists_at_most_three_videos(config):
    record_finetuning(config, CHOLEC80, True)
    note = leakage_report(config, CHOLEC80, "train").note
    assert note == "4 of 4 videos were used to train this model (video12, video13, video14, ...)"


def test_endoscapes_and_its_cvs_frames_share_videos(config):
    record_finetuning(config, data_of("endoscapes", train=["7"]), False)
    assert leakage_report(config, data_of("endoscapes-cvs", train=["7", "8"]), "train").trained == ("7",)


def test_the_split_that_selected_the_checkpoint(config):
    record_finetuning(config, CHOLEC80, True)
    report = leakage_report(config, CHOLEC80, "validation")
    assert report.note == "1 of 1 videos were used to select its checkpoint (video33), so the result is optimistic"
    assert (report.trained, report.selected) == ((), ("video33",))


def test_without_selection_validation_videos_are_clean(config):
    record_finetuning(config, CHOLEC80, False)
    assert config.finetuning[0]["selection_videos"] == []
    assert leakage_report(config, CHOLEC80, "validation") == Leakage(None, (), ())


@pytest.mark.parametrize(
    ("trained_on", "evaluated_on", "note"),
    [
        (("cholec80-phase", True), ("autolaparo", True), None),
        (("autolaparo", True), ("dsad", True), None),
        (("synthetic", True), ("synthetic-phases", True), None),
        (("synthetic", True), ("dsad", True), None),
        (("cholec80-phase", True), ("endoscapes", True), "fine-tuning on cholec80-phase included"),
        (("endoscapes-cvs", True), ("cholecseg8k-8", True), "fine-tuning on endoscapes-cvs included"),
        (("folder", False), ("cholecseg8k", True), "fine-tuning on folder included"),
        (("cholec80-phase", True), ("videos", False), "fine-tuning on cholec80-phase included"),
        (("folder", False), ("videos", False), None),
    ],
)
def test_other_data_is_clean_only_where_that_can_be_told(config, trained_on, evaluated_on, note):
    record_finetuning(config, data_of(*trained_on, train=["video01"]), False)
    note = note and f"it is unknown whether its {note} these videos"
    assert leakage_report(config, data_of(*evaluated_on, test=["video02"]), "test") == Leakage(note, (), ())


def test_names_of_own_videos_stay_out_of_config_and_note(config, tmp_path):
    own = data_of("folder", False, train=["Jane_Doe_1951", "Richard_Roe"], validation=["Max_Power"])
    record_finetuning(config, own, True)
    config.save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text()
    assert not any(part in saved for part in ("Jane", "Doe", "Roe", "Power"))
    assert [video.split(":")[0] for video in json.loads(saved)["finetuning"][0]["train_videos"]] == ["own", "own"]
    report = leakage_report(AutoConfig.from_pretrained(tmp_path), own, "train")
    assert report.note == "2 of 2 videos were used to train this model (matched by name)"
    assert report.trained == ("Jane_Doe_1951", "Richard_Roe")
    # under another name of the dataset: frames with masks versus videos with phases
    assert leakage_report(config, data_of("videos", False, test=["Max_Power"]), "test").selected == ("Max_Power",)


def test_own_videos_hashed_elsewhere_are_unknown(config, monkeypatch, tmp_path):
    own = data_of("folder", False, train=["a"])
    record_finetuning(config, own, False)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "another_machine"))
    report = leakage_report(config, own, "train")
    note = "it is unknown whether its fine-tuning on folder included these videos (their hashes have another salt)"
    assert report == Leakage(note, (), ())


def test_what_is_not_recorded_is_unknown(config):
    config.finetuning = None
    assert leakage_report(config, CHOLEC80, "test").note == UNRECORDED
    # a recorded training does not make it known, either
    config.architectures = ["SurgeNetForImageClassification"]
    start_record(config)
    record_finetuning(config, CHOLEC80, False)
    assert leakage_report(config, CHOLEC80, "test").note == UNRECORDED
    assert leakage_report(config, CHOLEC80, "train").note.endswith(f"; {UNRECORDED}")


def test_a_backbone_without_head_has_no_earlier_training(config):
    config.finetuning, config.architectures = None, ["SurgeNetModel"]
    record_finetuning(config, CHOLEC80, False)
    assert [run["dataset"] for run in config.finetuning] == ["cholec80-phase"]


def test_pretraining_is_part_of_the_note(config):
    config.pretraining = {"name": "SurgeNetXL, continued on mine", "base": {"name": "SurgeNetXL"}, "data": ["mine"]}
    record_finetuning(config, CHOLEC80, True)
    test = data_of("cholec80-phase", test=["video12", *(f"video{i}" for i in range(42, 81))])
    trained, pretrained, own = leakage_report(config, test, "test").note.split("; ")
    assert trained == "1 of 40 videos were used to train this model (video12)"
    assert pretrained.startswith("SurgeNetXL was pretrained without labels on frames of 76 of the 80")
    assert pretrained.endswith("including at least 36 of these 40")
    assert own == "it is unknown whether its pretraining on mine included these videos"


def test_models_of_other_families(config):
    from transformers import SegformerConfig

    other = SegformerConfig()
    expected = "the origin of the backbone's weights is unknown (not recorded)"
    assert leakage_report(other, CHOLEC80, "test").note == f"{UNRECORDED}; {expected}"
    record_finetuning(other, CHOLEC80, True)
    assert leakage_report(other, CHOLEC80, "train").trained == ("video12", "video13", "video14", "video15")


@pytest.mark.parametrize(
    ("model_class", "base_class"),
    [(SurgeNetForImageClassification, SurgeNetModel), (SurgeNetForSemanticSegmentation, SurgeNetBackbone)],
)
def test_the_record_survives_saving_and_grows_over_stages(config, model_class, base_class, tmp_path):
    record_finetuning(config, CHOLEC80, True)
    record_finetuning(config, CHOLEC80, True)  # a resumed run
    assert len(config.finetuning) == 1
    model_class(config).save_pretrained(tmp_path / "one")
    again = model_class.from_pretrained(tmp_path / "one")
    record_finetuning(again.config, data_of("autolaparo", train=["01"]), False)
    again.save_pretrained(tmp_path / "two")

    base = base_class.from_pretrained(tmp_path / "two")  # for another head on these weights
    base.save_pretrained(tmp_path / "three")
    loaded = AutoConfig.from_pretrained(tmp_path / "three")
    assert [run["dataset"] for run in loaded.finetuning] == ["cholec80-phase", "autolaparo"]
    assert loaded.finetuning[0] == {
        "dataset": "cholec80-phase",
        "split_protocol": "official",
        "train_videos": ["cholec80:video12", "cholec80:video13", "cholec80:video14", "cholec80:video15"],
        "selection_videos": ["cholec80:video33"],
    }


def test_the_record_of_a_phase_model(config, tmp_path):
    """Test that a temporal model extends the record of the frame classifier of stage 1."""
    record_finetuning(config, data_of("cholec80-tools", train=["video01"]), False)
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "stage1")
    model = SurgeNetForPhaseRecognition.from_backbone(tmp_path / "stage1", num_labels=3, num_layers=2)
    record_finetuning(model.config, CHOLEC80, True)
    model.save_pretrained(tmp_path / "stage2")
    loaded = SurgeNetForPhaseRecognition.from_pretrained(tmp_path / "stage2").config
    assert [run["dataset"] for run in loaded.finetuning] == ["cholec80-tools", "cholec80-phase"]
    test = data_of("cholec80-phase", test=["video01", "video12", "video33", "video80"])
    report = leakage_report(loaded, test, "test")
    assert (report.trained, report.selected) == (("video01", "video12"), ("video33",))


def test_the_record_survives_as_remote_code(config, tmp_path, monkeypatch):
    """Test that the flat files that accompany a model keep the record without this package's registration."""
    from surgenet_hf.image_processing import build_image_processor
    from surgenet_hf.publishing.prepare import prepare_finetuned

    record_finetuning(config, CHOLEC80, True)
    SurgeNetForImageClassification(config).save_pretrained(tmp_path / "model")
    build_image_processor(image_size=32).save_pretrained(tmp_path / "model")
    prepare_finetuned(tmp_path / "model", "me/mine", tmp_path / "repository")
    card = Path(tmp_path, "repository", "README.md").read_text()
    assert "Fine-tuned on 4 videos of cholec80-phase (split protocol: official); 1 videos were used to select" in card
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    remote = get_class_from_dynamic_module("configuration_surgenet.SurgeNetConfig", str(tmp_path / "repository"))
    assert remote.from_pretrained(tmp_path / "repository").finetuning == config.finetuning
