"""Tests of the shipped protocol `quick` in miniature, and of a run that is killed."""

import importlib
import json
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pyarrow.parquet as pq
import pytest

from surgenet_hf.cli.protocol import main
from surgenet_hf.data.sets import synthetic, synthetic_phases
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.protocol.cells import cell_folder, cells_of
from surgenet_hf.protocol.definition import read_protocol
from surgenet_hf.protocol.execute import commands_of
from surgenet_hf.protocol.storage import store_protocol
from tests.protocol.test_protocol import fake_results


@pytest.mark.slow
def test_quick_in_miniature(tmp_path, monkeypatch):
    """Test the report of a CAFormer, a ResNet of timm, and a DINOv2, with one training step and the real commands."""
    few_frames = synthetic.load(num_videos=4, frames_per_video=2, size=(56, 72))
    few_phases = synthetic_phases.load(num_videos=6, length=(10, 15), size=(32, 48))
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
    for name, (_, _, module, *arguments) in commands_of(
        list(cells_of(protocol)), protocol, tmp_path, tmp_path, 0
    ).items():
        importlib.import_module(module).main(arguments)
        assert (tmp_path / "cells" / name / "results.json").is_file()
    main(["report", str(tmp_path)])
    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert len({(row["model"], row["dataset"], row["mode"]) for row in rows}) == 9
    for mode, metric in (("finetuned", "video_dice"), ("linear", "video_accuracy"), ("knn", "video_accuracy")):
        found = [row for row in rows if (row["mode"], row["metric"]) == (mode, metric)]
        assert {row["model"] for row in found} == {model.name for model in protocol.models}
        assert len({row["value"] for row in found}) > 3  # the networks and videos differ
    text = (tmp_path / "report.md").read_text()
    for title in ("Fine-tuned", "Linear", "k-NN"):
        section = text[text.index(f"## {title}") :].split("\n## ")[0 if title == "k-NN" else 1]
        for model in protocol.models:
            assert model.name in section
    for mode in protocol.modes:
        assert (tmp_path / "report" / f"{mode}-100" / "table.tex").is_file()
    assert (tmp_path / "report" / "finetuned-100" / "blobs.png").is_file()


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
from surgenet_hf.data.sets import synthetic, synthetic_phases
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.protocol import execute

execute.commands_of = lambda *args: json.load(open("commands.json"))
execute.POLL_SECONDS = 0.05
main(["run", "protocol.yaml", "--output_dir", sys.argv[1]])
"""


@pytest.mark.slow
def test_a_killed_run_gives_the_same_table(tmp_path):
    """Test SIGKILL of a run and of its cells while one is computed, and the row for row equal table after resuming."""
    (tmp_path / "protocol.yaml").write_text("{name: small, models: [A, B], datasets: [synthetic], seeds: [0, 1]}")
    (tmp_path / "cell.py").write_text(CELL)
    (tmp_path / "run.py").write_text(RUN)
    cells = list(cells_of(read_protocol(str(tmp_path / "protocol.yaml"))))

    def run(out: str, gate: bool) -> subprocess.Popen:
        commands = {}
        for cell in cells:
            results, folder = tmp_path / f"{cell.name.replace('/', '-')}.json", cell_folder(tmp_path / out, cell)
            values = {f"v{i}": (ord(cell.model.name) % 7 + i + cell.seed) / 10 for i in range(4)}
            write_results(fake_results(cell.model.name, cell, values), results)
            gate_file = tmp_path / ("cell.py" if gate else "never")
            commands[cell.name] = [sys.executable, *map(str, (tmp_path / "cell.py", folder, results, gate_file))]
        (tmp_path / "commands.json").write_text(json.dumps(commands))
        return subprocess.Popen([sys.executable, "run.py", out], cwd=tmp_path, stdout=subprocess.PIPE, text=True)

    killed = run("killed", gate=False)
    waiting = cell_folder(tmp_path / "killed", cells[1]) / "checkpoint"
    while not waiting.exists():
        assert killed.poll() is None
        time.sleep(0.05)
    processes = [psutil.Process(killed.pid), *psutil.Process(killed.pid).children(recursive=True)]
    for process in processes:
        process.kill()
    killed.wait(60)
    assert [(cell_folder(tmp_path / "killed", cell) / "results.json").exists() for cell in cells] == [1, 0, 0, 0]
    resumed, whole = (run(out, gate=True).communicate(timeout=120)[0] for out in ("killed", "whole"))
    assert "4 cells, 3 to compute" in resumed
    assert "4 cells, 4 to compute" in whole
    tables = []
    for out in ("killed", "whole"):
        main(["report", str(tmp_path / out)])
        tables.append(pq.read_table(tmp_path / out / "results.parquet"))
    assert tables[0] == tables[1]
    assert tables[0].num_rows == 4 + 4 * 4
