import json

import pytest
import torch

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.checkpoints.catalog import UPSTREAM_REPO, find_entry
from surgenet_hf.cli.inspect import main
from tests.checkpoints.files import original, save_dino, tiny


def test_full_dino_file(tmp_path, capsys):
    teacher = original(SurgeNetModel, tiny())
    save_dino(
        tmp_path / "full.pth", teacher, teacher, {"lr": 0.0005, "data_mean": [0.4, 0.3, 0.2], "arch": "caformer"}
    )
    main([str(tmp_path / "full.pth"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == "full DINO checkpoint"
    assert (found["backbone"], found["activation"], found["epoch"]) == ("caformer_s18", "relu", 50)
    assert found["tensors"] == len(teacher)
    assert found["parameters"] == sum(tensor.numel() for tensor in teacher.values())
    assert found["args"] == {"arch": "caformer", "data_mean": [0.4, 0.3, 0.2], "lr": 0.0005}
    assert found["dino_head"] == {"layers": [2, 4], "out_dim": 3, "parameters": 11}
    assert found["center"]["size"] == 3
    assert found["published_as"] is None
    main([str(tmp_path / "full.pth"), "--network", "student"])
    printed = capsys.readouterr().out
    assert "module.backbone." in printed
    assert "lr                        0.0005" in printed


def test_segmentation_file(tmp_path, capsys):
    torch.save(original(SurgeNetForSemanticSegmentation, tiny("pvt_v2_b2", num_labels=7)), tmp_path / "mine.pth")
    main([str(tmp_path / "mine.pth")])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["backbone"] == "pvt_v2_b2"
    assert lines["head"] == "semantic-segmentation"
    assert lines["num_labels"] == "7"


def test_name_of_the_catalogue(hub, client, tmp_path, capsys):
    entry = find_entry("SurgeNet-RARP")
    torch.save(original(SurgeNetModel, tiny()), tmp_path / "file.pth")
    hub.add_files(UPSTREAM_REPO, {entry.teacher_file: tmp_path / "file.pth"})
    main(["--json", "surgenet-rarp"])
    assert json.loads(capsys.readouterr().out)["file"].endswith(entry.teacher_file)


def test_other_network_is_described_too(tmp_path, capsys):
    torch.save({"conv1.weight": torch.ones(2, 2)}, tmp_path / "other.pth")
    main([str(tmp_path / "other.pth"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["backbone"] is None
    assert "none of the backbones" in found["problem"]
    assert found["parameters"] == 4


@pytest.mark.parametrize(("argument", "message"), [("no.pth", "no.pth is not a file"), ("SurgeNetY", "did you mean")])
def test_errors(argument, message):
    with pytest.raises(SystemExit, match=message):
        main([argument])
