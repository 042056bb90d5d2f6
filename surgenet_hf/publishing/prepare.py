"""Preparation of the files of a Hub repository in a local folder."""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModel, Dinov2WithRegistersModel, DINOv3ViTModel, PreTrainedModel

from .._version import __version__
from ..checkpoints.catalog import CatalogEntry
from ..checkpoints.conversion import to_original_state_dict
from ..checkpoints.licenses import has_dinov3_license
from ..checkpoints.reading import check_finite, file_sha256, read_checkpoint
from ..data.sets import synthetic
from ..errors import MissingFileError, UserError
from ..evaluation.results import find_results, read_results_file
from ..image_processing import build_image_processor, load_image_processor
from ..inference.deployed import ExportSettings
from ..inference.export import export_model
from ..modeling_surgenet import SurgeNetBackbone, SurgeNetModel
from ..models import convert_entry, download_teacher, is_surgenet, load_config, model_folder
from ..privacy import Sanitizer, neutral_names, sanitize_results
from ..tasks import find_task
from .cards import checkpoint_card, finetuned_card, onnx_section, pretrained_card
from .remote_code import AUTO_MAP, REMOTE_CODE
from .vit_cards import LICENSE_FILE, LICENSE_TEXT

# classes of the backbones that pretraining and conversion write
PRETRAINED = (SurgeNetModel, Dinov2WithRegistersModel, DINOv3ViTModel)
# maximum difference between the features of source and saved weights, relative to the largest value
TOLERANCE = 1e-5


def prepare_checkpoint(entry: CatalogEntry, repo_id: str, folder: Path) -> None:
    """Download, verify, and convert a published checkpoint, and write the files of its repository.

    Args:
        entry: catalog entry of the checkpoint.
        repo_id: repository that the card names.
        folder: new folder for the files.

    Raises:
        UserError: the file differs from the catalog, or the saved model does not reproduce the features of the source.
        UnavailableError: the Hub cannot be reached.
    """
    source = download_teacher(entry)
    model = convert_entry(entry, source)
    if entry.is_vit:
        model.save_pretrained(folder)
        if entry.license == "other":
            shutil.copyfile(LICENSE_TEXT, folder / LICENSE_FILE)
    else:
        _write_model(model, folder, str(source))
    build_image_processor(entry.normalization, entry.image_size).save_pretrained(folder)
    if entry.is_vit:
        compare_with_tensors(source, folder)
    else:
        compare_with_source(entry, source, folder)
    provenance = {
        "upstream file": f"{entry.upstream_repo}/{entry.teacher_file}",
        "SHA-256 of the upstream file": file_sha256(source),
        "converted by": f"surgenet_hf {__version__}",
        "SHA-256 of model.safetensors": file_sha256(folder / "model.safetensors"),
    }
    (folder / "README.md").write_text(checkpoint_card(entry, repo_id, provenance), encoding="utf-8")


def prepare_finetuned(
    model_dir: str | Path, repo_id: str, folder: Path, publish_video_names: bool = False, onnx: bool = False
) -> dict[str, list[str]]:
    """Write the files of the repository of a user's own model: a fine-tuned model of any family that `tasks` knows, or
    a pretrained backbone.

    Only the last component of each path is published. The user's own videos get neutral names by default; see
    `surgenet_hf.privacy`.

    Args:
        model_dir: folder with the model, or output folder of its run.
        repo_id: repository that the card names.
        folder: new folder for the files.
        publish_video_names: whether to keep the names of the user's own videos.
        onnx: whether to add `onnx/model.onnx`, the model in float32 or the embeddings of a backbone.

    Returns:
        {kind: names in the published files}, for videos, datasets, and folders.

    Raises:
        MissingFileError: `model_dir` has no model.
        UserError: the model has no head for a task and is not a backbone that pretraining or conversion writes, its
            weights are not finite, or its results.json is damaged. Also raised if there is no image processor and the
            config does not record the normalization.
    """
    model_dir = model_folder(Path(model_dir))
    for name in ("config.json", "model.safetensors"):
        if not (model_dir / name).is_file():
            raise MissingFileError(f"{model_dir} contains no {name}; save the model and its image processor there")
    model = _load_model(model_dir)
    _write_model(model, folder, str(model_dir))
    if has_dinov3_license(model.config):
        shutil.copyfile(LICENSE_TEXT, folder / LICENSE_FILE)
    load_image_processor(model_dir).save_pretrained(folder)
    provenance = {
        "published by": f"surgenet_hf {__version__}",
        "SHA-256 of model.safetensors": file_sha256(folder / "model.safetensors"),
    }
    path = find_results(model_dir)
    results = read_results_file(path) if path else None
    names = {} if results is None or publish_video_names else neutral_names(results)
    if results is not None:
        results = sanitize_results(results, repo_id, names)
        text = json.dumps(results, indent=2, ensure_ascii=False)
        (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    _sanitize_settings(folder, names)
    card = pretrained_card if isinstance(model, PRETRAINED) else finetuned_card
    text = card(folder, repo_id, provenance)
    if onnx:
        text += onnx_section(_write_onnx(folder, model), repo_id)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return published_names(folder, results)


def _write_onnx(folder: Path, model: PreTrainedModel) -> dict:
    """Write `onnx/model.onnx` of a prepared model, compare it with the model, and return its metadata.

    The batch size, height, and width are dynamic where the model allows it.
    """
    # from the prepared files, whose settings are sanitized
    model = type(model).from_pretrained(folder).float().eval()
    processor = load_image_processor(folder)
    found = find_task(model.config)
    names = {"semantic-segmentation": "segmentation", "image-classification": "classification"}
    task = "embeddings" if found is None or isinstance(model, PRETRAINED) else names.get(found[0], "phases")
    size = (processor.size["height"], processor.size["width"])
    dynamic = task != "phases" and not model.config.model_type.startswith("eomt")
    frames = [Image.fromarray(synthetic.draw(0, i, 0, (480, 854))[0]) for i in range(2)]
    export_model(model, processor, task, folder / "onnx", "onnx", ExportSettings(size, dynamic=dynamic), frames)
    path = folder / "onnx" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()  # the ONNX file contains it
    return metadata


def published_names(folder: Path, results: dict | None) -> dict[str, list[str]]:
    """List the names of videos, datasets, and folders in a prepared model and its results, for review by the user."""
    pretraining = getattr(AutoConfig.from_pretrained(folder), "pretraining", None) or {}
    names = {"pretraining": [pretraining.get("name", "unknown")]}
    if results is not None:
        data = results["data"]
        names |= {"dataset": [data["name"]], "videos": data["videos"], "notes": data["notes"]}
        names["command"] = [results["command"]] if "command" in results else []
    return {kind: found for kind, found in names.items() if found}


def _sanitize_settings(folder: Path, names: Mapping[str, str]) -> None:
    """Shorten paths in config and image processor, and replace names of videos in the config's pretraining."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plain, named = Sanitizer({}), Sanitizer(names)

    def clean(settings: dict) -> dict:
        cleaned = {}
        for key, item in settings.items():
            if key in ("id2label", "label2id"):  # class names such as "clip/cut" are not paths
                cleaned[key] = item
            elif key == "finetuning" and item:
                protocols = {run.get("split_protocol") for run in item}  # "32/8/40 (...)" is not a path
                cleaned[key] = Sanitizer({}, protocols).value(item)
            elif isinstance(item, dict) and key != "pretraining":
                cleaned[key] = clean(item)
            else:
                cleaned[key] = (named if key == "pretraining" else plain).value(item)
        return cleaned

    processor = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    for name, settings in (("config.json", config), ("preprocessor_config.json", processor)):
        text = json.dumps(clean(settings), indent=2, sort_keys=True)
        (folder / name).write_text(text + "\n", encoding="utf-8")


def compare_with_source(entry: CatalogEntry, source: Path, folder: Path) -> None:
    """Compare the features of a saved model with those of timm's network, loaded from the source file by timm's key
    mapping.

    Args:
        entry: catalog entry of the model.
        source: original weight file.
        folder: folder of the saved model.

    Raises:
        UserError: the features of a stage differ by more than `TOLERANCE`, relative to the largest value.
    """
    reference = timm_reference(entry, source)
    backbone = SurgeNetBackbone.from_pretrained(folder, out_indices=[1, 2, 3, 4]).eval()
    base = SurgeNetModel.from_pretrained(folder).eval()
    pixel_values = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        final, expected = reference.forward_intermediates(pixel_values)
        found = [*backbone(pixel_values).feature_maps, base(pixel_values).pooler_output]
        expected = [*expected, reference.forward_head(final)]
    for name, ours, theirs in zip(
        ("stage 1", "stage 2", "stage 3", "stage 4", "embedding"), found, expected, strict=True
    ):
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        if not error <= TOLERANCE:
            raise UserError(
                f"{entry.name}: {name} of the saved model differs from the source by {error:.1e}, relative to the "
                f"largest value, expected at most {TOLERANCE}. Try another version of timm"
            )


def compare_with_tensors(source: Path, folder: Path) -> None:
    """Compare the weights of a saved vision transformer, converted back, with those of the source file.

    Args:
        source: original weight file.
        folder: folder of the saved model.

    Raises:
        UserError: a tensor differs in any bit.
    """
    found = to_original_state_dict(AutoModel.from_pretrained(folder))
    expected = read_checkpoint(source).tensors
    wrong = [name for name in expected if name not in found or not torch.equal(found[name], expected[name])]
    if wrong or found.keys() - expected.keys():
        raise UserError(
            f"{len(wrong)} of {len(expected)} tensors of the saved model differ from {source}: {wrong[:3]}. "
            "Try another version of transformers"
        )


def timm_reference(entry: CatalogEntry, source: Path) -> nn.Module:
    """Return timm's network for a catalog entry, without a classifier, strictly loaded from the source file."""
    options: dict[str, Any] = {"mlp_act": nn.ReLU, "act1_layer": nn.ReLU} if entry.activation == "relu" else {}
    network = timm.create_model(entry.backbone, num_classes=0, **options)
    tensors = {
        name: tensor for name, tensor in read_checkpoint(source).tensors.items() if not name.startswith("head.")
    }
    family = sys.modules[type(network).__module__]
    network.load_state_dict(family.checkpoint_filter_fn(tensors, network), strict=True)
    return network.eval()


def _load_model(model_dir: Path) -> PreTrainedModel:
    try:
        config = load_config(model_dir)
        architecture = (config.architectures or [None])[0]
        modules = REMOTE_CODE.get(config.model_type, ())
        classes = {name: cls for module in modules for name, cls in vars(module).items() if isinstance(cls, type)}
        pretrained = [cls.__name__ for cls in PRETRAINED]
        if architecture not in (*classes, *pretrained) and find_task(config) is None:
            raise UserError(
                f"{model_dir} contains a {config.model_type} ({architecture}), expected a model that was trained or "
                "converted with this package. Publish other models with push_to_hub of transformers"
            )
        if config.model_type == "surgical" and is_surgenet(config.backbone_config):
            raise UserError(
                f"{model_dir} contains a {architecture} on a SurgeNet backbone, whose code a repository cannot load. "
                "Train with SurgeNet's own head, without --head and --pooling, to publish the model"
            )
        model_class = classes.get(architecture) or getattr(transformers, architecture)
        return model_class.from_pretrained(model_dir)
    except UserError:
        raise
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:  # errors of transformers for damaged files
        raise UserError(f"{model_dir} cannot be loaded: {error}. Save the model again") from error


def _write_model(model, folder: Path, source: str) -> None:
    """Write config and weights, and for our own classes `auto_map` and the code that it names.

    Args:
        model: model to save.
        folder: folder for the files.
        source: name of the model in error messages.
    """
    check_finite(model.state_dict(), source)
    model_type = model.config.model_type
    if model_type in AUTO_MAP:
        model.config.auto_map = dict(AUTO_MAP[model_type])
    model.save_pretrained(folder)
    for module in REMOTE_CODE.get(model_type, ()):
        shutil.copyfile(module.__file__, folder / Path(module.__file__).name)
