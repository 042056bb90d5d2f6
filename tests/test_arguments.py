from dataclasses import dataclass, field

import pytest
from transformers import TrainingArguments

from surgenet_hf.arguments import ArgumentParser


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
