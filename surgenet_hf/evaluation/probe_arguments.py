"""Options of `surgenet probe`. Importing this module loads no evaluation code."""

from dataclasses import MISSING, dataclass

from ..configuration_surgical import POOLINGS
from ..errors import UserError
from ..options import option

METHODS = {"knn": "k-NN", "linear": "linear probe"}  # {option: mode in the results}
DEFAULT_POOLING = "default"
PROBE_POOLINGS = (DEFAULT_POOLING, *POOLINGS)


@dataclass
class ProbeArguments:
    """Which frozen features are probed, and how."""

    model_name_or_path: str = option(
        MISSING,
        "Model with the features: a published checkpoint by name, timm/NAME, a Hub repository, or a folder. Its head, "
        "if any, is not used.",
    )
    output_dir: str | None = option(None, "Folder for results.json, run.yaml, and figures.")
    features_dir: str | None = option(
        None, "Folder for the features, which several probes can share. Default: features in output_dir."
    )
    method: str = option(
        "knn", "Classifier of the features. knn: weighted k-NN. linear: logistic regression.", choices=list(METHODS)
    )
    pooling: str = option(
        DEFAULT_POOLING,
        "Pooling of the last hidden state. default: the embedding of the model itself. cls: class token. mean: mean "
        "over the patches. topk: mean of the 10 largest activations of each channel.",
        choices=list(PROBE_POOLINGS),
    )
    k: int = option(20, "Number of neighbors that vote in k-NN. 20 is DINO's value.")
    temperature: float = option(0.07, "Temperature of the votes in k-NN. 0.07 is DINO's value.")
    regularization: float | None = option(
        None, "Inverse strength C of the penalty of the linear probe. Default: selected on the validation split."
    )
    seed: int = option(0, "Seed that draws the videos of --train_fraction. Nothing else is random.")
    split: str | None = option(
        None, "Split to evaluate on. Default: test if the dataset has it, otherwise validation."
    )
    image_size: int | None = option(
        None, "Height and width in pixels to which frames are resized. Default: the size of the image processor."
    )
    per_device_eval_batch_size: int = option(8, "Number of frames per forward pass.")

    def __post_init__(self):
        for name, least in (("k", 1), ("seed", 0), ("per_device_eval_batch_size", 1), ("image_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"--{name} must be at least {least}, got {value}")
        for name in ("temperature", "regularization"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} must be greater than 0, got {value}")
        if self.method == "knn" and self.regularization is not None:
            raise UserError("--regularization is for --method linear: omit it")

    @property
    def selects(self) -> bool:
        """Return whether the validation split selects the regularization."""
        return self.method == "linear" and self.regularization is None
