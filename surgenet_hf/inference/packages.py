"""Imports of ONNX Runtime, OpenVINO, and NNCF without their usage statistics.

By default, these packages send usage statistics to Microsoft (ONNX Runtime) and Google Analytics (OpenVINO, NNCF) and
write an id into the user's home folder, some of it on import. ONNX Runtime does neither with `ORT_DISABLE_TELEMETRY`.
The others do neither if the package `openvino_telemetry`, which contains their client, cannot be imported. Use the
functions of this module instead of import statements.
"""

import os
import sys
from importlib import import_module
from typing import Any

from ..errors import UserError


def import_onnxruntime() -> Any:
    """Return the package `onnxruntime`, with its usage statistics turned off.

    Raises:
        UserError: it is not installed.
    """
    return _import("onnxruntime", "onnx")


def import_openvino() -> Any:
    """Return the package `openvino`, with its usage statistics turned off.

    Raises:
        UserError: it is not installed.
    """
    return _import("openvino", "openvino")


def import_nncf() -> Any:
    """Return the package `nncf`, with its usage statistics turned off.

    Raises:
        UserError: it is not installed.
    """
    return _import("nncf", "openvino")


def disable_usage_statistics() -> None:
    """Prevent that onnxruntime, openvino, and nncf send usage statistics in this process, from now on."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if runtime := sys.modules.get("onnxruntime"):  # the user has imported it
        runtime.disable_telemetry_events()
    client: Any = sys.modules.get("openvino_telemetry")
    if client is None:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # its import raises an ImportError
    else:  # the user has imported openvino or nncf
        client.main.TelemetrySender.send = lambda *args: None


def _import(name: str, extra: str) -> Any:
    disable_usage_statistics()
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UserError(f"{name} is not installed; install it with pip install 'surgenet_hf[{extra}]'") from error
