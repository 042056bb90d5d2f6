"""Start the Gradio demo in the browser. Not a medical device.

Without network, it works with a small model that it trains itself.

surgenet demo
surgenet demo --model outputs/quickstart/model --port 7861
"""

import sys
from dataclasses import dataclass, field

from ..errors import UserError
from .arguments import ArgumentParser, command


@dataclass
class DemoArguments:
    """Arguments of `surgenet demo`."""

    model: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or Hub ids of models that the demo offers besides the published ones."},
    )
    port: int | None = field(
        default=None, metadata={"help": "Port to listen on. Default: the first free one from 7860."}
    )
    share: bool = field(
        default=False, metadata={"help": "Public link through Gradio's servers for 72 hours. Default: local only."}
    )


def parse_arguments(argv: list[str] | None = None) -> DemoArguments:
    """Parse the command line of the demo."""
    (args,) = ArgumentParser(DemoArguments, description=__doc__).parse_args_into_dataclasses(argv)
    return args


@command
def main(argv: list[str] | None = None) -> None:
    """Start the demo, and serve it until it is interrupted."""
    args = parse_arguments(argv)
    from ..publishing.spaces import demo_folder

    sys.path.insert(0, str(demo_folder()))  # the files of a Space import each other by their bare names
    try:
        import app
    except ModuleNotFoundError as error:
        if error.name not in ("av", "filelock", "gradio"):
            raise
        raise UserError(f"the demo needs {error.name}: pip install 'surgenet_hf[demo]'") from error
    app.run(args.model, args.port, args.share)


if __name__ == "__main__":
    main()
