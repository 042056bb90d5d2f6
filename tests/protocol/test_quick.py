"""Tests of the shipped protocol `quick` in miniature, and of a run that is killed."""

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from surgenet_hf.cli.protocol import main
from surgenet_hf.data.sets import synthetic, synthetic_phases
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.protocol import execute as execution
from surgenet_hf.protocol.cells import cell_folder, cells_of
from surgenet_hf.protocol.definition import read_protocol
from surgenet_hf.protocol.execute import commands_of
from surgenet_hf.protocol.storage import start_cell, store_protocol
from tests.protocol.test_protocol import fake_results


@pytest.mark.slow
def test_quick_in_miniature(tmp_path, monkeypatch):
    """Test the report of a CAFormer, a ResNet of timm, and a DINOv2, with one training step and the real commands."""
    few_frames = synthetic.load(num_videos=4, frames_per_video=2, size=(56, 72))
    few_phases = synthetic_phases.load(num_videos=6, length=(21, 24), size=(32, 48))
    monkeypatch.setattr(synthetic, "load", lambda data_dir=None: few_frames)
    monkeypatch.setattr(synthetic_phases, "load", lambda data_dir=None: few_phases)
    protocol = read_protocol("quick")
    short = {"max_steps": 1, "eval_steps": 1, "save_strategy": "no", "load_best_model_at_end": False, "image_size": 56}
    masks, phases = protocol.datasets
    protocol = replace(
        protocol,
        seeds=(0,),
        datasets=(replace(masks, modes=("finetuned",)), replace(phases, modes=("linear", "knn"))),
        options={"semantic-segmentation": short, "knn": {"image_size": 56}, "linear": {"image_size": 56}},
    )
    store_protocol(protocol, tmp_path)
    cells = list(cells_of(protocol))
    commands = commands_of(cells, protocol, tmp_path, tmp_path, 0)
    for cell in cells:
        start_cell(cell, protocol, tmp_path)
        _, _, module, *arguments = commands[cell.name]
        importlib.import_module(module).main(arguments)
    main(["report", str(tmp_path)])
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len({(row["model"], row["dataset"], row["mode"]) for row in rows}) == 9
    for mode, metric in (("finetuned", "video_dice"), ("linear", "accuracy"), ("knn", "accuracy")):
        found = [row for row in rows if (row["mode"], row["metric"]) == (mode, metric)]
        assert {row["model"] for row in found} == {model.name for model in protocol.models}
        assert len({row["value"] for row in found if row["video"] is None and row["class"] is None}) == 3
    sections = (tmp_path / "report.md").read_text().split("\n## ")[1:-1]
    assert [text.splitlines()[0] for text in sections] == [
        f"{title}, 100 % of the training videos"
        for title in ("Fine-tuned", "Frozen with a linear head", "Frozen, k-NN")
    ]
    assert all(f"| {model.name} |" in text for text in sections for model in protocol.models)
    for mode in protocol.modes:
        assert (tmp_path / "report" / f"{mode}-100" / "table.tex").is_file()


# a cell of a few files: it waits in the middle until it may continue, and ignores what an earlier call has written
CELL = """
import json, pathlib, sys, time
folder, source, gate = map(pathlib.Path, sys.argv[1:])
folder.mkdir(parents=True, exist_ok=True)
(folder / "checkpoint").write_text("partial")
while "seed-1" in folder.name and not gate.exists(): time.sleep(0.05)
(folder / "results.json").write_text(source.read_text())
"""

# a run of the protocol in a process of its own, with the cells above
RUN = """
import json, sys
from surgenet_hf.cli.protocol import main
from surgenet_hf.protocol import execute

execute.commands_of = lambda *args: json.load(open("commands.json"))
main(["run", "protocol.yaml", "--output_dir", "killed"])
"""


@pytest.mark.slow
def test_a_killed_run_gives_the_same_table(tmp_path, monkeypatch, capsys):
    """Test SIGKILL of a run and of its cells while one is computed, and the row for row equal table after resuming."""
    monkeypatch.chdir(tmp_path)
    Path("protocol.yaml").write_text("{name: small, models: [A, B], datasets: [synthetic], seeds: [0, 1]}")
    Path("cell.py").write_text(CELL)
    cells = list(cells_of(read_protocol("protocol.yaml")))

    def commands_of(out: str, gate: str) -> dict:
        commands = {}
        for cell in cells:
            results, folder = tmp_path / f"{cell.name.replace('/', '-')}.json", cell_folder(tmp_path / out, cell)
            values = {f"v{i}": (ord(cell.model.name) % 7 + i + cell.seed) / 10 for i in range(4)}
            write_results(fake_results(cell.model.name, cell, values), results)
            commands[cell.name] = [sys.executable, *map(str, (tmp_path / "cell.py", folder, results, gate))]
        return commands

    Path("commands.json").write_text(json.dumps(commands_of("killed", "never")))
    killed = subprocess.Popen([sys.executable, "-c", RUN])
    waiting = cell_folder(Path("killed"), cells[1]) / "checkpoint"
    while not waiting.exists():
        assert killed.poll() is None
        time.sleep(0.05)
    for process in (psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)):
        process.kill()
    killed.wait(60)
    assert [(cell_folder(Path("killed"), cell) / "results.json").exists() for cell in cells] == [1, 0, 0, 0]

    tables = []
    for out, left in (("killed", 3), ("whole", 4)):
        monkeypatch.setattr(execution, "commands_of", lambda *args, out=out: commands_of(out, str(tmp_path)))
        main(["run", "protocol.yaml", "--output_dir", out])
        assert f"4 cells, {left} to compute" in capsys.readouterr().out
        main(["report", out])
        tables.append(pq.read_table(Path(out, "results.parquet")))
    assert tables[0] == tables[1]
    assert {(row["model"], row["seed"]) for row in tables[0].to_pylist()} == {(x, y) for x in "AB" for y in (0, 1)}
