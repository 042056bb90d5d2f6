"""Predictions in other runtimes and precisions: agreement with float32, the automatic choice, and what is refused."""

import hashlib
import json
import shutil
import sys
import weakref
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2ForImageClassification

import surgenet_hf
from surgenet_hf import SurgeNetForSemanticSegmentation, SurgeNetModel
from surgenet_hf.cli.predict import main as predict
from surgenet_hf.data.sets import synthetic
from surgenet_hf.errors import UserError
from surgenet_hf.evaluation.evaluate import write_results
from surgenet_hf.evaluation.reporting import summary
from surgenet_hf.evaluation.results import model_labels, read_results
from surgenet_hf.inference import runtimes, selection, settings
from surgenet_hf.inference.packages import import_openvino
from surgenet_hf.inference.runtimes import Builder
from surgenet_hf.inference.selection import Runtimes, compare, iterate_images, spread_places
from surgenet_hf.inference.settings import RuntimeArguments, Setting, check_arguments
from surgenet_hf.inference.sources import find_sources
from surgenet_hf.tasks import load_predictor
from tests.inference.models import phase_model, save_models
from tests.inference.running import rows_of

if not all(map(find_spec, ("nncf", "onnxruntime", "openvino"))):
    pytest.skip("needs the extra openvino", allow_module_level=True)
IMAGES = [Image.fromarray(synthetic.draw(0, i, 0, (48, 64))[0]) for i in range(5)]
CAPABILITIES = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
HALF = [
    pytest.param(precision, marks=pytest.mark.skipif(name not in CAPABILITIES, reason="not on this processor"))
    for precision, name in (("bf16", "BF16"), ("fp16", "FP16"))
]


@pytest.fixture(scope="module")
def models(tiny_config, tmp_path_factory):
    """Return a folder with a model of each task. Phases and embeddings have the same backbone."""
    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(synthetic.LABELS)), "label2id": {x: i for i, x in enumerate(synthetic.LABELS)}}
    dinov2 = Dinov2Config(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, patch_size=16, image_size=64, num_labels=3
    )
    dinov2.problem_type = "multi_label_classification"
    phases = phase_model(tiny_config, 1.0)
    backbone = SurgeNetModel(tiny_config())
    phases.surgenet.load_state_dict(backbone.state_dict())
    kinds = {
        "masks": SurgeNetForSemanticSegmentation(tiny_config("pvt_v2_b2", num_labels=len(synthetic.LABELS), **names)),
        "criteria": Dinov2ForImageClassification(dinov2),
        "phases": phases,
        "backbone": backbone,
    }
    return save_models(tmp_path_factory.mktemp("models"), kinds)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    root = tmp_path_factory.mktemp("frames")
    for i, image in enumerate(IMAGES):
        image.save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(autouse=True)
def one_export_per_model(exported, monkeypatch):
    """Export models with the same weights and outputs once in all tests, because it takes seconds."""
    write = runtimes.write_onnx

    def write_once(network, path, inputs, outputs, example, dynamic_shapes):
        digest = hashlib.sha256(repr(outputs).encode())
        for tensor in network.state_dict().values():
            digest.update(tensor.numpy().tobytes())
        stored = exported / f"{digest.hexdigest()}.onnx"
        if not stored.exists():
            write(network, stored, inputs, outputs, example, dynamic_shapes)
        shutil.copyfile(stored, path)

    monkeypatch.setattr(runtimes, "write_onnx", write_once)


def agreement(models, name: str, setting: Setting, calibration=None):
    """Return the agreement of a setting with float32 on 5 frames in batches of 2."""
    expected = load_predictor(str(models / name))
    found = load_predictor(str(models / name))
    arguments = RuntimeArguments(setting.runtime, setting.precision, setting.compile, calibration)
    running = Runtimes(found, arguments, batch_size=2)
    running.apply(setting, IMAGES if calibration else [])
    before = {name: value.clone() for name, value in expected.model.state_dict().items()}
    result = compare(expected.task, running._predict(found.model, IMAGES), running._predict(expected.model, IMAGES))
    assert all(torch.equal(value, before[name]) for name, value in expected.model.state_dict().items())
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masks", "criteria", "phases", "backbone"])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_float32_of_other_runtimes(models, name, runtime):
    found = agreement(models, name, Setting(runtime))
    assert found.max_error < 1e-5
    assert found.is_accepted


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masks", "criteria", "phases", "backbone"])
@pytest.mark.parametrize("runtime", ["torch", "openvino"])
@pytest.mark.parametrize("precision", HALF)
def test_16_bits(models, name, runtime, precision):
    """Test that the outputs are close to float32, but rounded: the precision is really used."""
    found = agreement(models, name, Setting(runtime, precision))
    low, high = {"bf16": (1e-3, 0.05), "fp16": (1e-5, 5e-3)}[precision]
    assert low < found.max_error < high


def test_phases_keep_their_temporal_model_in_float32(models):
    predictor = load_predictor(str(models / "phases"))
    whole = predictor.model
    with Builder(whole, (64, 64), 2) as builder:
        changed = builder.build(Setting("torch", "bf16"))
    assert next(changed.surgenet.parameters()).dtype == torch.bfloat16
    assert {each.dtype for each in changed.stages.parameters()} == {torch.float32}
    assert {each.dtype for each in whole.parameters()} == {torch.float32}


@pytest.mark.slow
def test_compile_runs_the_compiled_network(models, monkeypatch):
    """Test the option with a backend that does not generate code, which takes a minute."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setenv("CXX", sys.executable)  # instead of a compiler, which this backend does not use
    assert agreement(models, "backbone", Setting("torch", "float32", True)).max_error < 1e-5
    assert compiled
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_command_writes_the_same_masks_and_refuses_another_precision(models, frames, tmp_path):
    argv = f"--model_name_or_path {models}/masks --input {frames} --per_device_eval_batch_size 3".split()
    predict([*argv, "--output_dir", str(tmp_path / "a")])
    predict([*argv, "--output_dir", str(tmp_path / "b"), "--runtime", "openvino"])
    record = json.loads((tmp_path / "b" / "predict.json").read_text())
    assert (record["runtime"], record["precision"], record["compile"]) == ("openvino", "float32", False)
    for ours, theirs in zip(rows_of(tmp_path / "b"), rows_of(tmp_path / "a"), strict=True):
        masks = [np.asarray(Image.open(tmp_path / which / ours["mask"])) for which in "ab"]
        assert (masks[0] == masks[1]).mean() > 0.999
        assert ours["file"] == theirs["file"]
    with pytest.raises(SystemExit, match="precision is 'float32', now 'bf16'"):
        predict([*argv, "--output_dir", str(tmp_path / "b"), "--runtime", "openvino", "--precision", "bf16"])
    with pytest.raises(SystemExit, match="runtime is 'openvino', now 'torch'"):
        predict([*argv, "--output_dir", str(tmp_path / "b")])


@pytest.mark.slow
def test_auto_chooses_within_the_tolerance_and_a_resumed_run_keeps_the_choice(
    models, frames, tmp_path, capsys, monkeypatch
):
    """Test it with times that favor a wrong setting, then a correct one."""
    times = {"torch": 1.0, "onnxruntime": 0.5, "openvino": 0.1}
    build = Builder.build

    def build_wrong(self, setting):
        model = build(self, setting)
        if setting.runtime == "openvino":
            run = model.run
            model.run = lambda pixels: [output.roll(1, 1) for output in run(pixels)]
        model.setting = setting
        return model

    monkeypatch.setattr(Builder, "build", build_wrong)
    monkeypatch.setattr(
        Runtimes, "_time", lambda self, model, *rest: times[getattr(model, "setting", Setting()).runtime]
    )
    monkeypatch.setattr(settings, "supported_precisions", lambda runtime: ("float32",))
    argv = f"--model_name_or_path {models}/masks --input {frames} --output_dir {tmp_path}/out --precision auto".split()
    predict(argv)
    said = capsys.readouterr().out
    assert "onnxruntime float32  0.50" in said
    assert "openvino float32     0.10" in said
    assert "(not within the tolerance)" in said
    before = (tmp_path / "out" / "predict.json").read_bytes()
    record = json.loads(before)
    assert (record["runtime"], record["precision"]) == ("onnxruntime", "float32")
    assert {(each["runtime"], each["accepted"]) for each in record["measured"]} == {
        ("torch", True),
        ("onnxruntime", True),
        ("openvino", False),
    }
    rows = rows_of(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "parts")
    shutil.rmtree(tmp_path / "out" / "predictions")
    times["openvino"], times["onnxruntime"] = 5.0, 5.0  # another choice, if it were measured again
    predict(argv)
    assert (tmp_path / "out" / "predict.json").read_bytes() == before
    assert rows_of(tmp_path / "out") == rows
    assert "in batches of" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="runtime is 'onnxruntime', now 'openvino'"):
        predict([*argv, "--runtime", "openvino"])


@pytest.mark.slow
def test_auto_without_an_acceptable_precision(models, frames, monkeypatch):
    monkeypatch.setattr(selection, "PIXELS", 1.1)
    monkeypatch.setattr(settings, "supported_precisions", lambda runtime: ("float32",))
    with pytest.raises(UserError, match="no precision of openvino is within the tolerance"):
        surgenet_hf.predict(str(models / "masks"), frames, runtime="openvino", precision="auto")
    rows = list(surgenet_hf.predict(str(models / "masks"), frames, precision="auto", batch_size=2))
    assert len(rows) == 5  # float32 in PyTorch remains


def test_agreement_counts_nan_as_different():
    nan = np.full(4, np.nan, np.float32)
    outputs = [torch.ones(1, 4)]
    expected = ([{"embedding": np.ones(4, np.float32)}] * 2, outputs)
    for rows in ([{"embedding": nan}, expected[0][0]], [expected[0][0], {"embedding": nan}]):
        assert not compare("embeddings", (rows, outputs), expected).is_accepted
    same = {"score": {"a": 0.2}}
    for rows in ([{"score": {"a": np.nan}}, same], [same, {"score": {"a": np.nan}}]):
        assert not compare("image-classification", (rows, outputs), ([same, same], outputs)).is_accepted
    assert compare("image-classification", ([same], outputs), ([same], outputs)).is_accepted


@pytest.mark.slow
def test_int8_prints_its_agreement(models, frames, caplog):
    with caplog.at_level("INFO", "surgenet_hf"):
        found = [
            agreement(models, "backbone", Setting(runtime, "int8"), [str(frames)])
            for runtime in ("onnxruntime", "openvino")
        ]
    printed = [message for message in caplog.messages if message.startswith("Agreement of")]
    assert [message.split()[2] for message in printed] == ["onnxruntime", "openvino"]
    for each, message in zip(found, printed, strict=True):
        assert 1e-3 < each.max_error < 0.3
        assert f"on 5 frames: {each}" in message
    assert found[0].max_error == pytest.approx(found[1].max_error, rel=0.05)  # both compute the same graph


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"runtime": "onnxruntime", "precision": "bf16"},
            "it supports float32, int8. For bf16, choose --runtime torch",
        ),
        ({"precision": "int8", "calibration": ["x"]}, "torch does not support --precision int8"),
        ({"runtime": "openvino", "precision": "int8"}, "int8 needs --calibration"),
        ({"calibration": ["x"]}, "--calibration is for --precision int8 and auto"),
        ({"runtime": "openvino", "compile": True}, "--compile is for --runtime torch"),
        ({"runtime": "tensorrt"}, "--runtime must be one of torch, onnxruntime, openvino, got 'tensorrt'"),
        ({"precision": "int4"}, "--precision must be one of float32, bf16, fp16, int8, auto, got 'int4'"),
    ],
)
def test_combinations_that_are_refused(models, frames, options, message):
    with pytest.raises(UserError, match=message):
        surgenet_hf.predict(str(models / "masks"), frames, **options)


def test_what_this_machine_lacks(models, frames, monkeypatch):
    monkeypatch.setattr(settings, "supported_precisions", lambda runtime: ("float32", "int8"))
    with pytest.raises(UserError, match=r"does not support --precision bf16 in openvino; it supports float32, int8"):
        surgenet_hf.predict(str(models / "masks"), frames, runtime="openvino", precision="bf16")
    monkeypatch.setattr(settings, "find_spec", lambda name: None if name == "openvino" else True)
    with pytest.raises(UserError, match=r"openvino is not installed; .*'surgenet_hf\[openvino\]'"):
        surgenet_hf.predict(str(models / "masks"), frames, runtime="openvino")


def test_a_model_that_cannot_be_exported(models, frames, monkeypatch, tmp_path):
    def refuse(*args):
        raise UserError("the graph contains GridSample")

    monkeypatch.setattr(runtimes, "write_onnx", refuse)
    with pytest.raises(UserError, match="contains GridSample"):
        surgenet_hf.predict(str(models / "masks"), frames, runtime="onnxruntime")


@pytest.mark.slow
def test_evaluation(models, masks, tmp_path):
    options = {"num_videos": 3, "frames_per_video": 3, "size": (32, 48), "data_dir": masks.parent}
    found = {}
    for name in ("torch", "openvino"):
        found[name] = surgenet_hf.evaluate(str(models / "masks"), "synthetic", runtime=name, **options)
        (tmp_path / name).mkdir()
        write_results(found[name], tmp_path / name / "results.json")
    assert "inference" not in found["torch"]
    assert found["openvino"]["inference"] == {"runtime": "openvino", "precision": "float32", "compile": False}
    for metric, value in found["torch"]["metrics"].items():
        if isinstance(value, float):
            assert found["openvino"]["metrics"][metric] == pytest.approx(value, abs=1e-3, nan_ok=True)
    assert "Predicted with openvino float32." in summary(found["openvino"])
    assert sorted(model_labels(read_results([tmp_path]), "model").values()) == ["masks", "masks (openvino float32)"]
    with pytest.raises(UserError, match="auto is not for evaluations, because a reported number needs a fixed"):
        surgenet_hf.evaluate(str(models / "masks"), "synthetic", precision="auto", **options)


def test_dense_features_are_compared_at_each_position(models):
    predictor = load_predictor(str(models / "backbone"), dense=True)
    running = Runtimes(predictor, RuntimeArguments("torch", "bf16"), batch_size=2)
    expected = running._predict(predictor.model, IMAGES)
    running.apply(Setting("torch", "bf16"), [])
    rows, outputs = running._predict(predictor.model, IMAGES)
    assert len(outputs) == 2 * 3  # the feature maps too
    found = compare("embeddings", (rows, outputs), expected)
    assert found.is_accepted
    assert "of dense features 0.99" in str(found)
    rows[3]["features"] = rows[3]["features"].copy()
    rows[3]["features"][:, 1, 0] *= -1  # one position of one frame, whose embedding is unchanged
    found = compare("embeddings", (rows, outputs), expected)
    assert found.value < -0.99
    assert not found.is_accepted


def test_auto_tries_a_failing_export_once(models, frames, monkeypatch, tmp_path, caplog):
    calls = []

    def refuse(*args):
        calls.append(args)
        raise UserError("the graph contains GridSample, which runtimes on devices cannot run")

    monkeypatch.setattr(runtimes, "write_onnx", refuse)
    monkeypatch.setattr(Runtimes, "_time", lambda *args: 1.0)
    others = ("float32", "int8")
    monkeypatch.setattr(
        settings, "supported_precisions", lambda name: ("float32", "bf16") if name == "torch" else others
    )
    with caplog.at_level("INFO", "surgenet_hf"):
        next(surgenet_hf.predict(str(models / "backbone"), frames, precision="auto", calibration=[str(frames)]))
    assert len(calls) == 1
    table = next(message for message in caplog.messages if message.startswith("Runtimes and precisions"))
    assert table.count("contains GridSample") == 2  # once per runtime
    assert "torch bf16" in table


def test_frames_are_read_one_at_a_time_and_evenly(frames):
    sources = find_sources(frames)
    assert list(spread_places(sources, 3)) == [0, 2, 4]
    assert list(spread_places(sources, 9)) == [0, 1, 2, 3, 4]
    alive, found = [], []
    for image in iterate_images(sources, None, [1, 2, 4, 7]):
        alive.append(weakref.ref(image))
        found.append(np.asarray(image).copy())
        assert sum(each() is not None for each in alive) <= 2
    assert len(found) == 3
    for pixels, i in zip(found, (1, 2, 4), strict=True):
        np.testing.assert_array_equal(pixels, np.asarray(IMAGES[i]))


def test_compile_without_a_compiler(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler, and no-such-compiler was not found; install it"):
        check_arguments(RuntimeArguments(compile=True))
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    check_arguments(RuntimeArguments(compile=True))
