"""Tests of published checkpoints by name, from a stand-in Hub with files in the authors' layout."""

import dataclasses
import hashlib
import io
import logging
import math
import resource
import signal
from multiprocessing import get_context

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation

from surgenet_hf import SurgeNetForImageClassification, SurgeNetModel, load_checkpoint
from surgenet_hf.checkpoints import catalog
from surgenet_hf.checkpoints.catalog import CATALOG, UPSTREAM_REPO, find_entry
from surgenet_hf.checkpoints.conversion import to_original_state_dict
from surgenet_hf.errors import UnavailableError, UserError
from surgenet_hf.models import convert_entry, fetch_checkpoint, load_config, load_model, resolve_model
from tests.checkpoints.files import original, save_dino, tiny, tiny_vit
from tests.processes import exit_code

# of the published vision transformers, one per layout
VITS = ("SurgeNetXL-DINOv1-ViT-S", "SurgeNetXL-DINOv2-ViT-B", "SurgeNetXL-DINOv3-ViT-L", "SurgeNet2M-DINOv3-ViT-S")
ENTRIES = [entry for entry in CATALOG if not entry.is_vit or entry.name in VITS]


def pth(tensors) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def teachers():
    """Return tiny weights of every published checkpoint, by name."""
    return {
        entry.name: tiny_vit(entry.backbone, seed=i)
        if entry.is_vit
        else original(SurgeNetModel, tiny(entry.backbone, activation=entry.activation), seed=i)
        for i, entry in enumerate(ENTRIES)
    }


@pytest.fixture
def upstream(hub, client, teachers, tiny_backbones, monkeypatch, tmp_path):
    """Return a stand-in Hub of the authors' repositories with tiny weights.

    The catalog gets the checksums and counts of these files wherever it has those of the real files.
    """
    entries = []
    for entry in ENTRIES:
        content = pth(teachers[entry.name])
        hub.add_files(entry.upstream_repo, {entry.teacher_file: content})
        changes = {"teacher_sha256": hashlib.sha256(content).hexdigest()} if entry.teacher_sha256 else {}
        if entry.tensors:
            changes["elements"] = sum(tensor.numel() for tensor in teachers[entry.name].values())
            changes["tensors"] = len(teachers[entry.name])
        entries.append(dataclasses.replace(entry, **changes))
    save_dino(tmp_path / "full.pth", teachers["SurgeNet"], teachers["SurgeNet"], {})
    hub.add_files(UPSTREAM_REPO, {find_entry("SurgeNet-Public").full_file: tmp_path / "full.pth"})
    monkeypatch.setattr(catalog, "CATALOG", tuple(entries))
    return hub


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES])
def test_every_checkpoint(name, upstream, teachers):
    model = load_checkpoint(name.lower())
    back = to_original_state_dict(model)
    assert back.keys() == teachers[name].keys()
    assert all(torch.equal(back[key], teachers[name][key]) for key in back)
    entry = find_entry(name)
    assert model.config.pretraining["name"] == name
    assert model.config.pretraining["normalization"] == entry.normalization
    assert getattr(model.config, "activation", None) == entry.activation


def test_vision_transformers_by_name(upstream, teachers, tmp_path):
    """Test what a name adds to a file: the size of the images, and a comparison of its counts with the catalog."""
    folder = fetch_checkpoint("SurgeNet2M-DINOv3-ViT-S")
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.image_size) == ("dinov3_vit", 256)
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 256, "width": 256}
    assert "not published" in config.pretraining["normalization_reason"]
    entry = find_entry("SurgeNetXL-DINOv2-ViT-B")
    larger = teachers[entry.name] | {"pos_embed": torch.ones(1, 37**2 + 1, 64)}  # as in Meta's own file
    torch.save(larger, tmp_path / "file.pth")
    with pytest.raises(
        UserError, match=r"contains 35 tensors of [\d,]+ elements, expected 35 of [\d,]+ for SurgeNetXL"
    ):
        convert_entry(entry, tmp_path / "file.pth")
    (entry,) = (entry for entry in CATALOG if entry.name == "SurgeNetXL-DINOv2-ViT-S")
    tensors = tiny_vit(entry.backbone)
    counts = {"tensors": len(tensors), "elements": sum(tensor.numel() for tensor in tensors.values())}
    del tensors["register_tokens"]  # other loaders drop it
    torch.save(tensors, tmp_path / "file.pth")
    with pytest.raises(UserError, match=rf"contains {len(tensors)} tensors of .*, expected {len(tensors) + 1} of"):
        convert_entry(dataclasses.replace(entry, **counts), tmp_path / "file.pth")
    entry = find_entry("SurgeNet2M-DINOv3-ViT-S")
    for extra, found in (("storage_tokens", "storage tokens"), ("blocks.0.attn.qkv.bias_mask", "1 unexpected")):
        torch.save({"teacher": teachers[entry.name] | {extra: torch.ones(1, 4, 64)}}, tmp_path / "file.pth")
        with pytest.raises(UserError, match=rf"(?s){found}.*tensors of {entry.name} were not known .* inspect"):
            convert_entry(entry, tmp_path / "file.pth")


def test_public_is_the_teacher_file(upstream):
    load_checkpoint("SurgeNet-Public")
    files = {request.path.split("/")[-1] for request in upstream.matching("resolve")}
    assert files == {"Public_checkpoint_epoch0050_teacher.pth"}


def test_heads_and_processor(upstream):
    model = load_checkpoint("SurgeNetXL", AutoModelForSemanticSegmentation, num_labels=7, dtype=torch.bfloat16)
    assert type(model).__name__ == "SurgeNetForSemanticSegmentation"
    assert model.config.num_labels == 7
    assert model.dtype == torch.bfloat16
    assert model.config.pretraining["name"] == "SurgeNetXL"
    processor = AutoImageProcessor.from_pretrained(fetch_checkpoint("SurgeNetXL"))
    assert list(processor.image_mean) == list(catalog.NORMALIZATIONS["surgenet"][0])


def test_second_load_is_from_the_cache(upstream, monkeypatch):
    load_checkpoint("SurgeNetXL")
    transfers = len(upstream.matching("GET /lfs/"))
    upstream.fail(".*", status=503, times=math.inf)
    load_checkpoint("SurgeNetXL")
    assert len(upstream.matching("GET /lfs/")) == transfers == 1


def test_unknown_name_asks_nothing(upstream):
    with pytest.raises(ValueError, match="did you mean SurgeNetXL"):
        load_checkpoint("SurgeNetXXL")
    assert not upstream.requests


def test_wrong_checksum(upstream, teachers):
    entry = find_entry("SurgeNetXL")
    upstream.add_files(UPSTREAM_REPO, {entry.teacher_file: pth(teachers["SurgeNet-Small"])})
    with pytest.raises(ValueError, match=r"not the published SurgeNetXL: .*the catalog says"):
        load_checkpoint("SurgeNetXL")


def test_wrong_file_under_a_right_name(upstream, teachers, tmp_path):
    entry = find_entry("SurgeNet-RAMIE")  # its checksum is unknown
    upstream.add_files(UPSTREAM_REPO, {entry.teacher_file: pth(teachers["SurgeNet-PVTv2"])})
    with pytest.raises(ValueError, match=r"contains \('pvt_v2_b2', None\)"):
        load_checkpoint("SurgeNet-RAMIE")


def test_truncated_upstream_file(upstream, teachers):
    content = pth(teachers["SurgeNet-RARP"])
    upstream.add_files(UPSTREAM_REPO, {find_entry("SurgeNet-RARP").teacher_file: content[: len(content) // 2]})
    with pytest.raises(ValueError, match="cut short"):
        load_checkpoint("SurgeNet-RARP")


def test_damage_in_the_cache(upstream, tmp_path):
    path = next(
        path
        for _ in [load_checkpoint("SurgeNet-RARP")]
        for path in (tmp_path / "hf_home" / "hub").rglob("RARP_checkpoint_epoch0050_teacher.pth")
    )
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.resolve().write_bytes(damaged)
    with pytest.raises(ValueError, match=r"not the published SurgeNet-RARP: .*the Hub says"):
        load_checkpoint("SurgeNet-RARP")


def test_connection_cut_in_the_middle(upstream, teachers):
    upstream.cut("GET /lfs/", after_bytes=1000)
    model = load_checkpoint("SurgeNetXL")
    back = to_original_state_dict(model)
    assert all(torch.equal(back[key], teachers["SurgeNetXL"][key]) for key in back)
    assert len(upstream.matching("GET /lfs/")) == 2


@pytest.mark.parametrize(
    ("status", "message"), [(401, "Invalid credentials"), (403, "403"), (404, "404"), (500, "500")]
)
def test_hub_errors(status, message, upstream):
    code = "RepoNotFound" if status == 404 else None
    upstream.fail("resolve", status=status, times=math.inf, code=code)
    with pytest.raises(UnavailableError) as caught:
        load_checkpoint("SurgeNet-RAMIE")
    chain = [str(error) for error in (caught.value, caught.value.__cause__) if error]
    assert any(message in text for text in chain)


def test_where_a_run_starts(upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "1" / "model").mkdir(parents=True)
    for folder in ("runs", "./runs", "runs/1/model", "~/runs"):
        assert (tmp_path / resolve_model(folder)).samefile(folder.replace("~", str(tmp_path)))
    assert resolve_model("someone/model") == "someone/model"
    assert not upstream.requests
    assert resolve_model("surgenet-xl") == str(fetch_checkpoint("SurgeNetXL"))
    assert resolve_model(None, "pvt_v2_b2").backbone == "pvt_v2_b2"
    assert resolve_model(None, "tiny").hidden_sizes[0] == 32


@pytest.mark.parametrize("name", ["/no/model", "./model", "../model", "~/model", "runs/1/model"])
def test_a_folder_that_is_not_there(name, upstream, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}; "):
        resolve_model(name)
    assert not upstream.requests


def test_a_weight_file_is_to_be_converted(upstream, teachers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(teachers["SurgeNetXL"], "SurgeNetXL.pth")
    for name in ("SurgeNetXL.pth", str(tmp_path / "SurgeNetXL.pth")):
        with pytest.raises(ValueError, match=r"surgenet convert --checkpoint .*--resume_from_checkpoint"):
            resolve_model(name)
        with pytest.raises(ValueError, match=r"is a weight file.*surgenet_hf\.convert_checkpoint\(.*output_dir="):
            load_checkpoint(name)
    assert not upstream.requests


def test_the_output_folder_of_a_run(tmp_path):
    SurgeNetModel(tiny()).save_pretrained(tmp_path / "run" / "model")
    assert resolve_model(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    SurgeNetModel(tiny()).save_pretrained(tmp_path / "run")
    assert resolve_model(str(tmp_path / "run")) == str(tmp_path / "run")


def test_transformers_prints_nothing_about_a_new_head(tmp_path, monkeypatch):
    SurgeNetModel(tiny()).save_pretrained(tmp_path)
    records, handler = [], logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logging.getLogger("transformers").addHandler(handler)
    try:
        load_model(SurgeNetForImageClassification, tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not [record.getMessage() for record in records]


def test_a_config_that_cannot_be_loaded(upstream, tmp_path):
    with pytest.raises(UserError, match=r"has no config\.json, expected a folder with a model"):
        load_config(tmp_path)
    for damaged in ("{", "[]", '{"model_type": "unknown"}', '{"model_type": "surgenet", "depths": "x"}'):
        (tmp_path / "config.json").write_text(damaged)
        with pytest.raises(UserError, match=r"config\.json cannot be read"):
            load_config(tmp_path)
    with pytest.raises(UnavailableError, match=r"no folder org/missing, and no model of this name.* the network"):
        load_config("org/missing")


def test_no_room_on_disk(upstream, teachers, capfd):
    """Test that a full disk raises an error and leaves no partial file that could pass for a model.

    A limit of the file size in another process simulates the full disk.
    """

    def load_with_limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))  # smaller than the weights
        load_checkpoint("SurgeNet-RAMIE")

    assert exit_code(load_with_limit, context=get_context("fork")) == 1
    assert "File too large" in capfd.readouterr().err
    back = to_original_state_dict(load_checkpoint("SurgeNet-RAMIE"))
    assert all(torch.equal(back[key], tensor) for key, tensor in teachers["SurgeNet-RAMIE"].items())
