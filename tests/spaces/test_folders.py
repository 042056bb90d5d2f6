"""Tests of the checks of models before anything is downloaded or built."""

import errno
import json
import math
import shutil
import struct
import sys
import tempfile
from pathlib import Path

import pytest
import torch
import transformers.modeling_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from tests.spaces.running import HOSTILE, save

import folders  # isort: skip
from media import Refused  # isort: skip


@pytest.fixture
def folder(models, tmp_path):
    return shutil.copytree(models.segmentation, tmp_path / "model")


def change(folder, name="config.json", **settings):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def publish(hub, folder, repo_id="someone/model", without=(), **files):
    contents = {path.name: path for path in folder.iterdir() if path.name not in without}
    hub.add_files(repo_id, contents | files)


@pytest.mark.parametrize(
    ("kind", "tasks"),
    [
        ("segmentation", ("segmentation", "features")),
        ("cvs", ("classification", "features")),
        ("phases", ("phases", "features")),
        ("backbone", ("features",)),
    ],
)
def test_all_kinds(models, kind, tasks):
    loaded = folders.load_folder(getattr(models, kind), "name")
    assert loaded.tasks == tasks
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert "pretraining: unknown" in loaded.note


def test_classes_of_the_same_name_are_told_apart(models, tmp_path):
    folder = shutil.copytree(models.steps, tmp_path / "model")
    change(folder, id2label={"0": "cut", "1": "sew", "2": "cut"})
    loaded = folders.load_folder(folder, "name")
    assert loaded.labels == ["cut (0)", "sew", "cut (2)"]
    assert folders.summary("name", *folders.read_config(folder, "name"))["labels"] == loaded.labels
    change(folder, id2label={"0": "cut", "1": "cut", "2": "cut (0)"})
    assert len(set(folders.load_folder(folder, "name").labels)) == 3


def test_labels_are_the_models(models):
    assert folders.load_folder(models.segmentation, "name").labels[3] == HOSTILE


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "bert"}, "is of type bert"),
        ({"architectures": ["BertModel"]}, "class BertModel"),
        ({"architectures": None}, "class none"),
        ({"hidden_sizes": [16, 24, 32, 2**20]}, "hidden_sizes must be"),
        ({"hidden_sizes": [1024, 2048, 4096, 2048]}, "million parameters"),
        ({"depths": [1, 1, 10**9, 1]}, "depths must be"),
        ({"depths": 7}, "config.json"),
        ({"pyramid_channels": 10**7}, "pyramid_channels is 10000000"),
        ({"num_channels": 4}, "num_channels is 4"),
        ({"id2label": {str(i): "x" for i in range(1000)}}, "more than 64 classes"),
        ({"id2label": {"5": "x"}, "label2id": {"x": 5}}, "config.json"),
        ({"backbone": "resnet50"}, "config.json"),
    ],
)
def test_configurations_that_are_refused(folder, settings, message):
    change(folder, **settings)
    with pytest.raises(Refused, match=message):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize(
    "size", [{"height": 10**5, "width": 10**5}, {"shortest_edge": 200}, {"height": 8, "width": 8}]
)
def test_processors_that_are_refused(folder, size):
    change(folder, "preprocessor_config.json", size=size)
    with pytest.raises(Refused, match=r"its image processor has the size|damaged"):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_mean": [0.5]}, "must be three numbers"),
        ({"image_mean": [0.5, 0.5, math.nan]}, "must be three numbers"),
        ({"image_mean": "x" * 5000}, "must be three numbers"),
        ({"image_std": [0, 0, 0]}, "must be three numbers above 0"),
        ({"image_std": [1, 1, -1]}, "must be three numbers above 0"),
        ({"image_std": [1e-300, 1, 1], "image_mean": [1, 1, 1]}, "not finite"),
        ({"resample": 99}, "preprocessor_config.json"),
    ],
)
def test_processors_that_make_no_numbers(folder, settings, message):
    change(folder, "preprocessor_config.json", **settings)
    with pytest.raises(Refused, match=message) as refused:
        folders.load_folder(folder, "name")
    assert len(refused.value.text) < 300


def test_weights_that_are_not_finite(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["decode_head.classifier.bias"][0] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"NaN or infinite values, the first is decode_head\.classifier\.bias"):
        folders.load_folder(folder, "name")


@pytest.mark.slow
def test_weights_that_are_not_whole(folder):
    tensors = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in tensors.items() if "decode_head.classifier" not in name}
    save_file(headless, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match="without a trained head"):
        folders.load_folder(folder, "name")
    (folder / "model.safetensors").write_bytes(b"\x08" + bytes(100))
    with pytest.raises(Refused, match="damaged"):
        folders.load_folder(folder, "name")


def test_pickles_are_not_opened(folder, tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in ({"x": Touch()}, tensors):  # even harmless pickles are refused
        torch.save(content, folder / "pytorch_model.bin")
        with pytest.raises(Refused, match="damaged"):
            folders.load_folder(folder, "name")
    assert not (tmp_path / "owned").exists()


def test_code_of_a_folder_is_not_run(folder, tmp_path):
    change(folder, auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    assert type(folders.load_folder(folder, "name").model) is SurgeNetForSemanticSegmentation
    assert not (tmp_path / "owned").exists()


def fetch(hub, folder, into, **files):
    """Publish a folder with additional files and load it by the id of its repository, as the demo does."""
    publish(hub, folder, **files)
    folders.download("someone/model", into)
    return folders.load_folder(into, "someone/model")


def same_answers(loaded, folder) -> bool:
    """Return whether a model computes the outputs of the model in a folder and returns them in the same form."""
    expected = SurgeNetForSemanticSegmentation.from_pretrained(folder)
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(loaded.model(pixels).logits, expected(pixels).logits)


@pytest.mark.parametrize("place", ["../owner/model.safetensors", "absolute", "/dev/null", "evil.safetensors", "."])
def test_an_index_names_only_the_weights_of_its_repository(hub, client, folder, models, tmp_path, place):
    """Test that an index can name only the weights of its own repository.

    The owner's private models are files on the same server.
    """
    shutil.copytree(models.segmentation, tmp_path / "owner")
    place = str(tmp_path / "owner" / "model.safetensors") if place == "absolute" else place
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), place)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    with pytest.raises(Refused, match=r"is not one of its weight files|files are damaged"):
        fetch(hub, folder, tmp_path / "into", **{"model.safetensors.index.json": index})


@pytest.mark.slow
def test_weights_in_several_files(hub, client, models, folder, tmp_path):
    model = SurgeNetForSemanticSegmentation.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert same_answers(fetch(hub, folder, tmp_path / "into"), models.segmentation)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[" * 10**5])
def test_damaged_indices(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(Refused, match="files are damaged"):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn])
def test_weights_that_are_no_floating_point_numbers(folder, dtype):
    tensors = load_file(folder / "model.safetensors")
    tensors["decode_head.classifier.bias"] = tensors["decode_head.classifier.bias"].to(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Refused, match=r"must be floating-point numbers.*decode_head\.classifier\.bias"):
        folders.load_folder(folder, "name")


@pytest.mark.parametrize(
    ("length", "header", "message"),
    [
        (2**21, b" " * 2**21, "the header of model.safetensors is larger"),
        (2**40, b"", "the header of model.safetensors is larger"),
        (
            None,
            b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}',
            "files are damaged",
        ),
        (None, b'{"a": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4]}}', "files are damaged"),
        (None, b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', "files are damaged"),
    ],
)
def test_headers_of_weights(folder, length, header, message):
    """Test weight files with large headers or with headers that declare more than the file holds.

    safetensors refuses the latter.
    """
    prefix = struct.pack("<Q", len(header) if length is None else length)
    (folder / "model.safetensors").write_bytes(prefix + header + bytes(4))
    with pytest.raises(Refused, match=message):
        folders.load_folder(folder, "name")


HOSTILE_SETTINGS = {
    "return_dict": False,
    "torchscript": True,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "int8",
    "device": "meta",
    "auto_map": {"AutoConfig": "evil.Config"},
    "_name_or_path": "/etc",
    "transformers_weights": "adapter_model.safetensors",
    "base_model_name_or_path": "/etc",
    "quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fusion_config": {"a": 1},
    "tie_word_embeddings": True,
    "_attn_implementation": "someone/kernel",
    "use_return_dict": 1,
    "num_parameters": 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("key", HOSTILE_SETTINGS)
def test_settings_that_would_change_what_a_model_returns(folder, models, key):
    change(folder, **{key: HOSTILE_SETTINGS[key]})
    assert same_answers(folders.load_folder(folder, "name"), models.segmentation)


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [
        {"device": "meta"},
        {"return_tensors": "np"},
        {"data_format": "channels_last"},
        {"input_data_format": "channels_last"},
        {"post_process_semantic_segmentation": 1, "preprocess": 1},
        {"image_processor_type": "evil.Processor", "auto_map": {"AutoImageProcessor": "evil.Processor"}},
    ],
)
def test_settings_that_would_change_what_a_processor_returns(folder, models, extra):
    change(folder, "preprocessor_config.json", **extra)
    image = torch.rand(3, 80, 70, generator=torch.Generator().manual_seed(0))
    processors = [folders.load_folder(path, "name").processor for path in (folder, models.segmentation)]
    pixels = [processor(image, do_rescale=False, return_tensors="pt")["pixel_values"] for processor in processors]
    assert torch.equal(*pixels)
    assert processors[0].post_process_semantic_segmentation


@pytest.mark.parametrize(
    "extra",
    [
        {"do_center_crop": True, "crop_size": {"height": 10**6, "width": 10**6}},
        {"do_pad": True, "pad_size": {"height": 10**6, "width": 10**6}},
        {"size": {"height": 64, "width": 64, "shortest_edge": 10**6}},
    ],
)
def test_processors_that_would_make_huge_pictures(folder, extra):
    change(folder, "preprocessor_config.json", **extra)
    with pytest.raises(Refused, match=r"crops or pads|its image processor has the size|preprocessor_config"):
        folders.load_folder(folder, "name")


def test_models_that_are_too_slow(folder, monkeypatch):
    """Test that slow models are refused before their weights are read, based on the operations per frame."""
    (folder / "model.safetensors").unlink()
    change(folder, segmentation_channels=512, pyramid_channels=512)
    change(folder, "preprocessor_config.json", size={"height": 1024, "width": 1024})
    with pytest.raises(Refused, match=r"too slow.* a frame of 1024 x 1024 pixels needs \d+ billion .* up to 500"):
        folders.load_folder(folder, "name")
    change(folder, depths=[9, 1, 1, 1])
    with pytest.raises(Refused, match="depths must be four integers of at least 1 and at most 8, 16, 64, 16"):
        folders.load_folder(folder, "name")


def test_dense_features_may_be_too_slow(folder, monkeypatch):
    """Test that a model is refused if its dense features would be too slow.

    They are computed at a separate size, regardless of the image processor.
    """
    monkeypatch.setattr(folders, "MAX_FLOPS", 1e8)
    with pytest.raises(Refused, match=r"too slow.* a frame of 640 x 640 pixels"):
        folders.load_folder(folder, "name")


@pytest.mark.slow
def test_only_the_files_of_a_model_are_used(hub, client, folder, models, tmp_path):
    """Test that only the files of a model are used.

    Other files in the repository could name a base model, another processor, or code.
    """
    text = json.dumps({"base_model_name_or_path": str(models.segmentation), "peft_type": "LORA", "r": 8})
    evil = json.dumps({"image_processor": {"size": {"height": 32, "width": 32}}})
    files = {"adapter_config.json": text, "processor_config.json": evil, "adapter_model.safetensors": b"x"}
    files |= {"generation_config.json": "[", "tokenizer.json": "[", "custom_generate/generate.py": "raise SystemExit"}
    loaded = fetch(hub, folder, tmp_path / "into", **files)
    assert same_answers(loaded, models.segmentation)
    assert loaded.processor.size["height"] == 64
    downloaded = {path.name for path in (tmp_path / "into").iterdir() if path.is_file()}
    assert downloaded == {"config.json", "preprocessor_config.json", "model.safetensors"}


opened = []  # files that this process opens during the test below
sys.addaudithook(lambda event, args: event == "open" and watched and opened.append(str(args[0])))
watched = False
PLACES = ["../owner/model.safetensors", "model-00001-of-00001.safetensors", "model.safetensors", "/dev/zero", "..", ""]
VALUES = st.one_of(
    st.sampled_from(
        [*PLACES, None, True, 0, -1, 10**30, math.nan, math.inf, 1e-320, [], {}, [[]], {"a": 1}, [64] * 4]
    ),
    st.sampled_from(["surgenet", "surgenet_phase", "SurgeNetModel", "pvt_v2_b2", "regression"]),
    st.dictionaries(st.sampled_from(["0", "1", "a", "height", "width"]), st.integers(0, 10**6), max_size=3),
    st.lists(st.integers(-1, 10**6), max_size=4),
    st.text(max_size=5),
)
CONFIG = st.sampled_from(
    "model_type architectures backbone backbone_config depths hidden_sizes num_labels id2label problem_type "
    "pretraining num_stages frames_per_second pyramid_channels".split()
    + list(HOSTILE_SETTINGS)
)
PROCESSOR = st.sampled_from(
    [*folders.PROCESSOR_SETTINGS, "device", "crop_size", "do_center_crop", "default_to_square"]
)
INDEX = st.one_of(
    VALUES,
    st.fixed_dictionaries({"metadata": st.sampled_from([{}, 1])}, optional={"weight_map": VALUES}),
    st.fixed_dictionaries(
        {"metadata": st.just({}), "weight_map": st.dictionaries(st.text(max_size=3), st.sampled_from(PLACES))}
    ),
    st.sampled_from(PLACES),  # one file for all tensors
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    config=st.dictionaries(CONFIG, VALUES, max_size=2),
    processor=st.dictionaries(PROCESSOR, VALUES, max_size=1),
    index=st.none() | INDEX,
)
def test_hostile_folders_load_or_are_refused(models, tmp_path_factory, config, processor, index):
    """Test that hostile folders load or are refused.

    No other exception is raised, and no file outside of the folder is read.
    """
    global watched
    root = Path(tempfile.mkdtemp(dir=tmp_path_factory.getbasetemp()))
    shutil.copytree(models.segmentation, root / "owner")
    folder = shutil.copytree(models.segmentation, root / "model")
    change(folder, **config)
    change(folder, "preprocessor_config.json", **processor)
    if index is not None:
        if isinstance(index, str):
            names = load_file(folder / "model.safetensors")
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, index)}
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    read, real = [], transformers.modeling_utils.safe_open
    patch = pytest.MonkeyPatch()
    patch.setattr(
        transformers.modeling_utils, "safe_open", lambda file, **more: read.append(str(file)) or real(file, **more)
    )
    opened.clear()
    watched = True
    try:
        folders.load_folder(folder, "name")
    except Refused:
        pass
    finally:
        watched = False
        patch.undo()
        shutil.rmtree(root)
    outside = [path for path in opened if path.startswith((str(root), "/dev/zero")) and Path(path).parent != folder]
    assert not outside
    assert all(Path(path).parent == folder and ".." not in path for path in read)


@pytest.mark.slow
def test_from_the_hub(hub, client, folder, tmp_path):
    publish(hub, folder, **{"evil.py": "raise SystemExit", "training_args.bin": b"\x80"})
    into = tmp_path / "into"
    folders.download("someone/model", into)
    assert {path.name for path in into.iterdir() if path.is_file()} == {
        "config.json",
        "preprocessor_config.json",
        "model.safetensors",
    }
    assert folders.load_folder(into, "someone/model").tasks == ("segmentation", "features")
    assert not [request for request in hub.requests if request.authorization]  # the owner's token is never sent


def test_too_large_or_incomplete_on_the_hub(hub, client, folder, tmp_path, monkeypatch):
    """Test that the Hub's listing is enough to refuse a repository, without any download."""
    publish(hub, folder, "someone/bin", without=("model.safetensors",), **{"pytorch_model.bin": b"\x80"})
    publish(hub, folder, "someone/bare", without=("preprocessor_config.json",))
    publish(hub, folder, "someone/long", **{"config.json": " " * (folders.MAX_CONFIG_BYTES + 1)})
    publish(hub, folder, "someone/large")
    index = " " * (folders.MAX_CONFIG_BYTES + 1)
    publish(hub, folder, "someone/index", **{"model.safetensors.index.json": index})
    shards = {f"model-{i:05d}-of-00040.safetensors": b"x" for i in range(1, 41)}
    publish(hub, folder, "someone/shards", **shards)
    monkeypatch.setattr(folders, "MAX_BYTES", 1000)
    for name, message in {
        "bin": "no weights in the safetensors format",
        "bare": "no preprocessor_config.json",
        "long": "larger than that of any",
        "large": "models may have up to",
        "index": "larger than that of any",
        "shards": "has 43 weight and configuration files",
    }.items():
        with pytest.raises(Refused, match=message):
            folders.download(f"someone/{name}", tmp_path / name)
    assert not hub.matching("resolve|GET /lfs")


def test_a_full_disk_is_not_the_hubs_fault(hub, client, folder, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    publish(hub, folder)
    monkeypatch.setattr(folders.HfApi, "snapshot_download", fail)
    with pytest.raises(Refused, match="disk of this server is full"):
        folders.download("someone/model", tmp_path)


def test_what_the_hub_does_not_have(hub, client, folder, tmp_path):
    publish(hub, folder, "someone/private")
    hub.repos["someone/private"].private = True
    for name in ("someone/missing", "someone/private"):  # private repositories are not revealed, not even the owner's
        with pytest.raises(Refused, match="no public model"):
            folders.download(name, tmp_path)
    hub.fail("GET /api/models", status=500, times=math.inf)
    with pytest.raises(Refused, match="could not be downloaded"):
        folders.download("someone/other", tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a/b/c",
        "a/..",
        "a b/c",
        "http://x/y",
        "a/b\n",
        "x" * 5000,
        "a/" + "b" * 5000,
    ],
)
def test_names_that_are_no_ids(name, tmp_path):
    with pytest.raises(Refused, match="There is no model") as refused:
        folders.download(name, tmp_path)
    assert len(refused.value.text) < 200


def test_headless_backbones_say_so(tiny_config, tmp_path):
    path = save(SurgeNetModel(tiny_config(pretraining={"name": "SurgeNetXL"})), tmp_path / "xl")
    summary = folders.summary("xl", *folders.read_config(path, "xl"))
    assert summary["tasks"] == ["features"]
    assert summary["labels"] == []
    assert "pretraining: SurgeNetXL" in summary["note"]
