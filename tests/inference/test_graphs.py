"""Quantization of ONNX files, and privacy of the packages that do it."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgenet_hf.errors import UserError
from surgenet_hf.inference.graphs import quantize_onnx

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("nncf")

# records connections of this process and of its forks, also after sockets were replaced by their subclasses
RECORDER = """
import os, socket
def record(*args, **kwargs):
    with open(os.environ["RECORD"], "a") as file:
        file.write(repr(args) + "\\n")
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = record
"""
QUANTIZATION = """
import numpy as np
from pathlib import Path
from surgenet_hf.inference.graphs import quantize_onnx
from surgenet_hf.inference.packages import import_openvino
quantize_onnx(Path("model.onnx"), [{"x": np.full((1, 3, 8, 8), i, np.float32)} for i in range(2)])
openvino = import_openvino()
openvino.save_model(openvino.convert_model("model.onnx"), "model.xml")
"""


def write_convolution(path):
    """Write an ONNX file with one convolution, and return its weights (8, 3, 3, 3)."""
    weights = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)
    shapes = {"x": [1, 3, 8, 8], "y": [1, 8, 6, 6]}
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items())
    node = helper.make_node("Conv", ["x", "weights"], ["y"], name="convolution")
    graph = helper.make_graph([node], "g", [given], [result], [numpy_helper.from_array(weights, "weights")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"notice": "not a medical device"})
    onnx.save(model, path)
    return weights


def test_quantized_files_have_weights_of_8_bits_and_close_outputs(tmp_path):
    weights = write_convolution(tmp_path / "model.onnx")
    samples = [{"x": np.random.default_rng(i).uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)} for i in range(9)]

    def run():
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        return session.run(["y"], samples[-1])[0]

    expected = run()
    alive = []

    def one_at_a_time():
        for sample in samples[:-1]:
            sample = sample["x"].copy()
            alive.append(weakref.ref(sample))
            yield {"x": sample}
            assert sum(each() is not None for each in alive) == 1  # frames in 4K would take gigabytes

    assert quantize_onnx(tmp_path / "model.onnx", one_at_a_time()) == 8
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx")
    kinds = {tensor.data_type for tensor in model.graph.initializer if tuple(tensor.dims) == weights.shape}
    assert kinds == {TensorProto.INT8}
    assert {entry.key: entry.value for entry in model.metadata_props}["notice"] == "not a medical device"
    error = np.abs(run() - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.02
    with pytest.raises(UserError, match="int8 needs calibration frames"):
        quantize_onnx(tmp_path / "model.onnx", [])


@pytest.mark.slow
def test_quantization_sends_no_usage_statistics(tmp_path):
    """Test that onnxruntime, openvino, and nncf open no connection and write nothing into the home folder.

    The processes do not import pytest, in which nncf sends nothing anyway. The second one, which imports openvino
    without `surgenet_hf`, shows that the recorder works. It does not see the connections of ONNX Runtime, whose client
    is not written in Python, but this client always writes a database into the home folder.
    """
    pytest.importorskip("openvino_telemetry")
    write_convolution(tmp_path / "model.onnx")
    home = tmp_path / "home"
    found = []
    for code in (QUANTIZATION, "import openvino"):
        home.mkdir(exist_ok=True)
        # a CI variable would turn the statistics off too
        kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
        env = kept | {"HOME": str(home), "LOCALAPPDATA": str(home), "RECORD": str(tmp_path / "record")}
        env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        subprocess.run([sys.executable, "-c", RECORDER + code], env=env, cwd=tmp_path, check=True)
        found.append((sorted(path.name for path in home.iterdir()), (tmp_path / "record").exists()))
    assert found == [([], False), (["intel"], True)]
