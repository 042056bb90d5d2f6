"""Tests of protocols: their files, cells, execution, and report."""

import json
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from surgenet_hf.cli.protocol import main, parse_slurm
from surgenet_hf.data import DATASETS
from surgenet_hf.errors import UserError
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.evaluation.statistics import resample_weights
from surgenet_hf.protocol import execute as execution
from surgenet_hf.protocol.cells import cell_command, cell_folder, cell_state, cells_of
from surgenet_hf.protocol.collect import compare_cells, read_cells
from surgenet_hf.protocol.definition import parse_protocol, read_protocol, shipped_protocols
from surgenet_hf.protocol.execute import Resources, execute
from surgenet_hf.protocol.run_cell import run_cell
from surgenet_hf.protocol.storage import store_protocol, stored_protocol

SMALL = {"name": "small", "models": ["A", "B", "C"], "datasets": ["synthetic"], "seeds": [0, 1]}


def protocol_of(**changes):
    return parse_protocol({**SMALL, **changes}, "p.yaml")


@pytest.mark.parametrize("name", shipped_protocols())
def test_commands_of_the_shipped_protocols_are_accepted(name, tmp_path):
    """Test that the parser of each command accepts the options of its cells."""
    import importlib

    from surgenet_hf.cli.arguments import ArgumentParser

    protocol = read_protocol(name)
    parsed = 0

    class Stop(Exception):
        pass

    def stop(*args, **kwargs):
        nonlocal parsed
        parsed += 1
        raise Stop

    for cell in cells_of(protocol):
        if (cell.model.name, cell.seed) != (protocol.models[0].name, 0):
            continue
        command = cell_command(cell, protocol, tmp_path, tmp_path / "out", "weights")
        module = importlib.import_module(command[command.index("-m") + 1])
        with pytest.MonkeyPatch.context() as patch:
            original = ArgumentParser.parse_args_into_dataclasses
            patch.setattr(
                ArgumentParser,
                "parse_args_into_dataclasses",
                lambda self, args=None, original=original: stop(original(self, args)),
            )
            with pytest.raises(Stop):
                module.main(command[command.index("-m") + 2 :])
    modes = sum(len(set(protocol.modes) & set(dataset.modes)) for dataset in protocol.datasets)
    assert parsed == modes * len(protocol.fractions)


def test_a_protocol_survives_being_stored(tmp_path):
    for name in shipped_protocols():
        protocol = read_protocol(name)
        assert parse_protocol(yaml.safe_load(protocol.as_yaml()), "stored").fingerprint == protocol.fingerprint
    store_protocol(protocol_of(), tmp_path)
    store_protocol(protocol_of(description="other words"), tmp_path)
    assert stored_protocol(tmp_path).fingerprint == protocol_of().fingerprint
    with pytest.raises(UserError, match="belongs to another protocol: seeds differ"):
        store_protocol(protocol_of(seeds=[0]), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": ["endoscape"]}, "unknown dataset endoscape; did you mean endoscapes"),
        ({"modes": ["tuned"]}, "unknown mode tuned; expected finetuned, linear, knn"),
        ({"fractions": [10]}, "a fraction must be greater than 0 and at most 1, got 10"),
        ({"seeds": []}, "seeds must be a list with at least one entry"),
        ({"models": [{"name": "A"}]}, "model A has no weights; give one of model, backbone, or config"),
        ({"models": ["ORG/NAME"]}, "'ORG/NAME' is not usable. Add a `name`"),
        ({"models": ["A", "A"]}, "two models called A; give each model"),
        ({"seeds": [0, 0]}, "seeds contains a value twice"),
        ({"options": {"finetuned": {"seed": 7}}}, "seed is determined by the cell"),
        ({"options": {"knn": {"num_neighbors": 50}}}, "unknown option num_neighbors of knn; expected image_size"),
        ({"epochs": 3}, "unknown key epochs; expected name, models"),
        ({"options": {"segmentation": {}}}, "unknown key segmentation of options; expected semantic-segmentation"),
    ],
)
def test_mistakes_in_a_protocol_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        protocol_of(**changes)


def fake_results(name: str, cell, values: dict[str, float]) -> dict:
    """Return results of a cell with a Dice per video."""
    videos = sorted(values)
    return {
        "schema": "surgenet_hf.results/2",
        "task": "semantic-segmentation",
        "model": {"name": name, "type": "surgenet", "parameters": 1, "pretraining": {"name": name}},
        "seed": cell.seed,
        "data": {"name": "synthetic", "split": "validation", "frames": 10, "videos": videos, "labels": ["a", "b"]},
        "metrics": {
            "video_dice": float(np.mean(list(values.values()))),
            "per_class": {"a": {"video_dice": 0.25}, "b": {"video_dice": None}},
        },
        "per_video": {
            video: {"video_dice": value, "per_class": {"a": {"video_dice": value / 2, "pixels": 7}}}
            for video, value in values.items()
        },
        "comparisons": {},
    }


# writes results.json like a command, and appends a line for each run
SCRIPT = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]); folder.mkdir(parents=True, exist_ok=True)
with open(folder.parent / "runs", "a") as file: file.write("run\\n")
if folder.name == "seed-1" and "B" in folder.parts and not pathlib.Path(sys.argv[3]).exists():
    sys.exit("error: out of memory")
(folder / "results.json").write_text(pathlib.Path(sys.argv[2]).read_text())
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the cells of a protocol with a short script instead of the commands."""
    protocol = protocol_of(models=["A", "B"])
    cells = list(cells_of(protocol))
    (tmp_path / "script.py").write_text(SCRIPT)
    commands = {}
    for cell in cells:
        content = tmp_path / f"{cell.name.replace('/', '-')}.json"
        write_results(fake_results(cell.model.name, cell, {f"v{i}": 0.5 + cell.seed / 10 for i in range(6)}), content)
        folder = cell_folder(tmp_path / "out", cell)
        commands[cell.name] = [
            sys.executable,
            str(tmp_path / "script.py"),
            str(folder),
            str(content),
            str(tmp_path / "ok"),
        ]
    monkeypatch.setattr(execution, "commands_of", lambda *args: commands)
    monkeypatch.setattr(execution, "POLL_SECONDS", 0.05)
    return protocol, cells, commands


@pytest.mark.slow
def test_a_failed_cell_does_not_stop_the_others(tmp_path, run):
    """Test the local executor of submitit."""
    protocol, cells, _ = run
    ended = {}
    execute(
        protocol,
        cells,
        tmp_path,
        tmp_path / "out",
        Resources(jobs=2, gpus=0),
        lambda cell, s: ended.update({cell.name: s}),
    )
    states = {cell.name: cell_state(tmp_path / "out", cell) for cell in cells}
    assert ended == states
    assert [name for name, state in states.items() if state != "done"] == ["B/synthetic/finetuned/100-percent/seed-1"]
    record = json.loads((cell_folder(tmp_path / "out", cells[-1]) / "failed.json").read_text())
    assert record == {"exit_status": 1, "message": "error: out of memory"}


def test_a_cell_is_computed_once_and_a_failed_one_again(tmp_path, run):
    protocol, cells, commands = run
    out = tmp_path / "out"
    assert [run_cell(cell_folder(out, cell), commands[cell.name]) for cell in cells] == [True, True, True, False]
    table = out / "table.parquet"
    found = read_cells(cells, out)
    assert [cell.seed for cell, _ in found.values()] == [0, 1, 0]
    (tmp_path / "ok").touch()
    assert all(run_cell(cell_folder(out, cell), commands[cell.name]) for cell in cells)
    runs = (cell_folder(out, cells[-1]).parent / "runs").read_text().splitlines()
    assert len(runs) == 3  # seed 0 once, seed 1 twice
    store_protocol(protocol, out)
    main(["report", str(out)])
    once = pq.read_table(out / "results.parquet")
    main(["report", str(out)])
    assert pq.read_table(out / "results.parquet") == once
    assert not table.exists()
    rows = once.to_pylist()
    assert {(row["model"], row["seed"]) for row in rows} == {("A", 0), ("A", 1), ("B", 0), ("B", 1)}
    overall = [row for row in rows if row["class"] is None]
    assert sum(row["video"] is None for row in overall) == 4
    assert len(overall) == 4 + 4 * 6
    of_cell = [row for row in rows if row["class"] and row["model"] == "B" and row["seed"] == 1]
    found = {(row["video"], row["class"], row["metric"]): row["value"] for row in of_cell}
    assert len(of_cell) == len(found) == 2 + 6 * 2
    assert found[None, "a", "video_dice"] == 0.25
    assert found[None, "b", "video_dice"] is None
    assert found["v5", "a", "video_dice"] == 0.3
    assert found["v5", "a", "pixels"] == 7
    text = (out / "report" / "finetuned-100" / "table.tex").read_text()
    assert r"\begin{tabular}{lr}" in text
    assert r"\textbf{55.0} $\pm$ 7.1" in text  # both are the best
    assert "Fine-tuned, 100 % of the training videos" in (out / "report.md").read_text()


def test_ranks_are_those_of_challenger(tmp_path):
    """Test aggregate-then-rank over bootstrap resamples of the videos (Wiesenfarth et al. 2021) on a case by hand.

    A and C are equal on every video. B is 0.5 better on the first video, 0.25 worse on the last, and equal on the
    others. In a resample with f copies of the first video and l of the last, B is better if 2 f > l. Ties share the
    lowest rank (`ties.method = "min"`, challengeR's default).

    - 2 f > l: B has rank 1, A and C have rank 2.
    - 2 f = l: all have rank 1.
    - 2 f < l: A and C have rank 1, B has rank 3.
    """
    protocol = protocol_of(seeds=[0])
    values = {"A": [0.5] * 5, "B": [1.0, 0.5, 0.5, 0.5, 0.25], "C": [0.5] * 5}
    for cell in cells_of(protocol):
        folder = cell_folder(tmp_path, cell)
        folder.mkdir(parents=True)
        scores = {f"v{i}": value for i, value in enumerate(values[cell.model.name])}
        write_results(fake_results(cell.model.name, cell, scores), folder / "results.json")
    ((mode, fraction, comparison),) = compare_cells(protocol, read_cells(list(cells_of(protocol)), tmp_path))
    assert (mode, fraction) == ("finetuned", 1.0)
    (ranks,) = comparison.bootstrap_ranks().values()
    by_model = dict(zip(comparison.models, ranks, strict=True))
    first, last = resample_weights(5)[:, [0, 4]].T
    np.testing.assert_array_equal(by_model["B"], np.where(2 * first > last, 1, np.where(2 * first < last, 3, 1)))
    np.testing.assert_array_equal(by_model["A"], np.where(2 * first > last, 2, 1))
    np.testing.assert_array_equal(by_model["C"], by_model["A"])
    # the shares of the three cases among all 5^5 equally likely resamples, of which 10,000 are drawn
    signs = [np.sign(2 * drawn.count(0) - drawn.count(4)) for drawn in product(range(5), repeat=5)]
    pairs = list(zip(by_model["B"], by_model["A"], strict=True))
    for sign, pair in ((1, (1, 2)), (0, (1, 1)), (-1, (3, 1))):
        assert pairs.count(pair) / len(pairs) == pytest.approx(signs.count(sign) / len(signs), abs=0.02)


def test_mistakes_on_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"has no protocol\.yaml"):
        main(["report", str(tmp_path)])
    with pytest.raises(SystemExit, match="there is no protocol quik; give one of open, quick, surgenetxl, or a YAML"):
        main(["run", "quik", "--output_dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main(["start"])
    assert "expected run or report first, got start" in capsys.readouterr().err
    with pytest.raises(UserError, match="KEY=VALUE, got 'gpu'"):
        parse_slurm(["gpu"])
    assert parse_slurm(["partition=gpu", "time=60"]) == {"partition": "gpu", "time": 60}


def test_the_datasets_of_the_paper(tmp_path):
    names = {cell.dataset.name for cell in cells_of(read_protocol("surgenetxl"))}
    assert {DATASETS[name].task for name in names} == {
        "semantic-segmentation",
        "phase-recognition",
        "image-classification",
    }
    assert all(Path(name).name == name for name in names)
