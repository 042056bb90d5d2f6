"""Exported files: what they compute, what is in the graph, and what is refused."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, DINOv3ViTConfig, DINOv3ViTModel

from surgenet_hf import SurgeNetForImageClassification, SurgeNetForPhaseRecognition, SurgeNetForSemanticSegmentation
from surgenet_hf.cli.export import main
from surgenet_hf.configuration_surgenet_phase import SurgeNetPhaseConfig
from surgenet_hf.data.sets import synthetic
from surgenet_hf.errors import UserError
from surgenet_hf.heads import build_segmenter
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference import export
from surgenet_hf.inference import settings as runtime_settings
from surgenet_hf.inference.deployed import Deployed, ExportSettings, describe
from surgenet_hf.inference.embeddings import predict_embeddings
from surgenet_hf.inference.export import compare, export_model

onnxruntime = pytest.importorskip("onnxruntime")
PROCESSOR = build_image_processor("surgenet", 64)
FRAMES = [Image.fromarray(synthetic.draw(0, i, 0, (96, 160))[0]) for i in range(2)]


def session(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.slow
def test_a_segmentation_model_from_the_command_line(tiny_config, tmp_path, capsys):
    """Test that the graph takes raw frames, and gives the class ids of `predict_segmentation` at their size."""
    model = SurgeNetForSemanticSegmentation(tiny_config()).eval()
    model.save_pretrained(tmp_path / "run" / "model")
    PROCESSOR.save_pretrained(tmp_path / "run" / "model")
    main(
        f"--model_name_or_path {tmp_path}/run --source_size 96 160 --input_layout nhwc --postprocess --precision fp16 "
        f"--output_dir {tmp_path}/out".split()
    )
    assert float(re.search(r"onnxruntime: .*?([\d.]+)% equal classes", capsys.readouterr().out)[1]) >= 99.5
    weights = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    assert sum(weight.data_type == onnx.TensorProto.FLOAT16 for weight in weights) > 20
    pixels = np.asarray(FRAMES[0])[None]
    (mask,) = session(tmp_path / "out").run(None, {"frames": pixels})
    with torch.no_grad():
        logits = model(**PROCESSOR(FRAMES[0], return_tensors="pt")).logits
    expected = torch.nn.functional.interpolate(logits, (96, 160), mode="bilinear", align_corners=False).argmax(1)
    assert mask.shape == (1, 96, 160)
    assert (mask == expected.numpy()).mean() > 0.99
    metadata = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert (metadata["inputs"], metadata["outputs"]) == (["frames"], ["mask"])
    assert str(Path(__file__).parents[2]).encode() not in (tmp_path / "out" / "model.onnx").read_bytes()
    stored = session(tmp_path / "out").get_modelmeta().custom_metadata_map
    assert stored["notice"] == "For research only. Not a medical device."
    assert json.loads(stored["image_mean"]) == list(PROCESSOR.image_mean)


@pytest.mark.slow
def test_phases_stream_with_their_state_outside(tmp_path):
    """Test that an exported frame-by-frame model gives what the model gives for the whole video."""
    config = SurgeNetPhaseConfig(num_labels=3, num_stages=2, num_layers=2, num_feature_maps=8)
    config.backbone_config.depths, config.backbone_config.hidden_sizes = [1, 1, 1, 1], [16, 24, 32, 64]
    model = SurgeNetForPhaseRecognition(config).eval()
    export_model(model, PROCESSOR, "phases", tmp_path, "onnx", ExportSettings((64, 64)), FRAMES)
    run = session(tmp_path)
    video = torch.rand(1, 5, 3, 64, 64)
    with torch.no_grad():
        expected = model(video).logits[0]
    names = [given.name for given in run.get_inputs()]
    state = [np.zeros(given.shape, np.float32) for given in run.get_inputs()[1:]]
    for frame, logits in zip(video[0], expected, strict=True):
        found, *state = run.run(None, dict(zip(names, [frame[None].numpy(), *state], strict=True)))
        np.testing.assert_allclose(found[0], logits, atol=1e-5)


@pytest.mark.slow
def test_dynamic_sizes_and_queries(tiny_config, tmp_path):
    config = tiny_config("pvt_v2_b2", problem_type="multi_label_classification")
    model = SurgeNetForImageClassification(config).eval()
    export_model(
        model, PROCESSOR, "classification", tmp_path / "a", "onnx", ExportSettings((64, 64), dynamic=True), FRAMES
    )
    pixels = torch.rand(3, 3, 97, 131)
    with torch.no_grad():
        expected = model(pixels).logits
    (found,) = session(tmp_path / "a").run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found, expected, atol=1e-5)
    dinov2 = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=64)
    eomt = build_segmenter(dinov2, head="eomt", image_size=64, id2label={0: "a"}, label2id={"a": 0})
    export_model(eomt, PROCESSOR, "segmentation", tmp_path / "c", "torch", ExportSettings((64, 64)), FRAMES)
    with zipfile.ZipFile(tmp_path / "c" / "model.pt2") as archive:  # no paths of this machine
        assert not [
            name for name in archive.namelist() if str(Path(__file__).parents[2]).encode() in archive.read(name)
        ]


def test_preprocessing_in_the_graph_is_that_of_the_image_processor(tiny_config):
    settings = ExportSettings((64, 64), (96, 160), "nhwc")
    deployed = Deployed(SurgeNetForSemanticSegmentation(tiny_config()), PROCESSOR, "segmentation", settings)
    for frame in FRAMES:
        found = deployed.preprocess(torch.from_numpy(np.asarray(frame).copy())[None])
        expected = PROCESSOR(frame, return_tensors="pt").pixel_values
        levels = (found - expected).abs() * deployed.std * 255
        assert levels.max() < 1.01  # gray levels
        assert (levels > 0.5).float().mean() < 0.02


def test_what_is_refused(tiny_config, tmp_path):
    model = SurgeNetForSemanticSegmentation(tiny_config())
    settings = ExportSettings((64, 64), (96, 160), dynamic=True)
    with pytest.raises(UserError, match="--dynamic needs the output of the image processor"):
        export_model(model, PROCESSOR, "segmentation", tmp_path, "onnx", settings, FRAMES)
    dinov2 = Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=16, image_size=64)
    eomt = build_segmenter(dinov2, head="eomt", image_size=64, id2label={0: "a"}, label2id={"a": 0})
    with pytest.raises(UserError, match="EoMT takes images of 64 pixels only"):
        export_model(eomt, PROCESSOR, "segmentation", tmp_path, "onnx", ExportSettings((80, 80)), FRAMES)
    with pytest.raises(UserError, match="--precision fp16 is for --format onnx"):
        export_model(
            model, PROCESSOR, "segmentation", tmp_path, "torch", ExportSettings((64, 64), precision="fp16"), FRAMES
        )
    with pytest.raises(UserError, match="--image_size must be at least 32"):
        export_model(model, PROCESSOR, "segmentation", tmp_path, "onnx", ExportSettings((3, 3)), FRAMES)
    with pytest.raises(SystemExit, match="--precision int8 needs --frames"):
        main(f"--model_name_or_path a --output_dir {tmp_path} --precision int8".split())
    exact = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
    for changed in (exact + 1e-3, exact.flip(1), exact * float("nan")):
        with pytest.raises(UserError, match="the exported model in the file differs from the original"):
            compare([changed], [exact], "segmentation", ExportSettings((1, 2)))
    assert not list(tmp_path.iterdir())


def test_embeddings_of_a_segmentation_model_are_those_of_predict(tiny_config):
    backbone = SurgeNetForSemanticSegmentation(tiny_config()).eval().surgenet
    deployed = Deployed(backbone, PROCESSOR, "embeddings", ExportSettings((64, 64)))
    with torch.no_grad():
        found = deployed(PROCESSOR(FRAMES[0], return_tensors="pt").pixel_values)
    ((_, expected),) = predict_embeddings(backbone, PROCESSOR, [{"image": FRAMES[0]}])
    np.testing.assert_allclose(found[0], expected, atol=1e-6)


@pytest.mark.slow
def test_int8_from_the_command_line(tiny_config, tmp_path, capsys):
    """Test that OpenVINO files in int8 agree with a model that has learned to tell colors apart."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    generator = np.random.default_rng(0)
    colors = np.where(np.arange(24)[:, None] % 2, (200, 40, 40), (40, 60, 200)) + generator.integers(-30, 30, (24, 3))
    frames = [Image.fromarray(np.full((96, 160, 3), color, np.uint8)) for color in colors]
    pixels, labels = PROCESSOR(frames, return_tensors="pt").pixel_values, torch.arange(24) % 2
    torch.manual_seed(0)
    model = SurgeNetForSemanticSegmentation(tiny_config(num_labels=2))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(30):
        logits = model(pixels).logits
        maps = labels[:, None, None].expand(-1, *logits.shape[-2:])
        loss = torch.nn.functional.cross_entropy(logits, maps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    (tmp_path / "frames").mkdir()
    for i, frame in enumerate(frames):
        frame.save(tmp_path / "frames" / f"{i:02d}.webp", lossless=True)
    options = "--source_size 96 160 --input_layout nhwc --input_dtype float32 --postprocess --precision int8"
    main(
        f"--model_name_or_path {tmp_path}/model --format openvino {options} --frames {tmp_path}/frames "
        f"--output_dir {tmp_path}/out".split()
    )
    assert "Calibrated on 16 other frames" in capsys.readouterr().out
    names = ["metadata.json", "openvino_model.bin", "openvino_model.xml"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    loaded = openvino.Core().read_model(tmp_path / "out" / "openvino_model.xml")
    assert loaded.get_rt_info(["surgenet_hf", "notice"]).astype(str) == "For research only. Not a medical device."
    weights = [op.get_element_type() for op in loaded.get_ops() if op.get_type_name() == "Constant"]
    assert weights.count(openvino.Type.i8) > 20
    run = openvino.Core().compile_model(loaded, "CPU")
    found = [run(np.asarray(frame, np.float32)[None])[0] for frame in frames]
    assert np.concatenate(found).mean((1, 2)) == pytest.approx(labels.numpy(), abs=0.01)
    assert str(tmp_path).encode() not in (tmp_path / "out" / "openvino_model.xml").read_bytes()


def test_limits_of_int8():
    """Test that each task has its own measure, and that the error contains the numbers and what to do."""
    settings = ExportSettings((1, 2), precision="int8")
    logits = torch.tensor([[3.0, 0.0]])
    assert compare([logits + 1], [logits], "classification", settings)["score_difference"] < 1e-6
    with pytest.raises(UserError, match=r"probabilities 0\.0\d+; expected .* at most 0\.0100.*Use --precision fp16"):
        compare([logits - torch.tensor([0.5, 0.0])], [logits], "classification", settings)
    assert compare([2 * logits], [logits], "embeddings", settings)["cosine"] == pytest.approx(1)
    with pytest.raises(UserError, match=r"cosine similarity 0\.9\d+; expected smallest .* at least 0\.9990"):
        compare([logits + 0.5], [logits], "embeddings", settings)
    maps = torch.zeros(1, 2, 10, 10)
    changed = maps.clone()
    changed[0, 1, 0, 0] = 1  # 1 of 100 pixels
    with pytest.raises(UserError, match=r"99\.00% equal classes; expected at least 99\.50%"):
        compare([changed], [maps], "segmentation", settings)
    dynamic = ExportSettings((1, 2), precision="int8", dynamic=True)
    with pytest.raises(UserError, match="Omit --dynamic, with which OpenVINO computes some int8 networks wrongly"):
        compare([changed], [maps], "segmentation", dynamic, runtime="openvino in a batch of 3")


def test_files_with_a_dynamic_batch_are_also_compared_in_a_batch(tiny_config, tmp_path, monkeypatch):
    model = SurgeNetForImageClassification(tiny_config(problem_type="multi_label_classification")).eval()

    def wrong_in_batches(format, path, deployed):
        yield "torch", lambda frames: [deployed(frames).detach() + (len(frames) > 1)]

    monkeypatch.setattr(export, "_write_program", lambda deployed, path: path.touch())
    monkeypatch.setattr(export, "_runtimes", wrong_in_batches)
    given = (model, PROCESSOR, "classification", tmp_path, "torch")
    export_model(*given, ExportSettings((64, 64)), FRAMES)
    with pytest.raises(UserError, match="the exported model in torch in a batch of 3 differs from the original"):
        export_model(*given, ExportSettings((64, 64), dynamic=True), FRAMES)


def test_missing_packages_are_named_before_the_model_is_loaded(tmp_path, monkeypatch):
    argv = f"--model_name_or_path nowhere --output_dir {tmp_path}/out --frames nowhere".split()
    for options, absent, extra in (
        ("--format onnx", {"onnx", "onnxscript"}, "onnx"),
        ("--format openvino", {"openvino"}, "openvino"),
        ("--format onnx --precision int8", {"nncf"}, "openvino"),
    ):
        monkeypatch.setattr(
            runtime_settings, "find_spec", lambda name, absent=absent: None if name in absent else True
        )
        names = r"onnx, onnxscript are" if len(absent) > 1 else f"{min(absent)} is"
        with pytest.raises(
            SystemExit, match=rf"error: {names} not installed; run pip install 'surgenet_hf\[{extra}\]'"
        ):
            main([*argv, *options.split()])
    assert not (tmp_path / "out").exists()


def test_the_license_of_weights_derived_from_dinov3():
    config = DINOv3ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = DINOv3ViTModel(config)
    names = ("license", "license_name", "license_link")
    for pretraining, expected in (
        ("SurgeNetXL-DINOv3-ViT-S", ("other", "cc-by-nc-sa-4.0-and-dinov3-license")),
        ("meta", ("other", "dinov3-license")),
    ):
        model.config.pretraining = {"name": pretraining}
        found = describe(Deployed(model, PROCESSOR, "embeddings", ExportSettings((64, 64))))
        link = "https://ai.meta.com/resources/models-and-libraries/dinov3-license/"
        assert [found[name] for name in names] == [*expected, link]
    model.config.pretraining = {"name": "SurgeNetXL"}
    found = describe(Deployed(model, PROCESSOR, "embeddings", ExportSettings((64, 64))))
    assert [found.get(name) for name in names] == ["cc-by-nc-sa-4.0", None, None]
