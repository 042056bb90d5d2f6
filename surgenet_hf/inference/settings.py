"""Runtimes and precisions of predictions: options, which combinations exist, and what this machine supports."""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import UserError
from ..options import option
from .packages import import_openvino

AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16", "int8")
# {runtime: its precisions on a CPU}. ONNX Runtime has no 16-bit kernels for convolutions there
RUNTIMES = {
    "torch": ("float32", "bf16", "fp16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": PRECISIONS,
}
PACKAGES = {
    "torch": (),
    "onnxruntime": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
QUANTIZER = "nncf"


@dataclass(frozen=True)
class Setting:
    """How a network runs. The default is reproducible float32 in PyTorch."""

    runtime: str = "torch"
    precision: str = "float32"
    compile: bool = False

    def __str__(self) -> str:
        return f"{self.runtime} {self.precision}" + ", compiled" * self.compile


@dataclass(frozen=True)
class RuntimeArguments:
    """Runtime and precision of the network."""

    runtime: str | None = option(
        None,
        "Library that runs the network. onnxruntime and openvino run on the CPU. Default: torch, or the fastest one "
        "with --precision auto.",
        choices=list(RUNTIMES),
    )
    precision: str = option(
        "float32",
        "Precision of the computation. int8 needs --calibration. auto: the fastest within tolerance on the first "
        "frames; not for evaluations.",
        choices=[*PRECISIONS, AUTO],
    )
    compile: bool = option(False, "Whether to compile the network with torch.compile, for --runtime torch.")
    calibration: list[str] | None = option(
        None, "Frames for the quantization to int8: images, videos, folders, or glob patterns. 128 of them are used."
    )

    @property
    def setting(self) -> Setting:
        """The setting, unless the precision is auto."""
        return Setting(self.runtime or "torch", self.precision, self.compile)


def check_arguments(arguments: RuntimeArguments) -> None:
    """Check that runtime and precision exist, that their packages are installed, and that they fit each other.

    Raises:
        UserError: they do not. The message says what is possible.
    """
    runtime, precision = arguments.runtime or "torch", arguments.precision
    if runtime not in RUNTIMES:
        raise UserError(f"--runtime must be one of {', '.join(RUNTIMES)}, got {runtime!r}")
    if precision not in (*PRECISIONS, AUTO):
        raise UserError(f"--precision must be one of {', '.join((*PRECISIONS, AUTO))}, got {precision!r}")
    if precision != AUTO and precision not in RUNTIMES[runtime]:
        others = ", ".join(name for name, precisions in RUNTIMES.items() if precision in precisions)
        raise UserError(
            f"--runtime {runtime} does not support --precision {precision}; it supports "
            f"{', '.join(RUNTIMES[runtime])}. For {precision}, choose --runtime {others}"
        )
    if arguments.compile and runtime != "torch":
        raise UserError(f"--compile is for --runtime torch; omit it, or omit --runtime {runtime}")
    if precision == "int8" and not arguments.calibration:
        raise UserError(
            "--precision int8 needs --calibration with frames like those of the input, from which it computes the "
            "range of each value"
        )
    if arguments.calibration and precision not in ("int8", AUTO):
        raise UserError(f"--calibration is for --precision int8 and auto, not for {precision}; omit it")
    check_installed(runtime, bool(arguments.calibration), "--runtime torch without --calibration")
    if arguments.compile:
        check_compiler()


def check_installed(runtime: str, quantizes: bool, alternative: str) -> None:
    """Check that the packages of a runtime are installed.

    Args:
        runtime: key of `PACKAGES`.
        quantizes: whether the network is quantized to int8.
        alternative: options that need no further packages.

    Raises:
        UserError: a package is missing. The message names the extra to install.
    """
    needed = (*PACKAGES[runtime], *(("onnx", "onnxscript", QUANTIZER) if quantizes else ()))
    if missing := [name for name in dict.fromkeys(needed) if find_spec(name) is None]:
        extra = "openvino" if quantizes else EXTRAS[runtime]
        raise UserError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; run "
            f"pip install 'surgenet_hf[{extra}]', or use {alternative}"
        )


def check_compiler() -> None:
    """Check that `torch.compile` finds the compiler that it needs: of C++ for a CPU, of C for a GPU.

    Raises:
        UserError: it does not.
    """
    import torch

    names: tuple[str, ...]
    if torch.accelerator.is_available():
        language, variable, names = "C", "CC", ("gcc", "clang", "cc", "cl")
    else:
        language, variable, names = "C++", "CXX", ({"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"),)
    if chosen := shlex.split(os.environ.get(variable, "")):  # possibly with options
        names = (chosen[0],)
    if not any(map(shutil.which, names)):
        raise UserError(
            f"--compile needs a {language} compiler, and {' or '.join(names)} was not found; install it (on Debian "
            f"and Ubuntu: apt install build-essential), set {variable} to another compiler, or omit --compile"
        )


def supported_precisions(runtime: str) -> tuple[str, ...]:
    """Return the precisions of an installed runtime that this machine supports."""
    if runtime != "openvino":
        return RUNTIMES[runtime]
    found = import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {"float32": "FP32", "bf16": "BF16", "fp16": "FP16", "int8": "INT8"}
    return tuple(precision for precision in PRECISIONS if names[precision] in found)


def check_machine(setting: Setting) -> None:
    """Check that this machine supports the precision.

    Raises:
        UserError: it does not.
    """
    if setting.precision not in (supported := supported_precisions(setting.runtime)):
        raise UserError(
            f"the processor of this machine does not support --precision {setting.precision} in {setting.runtime}; "
            f"it supports {', '.join(supported)}"
        )


def candidates(arguments: RuntimeArguments, on_cpu: bool) -> list[Setting]:
    """Return the settings among which `auto` chooses. The first is the reference, float32 in PyTorch.

    Args:
        arguments: options. Without a runtime, all installed ones are candidates. int8 needs calibration frames.
        on_cpu: whether the device is a CPU. On others, only PyTorch is a candidate unless a runtime is given.
    """
    if arguments.runtime:
        runtimes = [arguments.runtime]
    else:
        usable = list(RUNTIMES) if on_cpu else ["torch"]
        runtimes = [name for name in usable if all(find_spec(package) for package in PACKAGES[name])]
    found = [Setting()]
    for runtime in runtimes:
        for precision in supported_precisions(runtime):
            if precision != "int8" or arguments.calibration:
                found.append(Setting(runtime, precision))
                if arguments.compile and runtime == "torch":
                    found.append(Setting(runtime, precision, True))
    return list(dict.fromkeys(found))
