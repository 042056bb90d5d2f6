"""Description of a weight file."""

import os

from .catalog import find_by_sha256
from .conversion import describe_network
from .reading import CheckpointFile, plain, read_checkpoint


def inspect_checkpoint(path: str | os.PathLike, network: str = "teacher") -> dict:
    """Describe the content of a weight file in JSON types.

    For an unknown network, the description has a `problem`.

    Args:
        path: the file.
        network: network of a full DINO checkpoint, "teacher" or "student".

    Raises:
        MissingFileError, UserError: see `read_checkpoint`.
    """
    checkpoint = read_checkpoint(path, network)
    entry = find_by_sha256(checkpoint.sha256)
    description = {
        "file": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "sha256": checkpoint.sha256,
        "published_as": entry.name if entry else None,
        "layout": {"dino": "full DINO checkpoint", "weights": "weights alone"}[checkpoint.layout],
        "prefix": checkpoint.prefix,
        "tensors": len(checkpoint.tensors),
        "parameters": sum(tensor.numel() for tensor in checkpoint.tensors.values()),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in checkpoint.tensors.values()}),
        **describe_network(checkpoint),
    }
    if checkpoint.heads:
        description["heads_of_pretraining"] = checkpoint.heads
    if checkpoint.layout == "dino":
        description |= {"network": checkpoint.network, "epoch": checkpoint.epoch, "dino_head": _head(checkpoint)}
        if checkpoint.center is not None and checkpoint.center.numel():
            center = checkpoint.center.float()
            description["center"] = {
                "size": center.numel(),
                "mean": center.mean().item(),
                "std": center.std().item(),
                "min": center.min().item(),
                "max": center.max().item(),
            }
        description["args"] = dict(sorted(plain(checkpoint.args).items()))
    return description


def _head(checkpoint: CheckpointFile) -> dict:
    """Return the sizes of the projection head: input, hidden layers, bottleneck, and output."""
    layers = [t.shape for name, t in checkpoint.dino_head.items() if name.startswith("mlp.") and t.dim() == 2]
    last = [t.shape[0] for name, t in checkpoint.dino_head.items() if name.startswith("last_layer.") and t.dim()]
    return {
        "layers": [layers[0][1], *(rows for rows, _ in layers)] if layers else [],
        "out_dim": last[0] if last else None,
        "parameters": sum(tensor.numel() for tensor in checkpoint.dino_head.values()),
    }
