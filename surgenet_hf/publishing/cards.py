"""Model cards (README.md) of Hub repositories."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from .._version import __version__
from ..checkpoints.catalog import (
    CITATIONS,
    NORMALIZATIONS,
    CatalogEntry,
    base_entry,
    is_from_scratch,
    known_leakage,
    recorded_normalization,
)
from ..checkpoints.licenses import license_names
from ..configuration_surgenet import SurgeNetConfig
from ..evaluation.results import SCHEMA, find_results, headlines, interval_bounds, metric_title, read_results_file
from ..evaluation.statistics import MIN_VIDEOS, interval_warning
from ..leakage import describe_finetuning
from ..models import is_surgenet
from ..tasks import TASKS, find_task
from . import vit_cards
from .remote_code import REMOTE_CODE

TEMPLATE = Path(__file__).with_name("card_template.md")
INSTALL = 'pip install torch torchvision "transformers>=5.4,<6" "timm>=1.0.21"'  # as in setup.cfg
REVISION = f"v{__version__}"  # tag that publishing sets and the remote code examples pin
SURGICAL_TAGS = ["surgery", "endoscopy", "medical"]
TAGS = ["surgenet", *SURGICAL_TAGS, "timm"]
VITS = {384: "ViT-S", 768: "ViT-B", 1024: "ViT-L"}  # by width
BACKBONE_NAMES = {"caformer_s18": "CAFormer-S18", "convnextv2_tiny": "ConvNeXtV2-Tiny", "pvt_v2_b2": "PVTv2-B2"}
# numbers for the full-size backbones; with StarReLU, each of CAFormer's 24 activations has an extra scale and bias
PARAMETERS = {"caformer_s18": 23_237_888, "convnextv2_tiny": 27_866_496, "pvt_v2_b2": 24_849_856}
STAR_RELU_PARAMETERS = 48
PAPERS = {"surgenetxl": "2501.09436", "demi2024": "2407.17904", "metaformer": "2210.13452"}  # arXiv ids
HUB_DATASETS = {"SurgeNetYoutube": "TimJaspersTue/SurgeNetYoutube", "DSAD": "nct-tso/dsad"}
# Dice on CholecSeg8k, RAMIE, and RARP with fine-tuned / frozen encoder, read from the figure in Jaspers et al. 2024
DICE = {
    "ImageNet1k": ("0.560 / 0.550", "0.597 / 0.491", "0.388 / 0.359"),
    "SurgeNet-Small": ("0.602 / 0.613", "0.647 / 0.610", "0.511 / 0.500"),
    "procedure-specific subset": ("0.637 / 0.658", "0.653 / 0.617", "0.530 / 0.536"),
    "SurgeNet": ("0.691 / 0.639", "0.687 / 0.679", "0.544 / 0.513"),
}
IN_DICE_TABLE = ("ImageNet1k", "SurgeNet", "SurgeNet-Small", "SurgeNet-Cholec", "SurgeNet-RAMIE", "SurgeNet-RARP")


def checkpoint_card(entry: CatalogEntry, repo_id: str | None = None, provenance: dict[str, str] | None = None) -> str:
    """Render the card of a published checkpoint.

    Args:
        entry: catalog entry of the checkpoint.
        repo_id: repository of the card. Default: the repository of the entry.
        provenance: rows of the provenance table, set by publishing.
    """
    repo_id = repo_id or entry.repo_id
    if entry.is_vit:
        return _render(**vit_cards.card_context(entry, repo_id, provenance), template=vit_cards.TEMPLATE)
    config = SurgeNetConfig(backbone=entry.backbone, activation=entry.activation)
    surgical = entry.is_surgical
    upstream = f"[{entry.upstream_repo}](https://huggingface.co/{entry.upstream_repo})"
    return _render(
        ModelCardData(
            license=entry.license,
            library_name="transformers",
            pipeline_tag="image-feature-extraction",
            tags=TAGS
            + (["dino", "self-supervised-learning"] if surgical else [])
            + [f"arxiv:{PAPERS[key]}" for key in entry.citations],
            datasets=[HUB_DATASETS[data.name] for data in entry.pretraining_sets if data.name in HUB_DATASETS] or None,
            base_model=entry.upstream_repo,
        ),
        title=entry.name,
        summary=(
            f"{entry.name} is a surgical foundation model by Jaspers et al. It is a {BACKBONE_NAMES[entry.backbone]} "
            f"backbone, pretrained with DINO on {entry.pretraining_frames:,} frames of surgical video. The weights "
            f"were converted tensor by tensor from {upstream} for use with transformers."
            if surgical
            else f"{entry.name} is the ImageNet baseline of the SurgeNet papers. It is a "
            f"{BACKBONE_NAMES[entry.backbone]} backbone with StarReLU. The weights were converted tensor by tensor "
            f"from {upstream} for use with transformers."
        ),
        entry=entry,
        examples=_backbone_examples(repo_id),
        remote_example=_remote_example(repo_id, "AutoModel"),
        image_size=(entry.image_size, entry.image_size),
        mean=NORMALIZATIONS[entry.normalization][0],
        std=NORMALIZATIONS[entry.normalization][1],
        normalization=entry.normalization,
        config=config,
        surgenet=True,
        needs_package=True,
        scratch=False,
        parameters=PARAMETERS[entry.backbone] + (STAR_RELU_PARAMETERS if config.activation == "star_relu" else 0),
        dice=DICE if entry.name in IN_DICE_TABLE else None,
        leakage=_known_leakage(entry),
        provenance=provenance,
        license=entry.license,
        citations=[CITATIONS[key] for key in entry.citations],
    )


def finetuned_card(model_dir: str | Path, repo_id: str, provenance: dict[str, str] | None = None) -> str:
    """Render the card of a fine-tuned model of any family.

    Args:
        model_dir: folder with the config, image processor, and weights. The `results.json` of
            `surgenet_hf.evaluation.evaluate` is optional, in this folder or its parent folder.
        repo_id: repository of the card.
        provenance: rows of the provenance table.

    Raises:
        UserError: the results.json is damaged.
    """
    config = AutoConfig.from_pretrained(model_dir)
    path = find_results(model_dir)
    results = read_results_file(path) if path else None
    found = find_task(config)
    assert found is not None  # publishing accepts only models with a task, and pretrained backbones
    task, auto_class = TASKS[found[0]].pipeline_tag, found[1].__name__
    context = _own_context(model_dir, config, task, [], provenance)
    own_code = config.model_type in REMOTE_CODE
    needs_package = own_code or is_surgenet(context["config"])
    output = ".masks_queries_logits  # with .class_queries_logits" if "Universal" in auto_class else ".logits"
    is_phase = found[0] == "phase-recognition"
    example = _phase_example(repo_id) if is_phase else _example(repo_id, auto_class, output)
    return _render(
        **context
        | {
            "title": repo_id.split("/")[-1],
            "summary": f"{_article(context['backbone_name']).title()} {context['backbone_name']} model with "
            f"{_article(task)} {task} head for {len(config.id2label)} classes: {', '.join(config.id2label.values())}.",
            "examples": [example if needs_package else example.removeprefix("import surgenet_hf\n")],
            "needs_package": needs_package,
            "remote_example": _remote_example(repo_id, auto_class, "COMMIT") if own_code else None,
            "architecture": config.architectures[0],
            "base": _link(context["pretraining"]["name"]),
            "results": results,
            "metrics": _headline_metrics(results) if results else None,
            "leakage": [*describe_finetuning(context["config"]), *context["leakage"]],
        }
    )


def pretrained_card(
    model_dir: str | Path, repo_id: str | None = None, provenance: dict[str, str] | None = None
) -> str:
    """Render the card of a user's own pretrained backbone.

    Args:
        model_dir: folder with the weights, image processor, and config. The `pretraining` of the config is from
            `pretraining.plan.describe_pretraining` or from a conversion.
        repo_id: repository of the card. None for a card that stays in the folder.
        provenance: rows of the provenance table.
    """
    config = AutoConfig.from_pretrained(model_dir)
    context = _own_context(
        model_dir, config, "image-feature-extraction", ["dino", "self-supervised-learning"], provenance
    )
    own = context.pop("pretraining")
    entry = base_entry(own["name"])
    surgenet, name = context["surgenet"], repo_id or Path(model_dir).name
    base = "random weights" if own.get("data") else _link(own["name"])
    if surgenet:
        examples = _backbone_examples(name, repo_id is None)
    else:
        example = _example(name, "AutoModel", ".pooler_output  # the embedding: the class token after the last norm")
        examples = [example.removeprefix("import surgenet_hf\n")]
    return _render(
        **context | {"needs_package": surgenet},
        title=repo_id.split("/")[-1] if repo_id else own["name"],
        summary=f"A {context['backbone_name']} backbone for surgical computer vision. Pretraining: "
        f"{_link(own['name'])}.",
        own=own,
        examples=examples,
        remote_example=_remote_example(repo_id, "AutoModel", "COMMIT") if repo_id and surgenet else None,
        architecture=config.architectures[0],
        base=_link(own["base"]["name"]) if own.get("base") else base,
        published=_link(entry.name) if entry else None,
    )


def onnx_section(metadata: dict, repo_id: str) -> str:
    """Render the section of a card about `onnx/model.onnx`.

    Args:
        metadata: metadata of the file, from `inference.deployed.describe`.
        repo_id: repository of the card.
    """
    inputs, outputs = _names(metadata["inputs"]), _names(metadata["outputs"])
    is_phase = len(metadata["inputs"]) > 1
    state = ", and the others the state, which is zero at the start of a video" if is_phase else ""
    return f"""
## ONNX

`onnx/model.onnx` has the inputs {inputs} and the outputs {outputs}, all float32.
`pixel_values` is the output of the image processor{state}. The file is for research only, and not
a medical device. ONNX Runtime sends usage statistics unless `ORT_DISABLE_TELEMETRY` is set:

```python
import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor

session = onnxruntime.InferenceSession(hf_hub_download("{repo_id}", "onnx/model.onnx"))
processor = AutoImageProcessor.from_pretrained("{repo_id}")
inputs = {{given.name: np.zeros(given.shape, np.float32) for given in session.get_inputs()[1:]}}
inputs["pixel_values"] = processor(Image.open("frame.jpg"), return_tensors="np").pixel_values
output = session.run(None, inputs)[0]  # {metadata["outputs"][0]}
```
"""


def _names(names: Sequence[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:2])
    return f"{listed} to `{names[-1]}`" if len(names) > 2 else listed


def _own_context(
    model_dir: str | Path, config: PreTrainedConfig, task: str, tags: list[str], provenance: dict[str, str] | None
) -> dict:
    """Return the arguments of `_render` that all cards of a user's own models share."""
    processor = AutoImageProcessor.from_pretrained(model_dir)
    pretraining = {"name": "unknown"} | (getattr(config, "pretraining", None) or {})
    entry = base_entry(pretraining["name"])
    backbone = getattr(config, "backbone_config", None) or config
    surgenet = is_surgenet(backbone)
    license, license_name = license_names(config, surgenet)
    dinov3 = license_name is not None
    cited = entry.citations if entry and entry.is_vit else ("surgenetxl", "demi2024") if surgenet else ()
    return {
        "card_data": ModelCardData(
            license=license,
            license_name=license_name,
            license_link=vit_cards.LICENSE_FILE if dinov3 else None,
            library_name="transformers",
            pipeline_tag=task,
            tags=[*(TAGS if surgenet else SURGICAL_TAGS), *tags],
            base_model=entry.repo_id if entry else None,
        ),
        "entry": None,
        "image_size": (processor.size["height"], processor.size["width"]),
        "mean": processor.image_mean,
        "std": processor.image_std,
        "normalization": recorded_normalization(pretraining),
        "config": backbone,
        "backbone_name": BACKBONE_NAMES[backbone.backbone] if surgenet else _backbone_name(backbone),
        "needs_package": True,
        "parameters": _count_parameters(Path(model_dir, "model.safetensors")),
        "pretraining": pretraining,
        "leakage": _known_leakage(entry),
        "seen": _own_data(pretraining),
        "provenance": provenance,
        "license": license,
        "both_licenses": entry is not None and entry.license == "other",
        "dinov3_license": dinov3,
        "surgenet": surgenet,
        "scratch": is_from_scratch(pretraining["name"]),
        "citations": [CITATIONS[key] for key in cited],
    }


def _render(card_data: ModelCardData, template: Path = TEMPLATE, **context) -> str:
    context = {"install": INSTALL, **context}
    text = str(ModelCard.from_template(card_data, template_path=str(template), **context))
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _backbone_examples(repo_id: str, is_folder: bool = False) -> list[str]:
    outputs: dict[str, Any] = {"output": ".feature_maps  # strides 4 to 32", "out_indices": [1, 2, 3, 4]}
    feature_maps = _example(repo_id, "AutoBackbone", **outputs)
    if is_folder:  # AutoBackbone does not load local folders
        feature_maps = _example(repo_id, "SurgeNetBackbone", **outputs)
        feature_maps = feature_maps.replace(", SurgeNetBackbone\n", "\nfrom surgenet_hf import SurgeNetBackbone\n", 1)
        feature_maps = feature_maps.removeprefix("import surgenet_hf\n")
    return [
        _example(repo_id, "AutoModel", ".pooler_output  # the embedding"),
        _example(
            repo_id, "AutoModelForSemanticSegmentation", ".logits  # the head is new and must be trained", num_labels=7
        ),
        _example(
            repo_id, "AutoModelForImageClassification", ".logits  # the head is new and must be trained", num_labels=7
        ),
        feature_maps,
    ]


def _example(repo_id: str, auto_class: str, output: str, **arguments) -> str:
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    return (
        f"import surgenet_hf\nfrom transformers import AutoImageProcessor, {auto_class}\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{repo_id}")\n'
        f'model = {auto_class}.from_pretrained("{repo_id}"{given})\n'
        f'model(**processor(image, return_tensors="pt")){output}'
    )


def _phase_example(repo_id: str) -> str:
    return (
        "import surgenet_hf\nfrom transformers import AutoImageProcessor, AutoModel\n\n"
        f'processor = AutoImageProcessor.from_pretrained("{repo_id}")\n'
        f'model = AutoModel.from_pretrained("{repo_id}").eval()\n'
        "# images: frames of one video in order, at the rate model.config.frames_per_second\n"
        'frames = processor(images, return_tensors="pt").pixel_values\n'
        "model(frames[None]).logits  # (1, T, phases); model.stream takes one frame at a time"
    )


def _remote_example(repo_id: str, auto_class: str, revision: str = REVISION) -> str:
    return (
        f"from transformers import {auto_class}\n\n"
        f'model = {auto_class}.from_pretrained("{repo_id}", trust_remote_code=True, revision="{revision}")'
    )


def _count_parameters(path: Path) -> int:
    with safe_open(path, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 (no mapping)


def _own_data(pretraining: dict) -> list[str]:
    """Return the names of the datasets of the user's own pretraining, preceded by those of its base."""
    base = pretraining.get("base")
    return [*(_own_data(base) if base else []), *pretraining.get("data", [])]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _backbone_name(config: PreTrainedConfig) -> str:
    """Return the architecture of timm, the name of a vision transformer of DINO, or the model type of transformers."""
    is_dinov3 = config.model_type == "dinov3_vit"
    if is_dinov3 or (config.model_type == "dinov2_with_registers" and not config.num_register_tokens):
        return f"{'DINOv3 ' * is_dinov3}{VITS.get(config.hidden_size, 'ViT')}/{config.patch_size}"
    return getattr(config, "architecture", None) or getattr(config, "backbone", None) or config.model_type


def _link(pretraining_name: str) -> str:
    """Return the name of a pretraining, with a link to the published checkpoint that it contains."""
    entry = base_entry(pretraining_name)
    if entry is None:
        return pretraining_name
    return f"[{entry.name}](https://huggingface.co/{entry.repo_id}){pretraining_name.removeprefix(entry.name)}"


def _known_leakage(entry: CatalogEntry | None) -> list[str]:
    return [f"{title}: {note}" for title, note in known_leakage(entry).items()] if entry else []


def _headline_metrics(results: dict) -> list[tuple[str, str, str]]:
    """Format the main metrics of a results file as (title, value, 95 % interval with its number of videos)."""
    rows = []
    for name in headlines(results):
        low, high = interval_bounds(results, name)
        interval = f"none: fewer than {MIN_VIDEOS} videos with a value, or no variation"
        if low is not None and high is not None:
            videos = results["intervals"][name]["videos"] if results["schema"] == SCHEMA else None
            warning = f", {interval_warning(videos)}" if videos and interval_warning(videos) else ""
            interval = f"{low:.4f} to {high:.4f}" + (f", n = {videos} videos{warning}" if videos else "")
        rows.append((metric_title(name), f"{results['metrics'][name]:.4f}", interval))
    return rows
