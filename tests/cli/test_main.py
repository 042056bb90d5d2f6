"""Tests of the `surgenet` command and of properties that all commands share."""

import importlib
import subprocess
import sys

import pytest
import yaml

import surgenet_cli


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], ["nonsense"]])
def test_the_list_of_commands_needs_no_heavy_import(argv):
    code = f"""
import sys, surgenet_cli
try:
    surgenet_cli.main({argv!r})
except SystemExit:
    pass
assert not {{"torch", "transformers", "numpy", "surgenet_hf"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_unknown_command_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit, match="2"):
        surgenet_cli.main(["evaluat"])
    assert "unknown command 'evaluat'. Did you mean evaluate?" in capsys.readouterr().err


@pytest.mark.parametrize("name", surgenet_cli.COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        surgenet_cli.main([name, "--help"])
    text = capsys.readouterr().out
    assert f"usage: surgenet {name}" in text
    assert "--config CONFIG" in text


@pytest.mark.slow
def test_imports_of_the_package_and_of_the_help():
    """Test what a new process imports.

    The package imports nothing beyond transformers and timm. --help imports no training code beyond TrainingArguments,
    which itself imports torch, transformers, and accelerate.
    """
    code = """
import sys
import timm, torch, torchvision, transformers
from transformers import AutoBackbone, AutoConfig, AutoModel, PreTrainedModel, modeling_outputs
from transformers.models.auto import modeling_auto
before = {name.partition(".")[0] for name in sys.modules}
import surgenet_hf
more = {name.partition(".")[0] for name in sys.modules} - before - {"tokenizers"}
assert more == {"surgenet_hf"}, more
import surgenet_cli
for name in ("finetune-phase", "pretrain"):
    try:
        surgenet_cli.main([name, "--help"])
    except SystemExit:
        pass
    heavy = {"datasets", "matplotlib", "sklearn", "av", "gradio", "transformers.trainer"} & sys.modules.keys()
    assert not heavy, (name, heavy)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == 2


@pytest.mark.slow
def test_options_of_a_file_are_overridden_and_saved(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("dataset: synthetic\nnum_frames: 2\nseed: 1\nsplit: validation\n")
    output = tmp_path / "samples.png"
    show_data = importlib.import_module("surgenet_hf.cli.show_data").main
    show_data(["--config", str(tmp_path / "run.yaml"), "--split", "train", "--output", str(output)])
    assert output.exists()
    (tmp_path / "run.yaml").write_text("dataset: synthetic\nframes: 2\n")
    with pytest.raises(SystemExit, match="2"):
        show_data(["--config", str(tmp_path / "run.yaml")])
    assert "run.yaml: unknown option 'frames'" in capsys.readouterr().err


def test_the_resolved_options_reproduce_a_run(tmp_path):
    compare = importlib.import_module("surgenet_hf.cli.arguments")
    evaluation = importlib.import_module("surgenet_hf.cli.evaluate").EvaluationArguments
    parser = compare.ArgumentParser(evaluation)
    (first,) = parser.parse_args_into_dataclasses(["--model_name_or_path", "m", "--output_dir", str(tmp_path)])
    parser.save_resolved(tmp_path)
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["per_device_eval_batch_size"] == 8
    (second,) = parser.parse_args_into_dataclasses(["--config", str(tmp_path / "run.yaml")])
    assert first == second


def test_renamed_options_still_work_with_a_warning(tmp_path, caplog):
    arguments = importlib.import_module("surgenet_hf.cli.arguments")
    options = importlib.import_module("surgenet_hf.finetuning.arguments").ModelArguments
    (args,) = arguments.ArgumentParser(options).parse_args_into_dataclasses(["--config_name", "tiny"])
    assert args.backbone == "tiny"
    assert "config_name is now called backbone" in caplog.text


def test_only_user_errors_end_in_one_line():
    from surgenet_hf.cli.arguments import command
    from surgenet_hf.errors import UserError

    def fail(error):
        @command
        def main(argv=None):
            raise error

        return main

    with pytest.raises(SystemExit, match=r"^error: no such folder$"):
        fail(UserError("no such folder"))([])
    with pytest.raises(ValueError, match="a bug"):
        fail(ValueError("a bug"))([])


@pytest.mark.parametrize(
    "name", ["finetune_phase", "finetune_segmentation", "pretrain", "plot_embeddings", "evaluate"]
)
def test_saved_options_can_be_given_again(name, tmp_path):
    """Test that saved options can be passed again, including None, lists, and non-default values."""
    from surgenet_hf.cli import evaluate, plot_embeddings
    from surgenet_hf.cli.arguments import ArgumentParser
    from surgenet_hf.finetuning.arguments import OPTIONS, DataArguments
    from surgenet_hf.pretraining import arguments as pretraining

    model, data = ["--model_name_or_path", "m"], ["--dataset", "synthetic"]
    types, argv = {
        "finetune_phase": (OPTIONS["phase-recognition"], [*model, *data, "--max_steps", "3", "--bf16"]),
        "finetune_segmentation": (OPTIONS["semantic-segmentation"], [*model, *data, "--lr_scheduler_type", "linear"]),
        "pretrain": (
            (pretraining.PretrainingArguments, pretraining.FrameArguments, pretraining.CropConfig),
            [*data, "--local_crops_scale", "0.1", "0.3"],
        ),
        "plot_embeddings": ((plot_embeddings.EmbeddingArguments,), [*model, *data]),
        "evaluate": ((evaluate.EvaluationArguments, DataArguments), [*model, *data]),
    }[name]
    parser = ArgumentParser(types)
    first = parser.parse_args_into_dataclasses([*argv, "--output_dir", str(tmp_path)])
    parser.save_resolved(tmp_path)
    second = ArgumentParser(types).parse_args_into_dataclasses(["--config", str(tmp_path / "run.yaml")])
    assert list(map(repr, first)) == list(map(repr, second))


def test_null_in_a_file_and_none_in_python_unset_an_option(tmp_path):
    from surgenet_hf.finetuning.arguments import OPTIONS
    from surgenet_hf.options import OptionParser

    options = {"dataset": "synthetic", "backbone": "tiny", "output_dir": str(tmp_path), "save_total_limit": None}
    assert OptionParser(OPTIONS["image-classification"]).parse_options(options)[-1].save_total_limit is None
