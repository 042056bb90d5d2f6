"""Print the versions of the software and the devices of this machine, for bug reports.

  surgenet env

Nothing in the output identifies the user or the machine.
"""

import platform
from importlib.metadata import PackageNotFoundError, version

from .arguments import ArgumentParser, command

LIBRARIES = (
    "surgenet_hf", "torch", "torchvision", "transformers", "timm", "accelerate", "datasets", "evaluate",
    "huggingface_hub", "safetensors", "numpy", "pillow", "av", "gradio",
)  # fmt: skip


@command
def main(argv: list[str] | None = None) -> None:
    ArgumentParser((), prog="surgenet env", description=__doc__).parse_args(argv)

    import torch

    print(f"- python: {platform.python_version()}")
    print(f"- platform: {platform.system()} {platform.machine()}")
    for name in LIBRARIES:
        print(f"- {name}: {_version(name)}")
    if not torch.accelerator.is_available():
        print(f"- accelerator: none; CPU threads: {torch.get_num_threads()}")
        return
    print(f"- accelerator: {torch.accelerator.current_accelerator().type} x {torch.accelerator.device_count()}")
    if torch.cuda.is_available():
        print(f"- device: {torch.cuda.get_device_name()}")
        print(f"- CUDA: {torch.version.cuda}, bf16: {torch.cuda.is_bf16_supported()}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
