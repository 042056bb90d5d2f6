"""Start the Gradio demo in the browser. It is not a medical device.

Without network access, the demo trains a small model and uses it.

  surgenet demo
  surgenet demo --model outputs/quickstart/model --port 7861
"""

import os
import sys
from dataclasses import dataclass
from importlib.util import find_spec

from ..errors import UserError
from ..options import option
from .arguments import ArgumentParser, command


@dataclass
class DemoArguments:
    """Arguments of `surgenet demo`."""

    model: list[str] = option(
        [], "Folders or Hub repositories of models that the demo offers in addition to the published ones."
    )
    port: int | None = option(None, "Port to listen on. Default: the first free one from 7860.")
    share: bool = option(False, "Whether to create a public link through Gradio's servers, valid for 72 hours.")


def parse_arguments(argv: list[str] | None = None) -> DemoArguments:
    """Parse the command line of the demo."""
    (args,) = ArgumentParser(DemoArguments, prog="surgenet demo", description=__doc__).parse_args_into_dataclasses(
        argv
    )
    return args


@command
def main(argv: list[str] | None = None) -> None:
    """Start the demo, and serve it until it is interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    parse_arguments(argv)
    if missing := [name for name in ("av", "filelock", "gradio") if find_spec(name) is None]:
        raise UserError(f"the demo needs {', '.join(missing)}; install them with pip install 'surgenet_hf[demo]'")
    from ..publishing.spaces import demo_folder

    # a new process, because libraries read the environment variables that the app sets when they are imported
    os.execv(sys.executable, [sys.executable, str(demo_folder() / "app.py"), *argv])


if __name__ == "__main__":
    main()
