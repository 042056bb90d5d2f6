"""Helpers for tests of spaces/surgenet-demo: its modules, folders of tiny models, and the app as a process."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import torch

from surgenet_hf import (
    SurgeNetForImageClassification,
    SurgeNetForPhaseRecognition,
    SurgeNetForSemanticSegmentation,
    SurgeNetModel,
)
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.data.sets.endoscapes_cvs import LABELS as CRITERIA
from surgenet_hf.image_processing import build_image_processor

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
ROOT = Path(__file__).parents[2]
DEMO = ROOT / "spaces" / "surgenet-demo"
sys.path.insert(0, str(DEMO))

HOSTILE = "<img src=x onerror=\"document.title='owned'\">${document.title=1}"  # used as a class name
LABELS = ("background", "liver", "tool", HOSTILE)
# records every connection of the process to another machine
WATCH = """
import os, sys
def watch(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = args[1][0]
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host)
    if not host.startswith("127.") and host not in ("localhost", "::1", "0.0.0.0", "", "None"):
        with open(os.environ["WATCH_FILE"], "a") as file:
            file.write(f"{event} {host}\\n")
sys.addaudithook(watch)
"""


def named(labels) -> dict:
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return {"num_labels": len(labels), **names}


def save(model, folder: Path, image_size: int = 64) -> Path:
    model.save_pretrained(folder)
    build_image_processor(image_size=image_size).save_pretrained(folder)
    return folder


def save_models(root: Path, tiny_config) -> SimpleNamespace:
    """Save tiny random models and return their folders.

    `segmentation` predicts several classes, one of which has a hostile name.
    """
    torch.manual_seed(0)
    segmentation = SurgeNetForSemanticSegmentation(tiny_config(**named(LABELS))).eval()
    with torch.no_grad():  # a random head predicts one class everywhere; spread its predictions
        for parameter in segmentation.decode_head.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    cvs = tiny_config(**named(CRITERIA), problem_type="multi_label_classification")
    steps = tiny_config(**named(("cut", "sew", "wait")), problem_type="single_label_classification")
    phases = SurgeNetPhaseConfig(
        backbone_config=tiny_config(), num_stages=1, num_layers=3, num_feature_maps=8, **named(("cut", "sew", "wait"))
    )
    slow = tiny_config(**named(LABELS), pyramid_channels=256, segmentation_channels=256)
    return SimpleNamespace(
        segmentation=save(segmentation, root / "organs"),
        slow=save(SurgeNetForSemanticSegmentation(slow), root / "slow", 384),  # about a second per frame
        cvs=save(SurgeNetForImageClassification(cvs), root / "cvs"),
        steps=save(SurgeNetForImageClassification(steps), root / "steps"),
        phases=save(SurgeNetForPhaseRecognition(phases), root / "phases"),
        backbone=save(SurgeNetModel(tiny_config()), root / "backbone"),
    )


def start(command: list[str], folder: Path) -> SimpleNamespace:
    """Start the demo in a separate process and wait until it answers.

    Returns:
        Namespace with url, port, process, pid, `files` (folder of its temporary files), `elsewhere` (file that lists
        other hosts it contacted), and `log` (file).
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    working = folder / "working"  # neither the checkout nor the folder of the uploaded files
    working.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(WATCH)
    watched = folder / "elsewhere.txt"
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hf"),
        "GRADIO_TEMP_DIR": str(folder / "files"),
        "PYTHONPATH": os.pathsep.join((str(folder), str(DEMO), str(ROOT))),
        "WATCH_FILE": str(watched),
        "NO_PROXY": "127.0.0.1,localhost",
        "GRADIO_SERVER_PORT": str(port),
    }
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=output, stderr=output, cwd=working
        )
    url = f"http://127.0.0.1:{port}/"
    for _ in range(600):
        try:
            urllib.request.urlopen(url, timeout=5).read()
            break
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
    return SimpleNamespace(
        url=url, process=process, pid=process.pid, files=folder / "files", elsewhere=watched, log=log, port=port
    )


def stop(server: SimpleNamespace) -> None:
    server.process.terminate()
    server.process.wait(60)
