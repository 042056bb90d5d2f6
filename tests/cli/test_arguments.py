from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.finetuning.arguments import SurgeNetTrainingArguments


@dataclass
class Own:
    size: int = field(metadata={"help": "A number."})
    fast: bool = False


def test_options_go_to_their_dataclasses(tmp_path):
    parser = ArgumentParser((Own, TrainingArguments))
    own, training = parser.parse_args_into_dataclasses(
        f"--size 3 --fast --output_dir {tmp_path} --max-steps 7".split()
    )
    assert own == Own(3, True)
    assert (training.output_dir, training.max_steps) == (str(tmp_path), 7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--size 3 --nonsense 1", "unrecognized arguments: --nonsense 1"),
        ("--fast", "the following arguments are required: --size"),
        ("--size large", "argument --size: invalid int value: 'large'"),
    ],
)
def test_mistakes_are_said_in_one_line(capsys, given, message):
    with pytest.raises(SystemExit) as ended:
        ArgumentParser((Own, TrainingArguments), prog="do.py").parse_args_into_dataclasses(given.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"do.py: error: {message}; --help lists the options\n"


TOKEN = "hf_" + "AbCdEfGh01" * 4


@pytest.mark.parametrize("given", [["--hub_token", TOKEN], [f"--hub_token={TOKEN}"], ["--hub-token", TOKEN]])
def test_a_token_on_the_command_line_is_refused_and_not_repeated(capsys, given, tmp_path):
    with pytest.raises(SystemExit) as ended:
        ArgumentParser((Own, TrainingArguments)).parse_args_into_dataclasses(
            ["--size", "3", "--output_dir", str(tmp_path), *given]
        )
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "use `hf auth login` or HF_TOKEN" in message
    assert TOKEN not in message


def test_a_mistyped_token_option_does_not_repeat_the_token(capsys):
    with pytest.raises(SystemExit):
        ArgumentParser(Own).parse_args_into_dataclasses(["--size", "3", "--hub_token", TOKEN])
    assert TOKEN not in capsys.readouterr().err


def test_a_token_in_the_arguments_of_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="use `hf auth login` or HF_TOKEN"):
        SurgeNetTrainingArguments(output_dir=str(tmp_path), hub_token=TOKEN)
