"""Tests of protocols: their files, cells, execution, and report."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from surgenet_hf.cli.protocol import main, parse_slurm
from surgenet_hf.data import DATASETS, load_data
from surgenet_hf.errors import UserError
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.evaluation.statistics import resample_weights
from surgenet_hf.protocol import estimate
from surgenet_hf.protocol import execute as execution
from surgenet_hf.protocol.cells import cell_command, cell_definition, cell_folder, cell_state, cells_of
from surgenet_hf.protocol.collect import check_training_data, compare_cells, read_cells
from surgenet_hf.protocol.definition import parse_protocol, read_protocol, shipped_protocols
from surgenet_hf.protocol.execute import Resources, execute
from surgenet_hf.protocol.run_cell import run_cell
from surgenet_hf.protocol.storage import changes, start_cell, store_protocol, stored_protocol
from surgenet_hf.protocol.summary import write_report

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


@pytest.mark.parametrize("name", shipped_protocols())
def test_a_protocol_survives_being_stored(name, tmp_path):
    protocol = read_protocol(name)
    store_protocol(protocol, tmp_path)
    stored = stored_protocol(tmp_path)
    assert {cell.name: cell_definition(cell, stored) for cell in cells_of(stored)} == {
        cell.name: cell_definition(cell, protocol) for cell in cells_of(protocol)
    }


@pytest.fixture
def run_protocol(tmp_path, monkeypatch):
    """Return a function (**changes of the protocol) -> names of the computed cells, without their commands."""

    def compute(protocol, cells, data_root, output_dir, resources, report):
        for cell in cells:
            start_cell(cell, protocol, output_dir)
            results = fake_results(cell.model.name, cell, {f"v{i}": 0.5 for i in range(5)})
            cell_folder(output_dir, cell).mkdir(parents=True, exist_ok=True)
            write_results(results, cell_folder(output_dir, cell) / "results.json")
            computed.append(cell.name)

    computed: list[str] = []
    monkeypatch.setattr(execution, "execute", compute)

    def run_changed(**changes):
        computed.clear()
        (tmp_path / "p.yaml").write_text(yaml.safe_dump({**SMALL, **changes}))
        main(["run", str(tmp_path / "p.yaml"), "--output_dir", str(tmp_path / "out")])
        return list(computed)

    return run_changed


def test_a_protocol_can_grow(run_protocol, tmp_path):
    """Test that only new cells are computed, and that the report has the cells of the last protocol."""
    assert len(run_protocol()) == 6
    larger = {
        "models": ["A", "B", "C", "D"],
        "seeds": [1, 0, 2],
        "fractions": [1.0, 0.5],
        "modes": ["finetuned", "knn"],
    }
    new = run_protocol(**larger, datasets=["synthetic", "synthetic-phases"], options={"knn": {"k": 5}})
    assert len(new) == len(set(new)) == 2 * (4 * 3 * 2 + 4 * 4) - 6  # k-NN on all videos has one seed
    assert not run_protocol(models=["A", "C"])
    write_report(stored_protocol(tmp_path / "out"), tmp_path / "out", lambda *args: ([], []))
    table = pq.read_table(tmp_path / "out" / "results.parquet").to_pylist()
    assert {(row["model"], row["seed"], row["fraction"]) for row in table} == {
        (model, seed, 1.0) for model in "AC" for seed in (0, 1)
    }
    assert len({row["fingerprint"] for row in table}) == 4  # one for each cell


def test_models_that_were_trained_on_different_data_are_refused(tmp_path):
    protocol = protocol_of(models=["A", "B"])
    found = {}
    for cell in cells_of(protocol):
        training = {"train_videos": 4, "train_frames": 8 if cell.model.name == "B" and cell.seed else 16}
        found[cell_folder(tmp_path, cell) / "results.json"] = (cell, {"training": training})
    with pytest.raises(UserError, match=r"A/.*/B/.* different data: 4 videos and 16 frames against 4 videos and 8"):
        check_training_data(found)


def test_another_protocol_and_wrong_models_do_not_replace_the_stored_one(run_protocol, tmp_path):
    run_protocol()
    before = stored_protocol(tmp_path / "out")
    with pytest.raises(SystemExit, match="belongs to the protocol small, not to other; choose another"):
        run_protocol(name="other")
    with pytest.raises(SystemExit, match="nonsense"):
        run_protocol(models=[{"name": "D", "backbone": "nonsense"}])
    assert stored_protocol(tmp_path / "out") == before


def test_a_report_replaces_the_files_of_an_earlier_one(run_protocol, tmp_path):
    run_protocol()
    old = tmp_path / "out" / "report" / "knn-50" / "blobs.png"
    old.parent.mkdir(parents=True)
    old.touch()
    write_report(stored_protocol(tmp_path / "out"), tmp_path / "out", lambda *args: ([], []))
    assert [path.name for path in (tmp_path / "out" / "report").iterdir()] == ["finetuned-100"]


def test_a_changed_cell_is_refused(run_protocol, tmp_path):
    (tmp_path / "mine").mkdir()
    weights = tmp_path / "mine" / "model.safetensors"
    weights.write_bytes(b"one")
    mine = {"name": "mine", "model": str(weights.parent)}
    assert len(run_protocol(models=["A", mine])) == 4
    assert not run_protocol(models=["A", mine], options={"phase-recognition": {"learning_rate": 1.0e-3}})
    change = {"semantic-segmentation": {"learning_rate": 1.0e-3}}
    message = r"seed-0 \(and 3 more\) has another definition: options.learning_rate was not given and is now 0.001\."
    with pytest.raises(SystemExit, match=message):
        run_protocol(models=["A", mine], options=change)
    with pytest.raises(SystemExit, match=r"mine.*seed-0 .* options.image_size was not given and is now 64\."):
        run_protocol(models=["A", {**mine, "options": {"image_size": 64}}])
    weights.write_bytes(b"two")
    with pytest.raises(SystemExit, match=r"weights was [0-9a-f]+ and is now [0-9a-f]+"):
        run_protocol(models=["A", mine])
    weights.unlink()
    write_report(stored_protocol(tmp_path / "out"), tmp_path / "out", lambda *args: ([], []))  # without the weights
    store_protocol(protocol_of(models=["A"], options=change), tmp_path / "out")
    with pytest.raises(SystemExit, match=r"options.learning_rate was not given and is now 0.001\."):
        main(["report", str(tmp_path / "out")])


def test_a_failed_cell_can_be_changed(tmp_path):
    before, after = protocol_of(), protocol_of(options={"finetuned": {"per_device_train_batch_size": 2}})
    cell, changed = next(cells_of(before)), next(cells_of(after))
    start_cell(cell, before, tmp_path)
    folder = cell_folder(tmp_path, cell)
    folder.mkdir()
    (folder / "failed.json").write_text("{}")
    start_cell(cell, before, tmp_path)
    assert folder.exists()
    start_cell(changed, after, tmp_path)
    assert not folder.exists()
    assert not changes(changed, after, tmp_path)


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
        ({"datasets": ["synthetic", "synthetic"]}, "two datasets called synthetic; .* its own split_protocol"),
        ({"seeds": [0, 0]}, "seeds contains a value twice"),
        ({"options": {"finetuned": {"seed": 7}}}, "seed is determined by the cell"),
        ({"options": {"knn": {"num_neighbors": 50}}}, "unknown option num_neighbors of knn; expected image_size"),
        ({"models": [{"name": 2024, "backbone": "tiny"}]}, "name must be text, got 2024; write it as"),
        ({"datasets": [{"name": "synthetic", "split_protocol": 1}]}, "split_protocol must be text, got 1"),
        ({"datasets": [{"name": "synthetic", "modes": "knn"}]}, "modes must be a list with at least one entry"),
        ({"options": {"finetuned": None}}, "options of finetuned must have keys and values, got None"),
        ({"models": [{"name": "A", "config": {"hidden_size": 8}}]}, "model A needs a model_type of transformers"),
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
for name in ("checkpoint-2", "stage1/checkpoint-4", "features", "model"):
    (folder / name).mkdir(parents=True)
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
    for cell in cells:
        start_cell(cell, protocol, out)
    assert [run_cell(cell_folder(out, cell), commands[cell.name]) for cell in cells] == [True, True, True, False]
    table = out / "table.parquet"
    found = read_cells(cells, out)
    assert [cell.seed for cell, _ in found.values()] == [0, 1, 0]
    (tmp_path / "ok").touch()
    assert all(run_cell(cell_folder(out, cell), commands[cell.name]) for cell in cells)
    assert {path.name for path in cell_folder(out, cells[-1]).iterdir()} == {"model", "results.json", "stage1"}
    assert not list(out.rglob("checkpoint-*"))
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


# stands for submitit, which calls `checkpoint` when it receives SIGUSR2
JOB = """
import os, runpy, signal, sys
job = runpy.run_path(sys.argv[1])["CellJob"](sys.argv[2:], verbose=False)
signal.signal(signal.SIGUSR2, lambda *_: (job.checkpoint(), os._exit(0)))
job()
"""
# stands for a training, which saves a checkpoint on SIGTERM
TRAINING = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[1], "started").touch()
time.sleep(60)
"""


def test_a_cell_saves_a_checkpoint_at_the_time_limit_of_slurm(tmp_path):
    """Test that the signal that Slurm sends to all processes ends only the training, with SIGTERM."""
    command = [sys.executable, "-c", TRAINING, str(tmp_path)]
    command = [sys.executable, execution.RUNNER, str(tmp_path / "cell"), "inherit", *command]
    command = [sys.executable, "-c", JOB, str(Path(execution.RUNNER).with_name("job.py")), *command]
    with subprocess.Popen(command, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGUSR2)
        assert process.wait(30) == 0
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "cell").exists()  # it has not failed


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


def test_two_split_protocols_of_a_dataset_are_two_columns(tmp_path):
    name = "cholec80-phase"
    splits = {"32/8/40": ["v1", "v2"], "40/40": ["v3"]}
    protocol = protocol_of(datasets=[{"name": name, "split_protocol": split} for split in splits], seeds=[0])
    for cell in cells_of(protocol):
        results = fake_results(cell.model.name, cell, dict.fromkeys(splits[cell.dataset.split_protocol], 0.5))
        cell_folder(tmp_path, cell).mkdir(parents=True)
        write_results(results, cell_folder(tmp_path, cell) / "results.json")
    ((_, _, comparison),) = compare_cells(protocol, read_cells(list(cells_of(protocol)), tmp_path))
    assert [column.data for column in comparison.columns] == ["synthetic (32/8/40)", "synthetic (40/40)"]


def test_the_estimate_times_steps_only(tmp_path, monkeypatch):
    """Test that the short trainings neither evaluate nor save, and that hours follow from the number of steps."""
    sizes = {"synthetic": {"num_videos": 2, "frames_per_video": 4, "size": (32, 32)}}
    sizes["synthetic-phases"] = {"num_videos": 3, "length": (21, 21), "size": (32, 32)}
    loaded = {name: load_data(name, None, **options) for name, options in sizes.items()}
    monkeypatch.setattr(estimate, "load_data", lambda name, data_dir: loaded[name])
    training = {"image_size": 32, "num_train_epochs": 3, "per_device_train_batch_size": 2, "eval_strategy": "epoch"}
    protocol = protocol_of(
        models=[{"name": "A", "backbone": "tiny"}],
        datasets=["synthetic", "synthetic-phases"],
        modes=["finetuned", "knn"],
        fractions=[0.5, 1.0],
        seeds=[0],
        options={"semantic-segmentation": training, "phase-recognition": training},
    )
    cells = list(cells_of(protocol))
    hours = estimate.estimate_hours(protocol, cells, tmp_path, tmp_path / "timed", Resources())
    assert not [path for path in (tmp_path / "timed" / "cells").rglob("*") if path.is_file()]
    assert {name for name, value in hours.items() if value is None} == {cell.name for cell in cells if cell.is_probe}
    small, large = (hours[f"A/synthetic/finetuned/{percent}-percent/seed-0"] for percent in (50, 100))
    assert 0 < large == pytest.approx(2 * small)  # 3 epochs of 1 and of 2 steps
    first = "A/synthetic-phases/finetuned/100-percent/seed-0"
    assert hours[first] > 0
    assert estimate.steps(next(cell for cell in cells if cell.name == first), protocol, 100) == 150


def test_mistakes_on_the_command_line(tmp_path, capsys):
    with pytest.raises(SystemExit, match=r"has no protocol\.yaml"):
        main(["report", str(tmp_path)])
    with pytest.raises(
        SystemExit, match="there is no protocol quik; give one of open, quick, quick-endoscapes, surgenetxl, or a YAML"
    ):
        main(["run", "quik", "--output_dir", str(tmp_path / "out")])
    for option, least in (("--jobs", 1), ("--gpus", 0)):
        with pytest.raises(SystemExit, match=f"{option} must be at least {least}, got -1"):
            main(["run", "quick", "--output_dir", str(tmp_path / "out"), option, "-1"])
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
