import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from surgenet_hf import SurgeNetConfig, SurgeNetForSemanticSegmentation
from surgenet_hf.cli.convert import main
from tests.checkpoints.files import original, tiny


@pytest.mark.slow
def test_full_size_file(tmp_path, capfd):
    torch.save(
        original(SurgeNetForSemanticSegmentation, SurgeNetConfig(backbone="convnextv2_tiny", num_labels=2)),
        tmp_path / "mine.pth",
    )
    (tmp_path / "classes.txt").write_text("liver\nfat\n\n")
    command = f"--checkpoint {tmp_path}/mine.pth --output_dir {tmp_path}/out --labels {tmp_path}/classes.txt"
    main(command.split())
    printed = capfd.readouterr()
    assert "does not record the normalization" in printed.err
    assert "pretraining: unknown" in printed.out
    exec(printed.out.split("load it with: ")[1], {})  # the printed code runs
    model = AutoModelForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert model.config.id2label == {0: "liver", 1: "fat"}
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert list(processor.image_mean) == [0.46888983, 0.29536288, 0.28712815]
    assert processor.do_convert_rgb


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--checkpoint {tmp}/no.pth", "no.pth is not a file"),
        ("--checkpoint {tmp}/tiny.pth", "does not match caformer_s18"),
        ("--checkpoint {tmp}/tiny.pth --labels {tmp}/none.txt", "none.txt"),
    ],
)
def test_errors_have_no_traceback(arguments, message, tmp_path):
    torch.save(original(SurgeNetForSemanticSegmentation, tiny()), tmp_path / "tiny.pth")
    with pytest.raises(SystemExit) as caught:
        main([*arguments.format(tmp=tmp_path).split(), "--output_dir", str(tmp_path / "out")])
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()
