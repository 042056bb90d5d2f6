"""Tests that planted secrets appear in no byte that reaches the stand-in Hub.

The secrets are a token, a user name, paths, and names of videos.
"""

import csv
import json
import logging
import multiprocessing
import os
import re
import shlex
import signal

import numpy as np
import pytest
import torch
from huggingface_hub.hf_api import HfApi
from PIL import Image

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.cli import finetune_classification
from surgenet_hf.cli.publish import main as publish
from surgenet_hf.data import load_data
from surgenet_hf.evaluation.evaluate import evaluate, write_results
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.pretraining.export import export_teacher
from surgenet_hf.pretraining.plan import describe_pretraining
from surgenet_hf.publishing.upload import check_login, publish_finetuned, publish_folder, push_model
from tests.checkpoints.files import tiny

VIDEOS = [f"2023-11-0{day}_patient471{day}" for day in range(1, 6)]
SECRETS = ["jane.roe", "projects", "patient471", "2023-11-0", *VIDEOS]


def uploaded(hub) -> dict[str, bytes]:
    """Return everything that was sent: files of all commits, LFS uploads, and addresses of requests."""
    sent = {f"request {i}": str(request).encode() for i, request in enumerate(hub.requests)}
    for repo_id, repo in hub.repos.items():
        sent |= {f"{repo_id} {name}": data for name, data in repo.lfs.items()}
        for commit in repo.by_sha.values():
            sent |= {f"{commit.sha} title": commit.title.encode()}
            sent |= {f"{commit.sha} {path}": path.encode() + b"\0" + file.data for path, file in commit.files.items()}
    return sent


def found(hub, secrets) -> list[tuple[str, str]]:
    return [(where, secret) for where, data in uploaded(hub).items() for secret in secrets if secret.encode() in data]


@pytest.fixture
def home(tmp_path):
    """Return the folder of a user's data, whose path names the user and whose videos name patients."""
    home = tmp_path / "home" / "jane.roe" / "projects"
    home.mkdir(parents=True)
    return home


@pytest.fixture
def frames(home):
    """Return a folder of frames with classes, three per video."""
    root = home / "endoscopy"
    root.mkdir()
    rng = np.random.default_rng(0)
    with open(root / "labels.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "video", "label"])
        for video in VIDEOS:
            for i in range(3):
                Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(root / f"{video}_{i}.png")
                table.writerow([f"{video}_{i}.png", video, ["cut", "clip", "cut"][i]])
    return root


@pytest.fixture
def masks(home):
    """Return a folder of frames with masks, three per video."""
    root = home / "masks"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for video in VIDEOS:
        for i in range(3):
            Image.fromarray(rng.integers(0, 255, (32, 48, 3), np.uint8)).save(root / "images" / f"{video}_{i}.png")
            Image.fromarray(rng.integers(0, 2, (32, 48), np.uint8)).save(root / "masks" / f"{video}_{i}.png")
    return root


@pytest.fixture
def segmented(masks, home, monkeypatch):
    """Return a user's fine-tuned model with its results and a pretraining record that names folders."""
    data = load_data("folder", masks)
    evaluated = data.splits["validation"][0]["video"]
    config = tiny(num_labels=2, id2label=dict(enumerate(data.labels)))
    base = {"name": "SurgeNetXL", "source": str(home / "weights" / "teacher.pth")}
    config.pretraining = describe_pretraining(base, [str(home / "frames"), evaluated], 1, 10)
    folder = home / "run" / "model"
    SurgeNetForSemanticSegmentation(config).save_pretrained(folder)
    build_image_processor(image_size=32).save_pretrained(folder)
    for name in ("config.json", "preprocessor_config.json"):  # as recorded by earlier versions of the libraries
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(
            json.dumps(settings | {"_name_or_path": str(home / "start"), "note": str(home / "note")})
        )
    model = SurgeNetForSemanticSegmentation.from_pretrained(folder)
    token = "hf_" + "Secret1234" * 4
    command = f"{home}/eval.py --data_dir={masks} --token {token} {evaluated}"
    results = evaluate(model, build_image_processor(image_size=32), data, resamples=10, command=command).results
    results["comparisons"] = {"majority_class": {"mean_dice": 0.5}}
    write_results(results, folder.parent / "results.json")
    return folder


@pytest.mark.slow
def test_a_finetuning_that_is_pushed(hub, client, frames, home, monkeypatch):
    """Test fine-tuning from the command line to the Hub."""
    options = "--backbone tiny --image_size 32 --per_device_train_batch_size 2 --max_steps 2 --disable_tqdm true"
    data = ["--dataset", "csv", "--data_dir", str(frames), "--output_dir", str(home / "my-run")]
    argv = [*options.split(), *data, "--push_to_hub", "true", "--hub_model_id", "maintainer/mine"]
    finetune_classification.main(argv)
    files = hub.repos["maintainer/mine"].files()
    assert {"README.md", "results.json", "model.safetensors"} <= files.keys()
    assert not found(hub, [*SECRETS, hub.token])

    local = json.loads((home / "my-run" / "results.json").read_text())
    published = json.loads(files["results.json"])
    assert set(local["data"]["videos"]) < set(VIDEOS)  # local results keep the real names
    assert local["data"]["videos_are_public"] is False
    assert published["data"]["videos"] == [f"video_00{i + 1}" for i in range(len(local["data"]["videos"]))]
    assert published["data"]["notes"] == []
    assert published["metrics"] == local["metrics"]
    assert list(published["per_video"].values()) == list(local["per_video"].values())
    assert published["model"]["name"] == "maintainer/mine"
    assert shlex.split(published["command"])[:2] == ["surgenet", "finetune-classification"]
    assert "--data_dir endoscopy" in published["command"]
    assert "videos were used to select its checkpoint (matched by name)" in published["data"]["leakage"]
    (run,) = json.loads(files["config.json"])["finetuning"]
    assert (run["dataset"], run["split_protocol"]) == ("csv", "by video name, one fifth validates")
    videos = [*run["train_videos"], *run["selection_videos"]]
    assert len(set(videos)) == len(VIDEOS)
    assert all(re.fullmatch("own:[0-9a-f]{16}", video) for video in videos)


def test_results_and_settings(hub, client, segmented, home):
    """Test that published results and settings are cleaned.

    They contain notes that list videos, tokens in commands, and paths and video names in config and image processor.
    """
    local = json.loads((segmented.parent / "results.json").read_text())
    assert local["data"]["videos"][0] in local["data"]["notes"][0]
    assert "hf_Secret" not in local["command"]
    assert push_model(segmented, "maintainer/mine", None, "x") == "maintainer/mine"
    assert not found(hub, [*SECRETS, "hf_Secret", hub.token])
    files = hub.repos["maintainer/mine"].files()
    config = json.loads(files["config.json"])
    assert config["pretraining"]["base"]["source"] == "teacher.pth"
    assert config["pretraining"]["name"] == "SurgeNetXL, continued on frames + video_001"
    assert json.loads(files["results.json"])["command"] == "eval.py --data_dir=masks --token '***' video_001"
    assert SurgeNetForSemanticSegmentation.from_pretrained("maintainer/mine").config.id2label[0] == "class_0"


def test_names_are_published_only_where_the_user_asks_for_it(hub, client, segmented, home):
    local = json.loads((segmented.parent / "results.json").read_text())
    outcome = publish_finetuned(segmented, "maintainer/mine", home / "out", push=True, publish_video_names=True)
    assert outcome.error is None
    published = json.loads(hub.repos["maintainer/mine"].files()["results.json"])
    for part in ("videos", "notes"):
        assert published["data"][part] == outcome.names[part] == local["data"][part]
    assert published["per_video"] == local["per_video"]
    assert not found(hub, ["jane.roe", "hf_Secret"])


def test_the_dry_run_lists_the_names(hub, client, segmented, capsys):
    with pytest.raises(SystemExit):
        publish(["--model", str(segmented), "--repo_id", "maintainer/mine"])
    printed = capsys.readouterr().out
    assert "pretraining: SurgeNetXL, continued on frames + video_001\n" in printed
    assert "videos: video_001" in printed
    assert "command: eval.py --data_dir=masks" in printed
    assert not [secret for secret in SECRETS if secret in printed]


def test_a_pretraining_run(hub, client, home):
    """Test that full paths in the record of an older run are removed, which streamed from a local folder."""
    pretraining = describe_pretraining({"name": "SurgeNetXL"}, [str(home / "2023")], epoch=2, frames=500)
    export_teacher(SurgeNetModel(tiny()), home / "run" / "model", pretraining, build_image_processor())
    push_model(home / "run" / "model", "maintainer/mine", None, "x")
    assert not found(hub, SECRETS)
    assert "on 500 frames of 2023." in hub.repos["maintainer/mine"].files()["README.md"].decode()


def test_a_public_data_set_keeps_its_names(frames, tmp_path):
    assert load_data("synthetic", tmp_path, num_videos=2, frames_per_video=1, size=(32, 48)).videos_are_public
    assert not load_data("csv", frames).videos_are_public


@pytest.mark.parametrize("repo_type", ["model", "space"])
def test_a_folder_with_a_token_reaches_no_network(repo_type, hub, client, tmp_path):
    """Test that a folder with an access token causes no request.

    This applies to the user's own token and to any text that looks like a token. The output folder stays empty.
    """
    for content in (f"x = {hub.token!r}".encode(), b"\x00hf_" + b"Ab1" * 12):

        def prepare(folder, content=content):
            (folder / "deep").mkdir(parents=True)
            (folder / "deep" / "file.bin").write_bytes(content)

        outcome = publish_folder("maintainer/mine", tmp_path / "out" / "mine", prepare, push=True, repo_type=repo_type)
        assert "deep/file.bin contains an access token" in outcome.error
        assert not hub.requests
        assert not list((tmp_path / "out").iterdir())


def test_a_model_with_a_token_is_refused(hub, client, segmented, home):
    settings = json.loads((segmented / "config.json").read_text())
    settings["id2label"]["0"] = hub.token
    (segmented / "config.json").write_text(json.dumps(settings))
    outcome = publish_finetuned(segmented, "maintainer/mine", home / "out", push=True)
    assert "contains an access token" in outcome.error
    assert hub.token not in outcome.error
    assert not hub.requests


def test_weights_that_are_not_finite_are_refused(hub, client, segmented, home):
    model = SurgeNetForSemanticSegmentation.from_pretrained(segmented)
    with torch.no_grad():
        model.decode_head.classifier.weight.view(-1)[0] = float("nan")
    model.save_pretrained(segmented)
    with pytest.raises(OSError, match=r"tensors contain NaN or infinite values, the first is decode_head\.classifier"):
        push_model(segmented, "maintainer/mine", None, "x")
    assert not hub.repos


def test_damaged_results_are_refused(hub, client, segmented, home):
    path = segmented.parent / "results.json"
    results = json.loads(path.read_text())
    results["metrics"]["mean_dice"] = 1.7
    path.write_text(json.dumps(results))
    outcome = publish_finetuned(segmented, "maintainer/mine", home / "out", push=True)
    assert "results.json: metrics.mean_dice is 1.7; expected a number from 0 to 1" in outcome.error
    assert not hub.repos


def test_a_token_that_the_server_repeats_is_masked(hub, client, segmented, home, caplog, monkeypatch):
    """Test that a token is masked if the server quotes the request's Authorization in its answer."""
    caplog.set_level(logging.DEBUG, "surgenet_hf")
    hub.fail("POST .*/commit/", status=400, message=f"bad request, Authorization: Bearer {hub.token}")
    outcome = publish_finetuned(segmented, "maintainer/mine", home / "out", push=True)
    assert "bad request" in outcome.error
    assert hub.token not in outcome.error + caplog.text
    assert "bad request" in caplog.text
    hub.fail("whoami", status=400, message=f"bad request by {hub.token}")
    with pytest.raises(OSError, match="bad request by") as caught:
        check_login()
    assert hub.token not in str(caught.value)
    assert caught.value.__cause__ is None
    monkeypatch.setattr(HfApi, "whoami", lambda *_: (_ for _ in ()).throw(OSError(f"{hub.token} refused")))
    with pytest.raises(SystemExit) as ended:
        publish(["--names", "SurgeNetXL", "--push"])
    assert "refused" in ended.value.code
    assert hub.token not in ended.value.code


def test_what_a_killed_run_left_is_removed(hub, client, tmp_path):
    def die(folder):
        folder.mkdir(parents=True)
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    def prepare(folder):
        folder.mkdir(parents=True)
        (folder / "whole.txt").write_text("whole")

    target = tmp_path / "out" / "mine"
    killed = multiprocessing.get_context("fork").Process(target=publish_folder, args=("me/mine", target, die))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert list(target.parent.iterdir())
    assert publish_folder("me/mine", target, prepare).error is None
    assert [path.name for path in target.parent.iterdir()] == ["mine"]
    assert (target / "whole.txt").read_text() == "whole"
