"""Model cards of the published vision transformers."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from ..checkpoints.catalog import (
    CITATIONS,
    NORMALIZATIONS,
    CatalogEntry,
    known_leakage,
)
from ..checkpoints.vit import FAMILIES, HEAD_WIDTH, SIZES

TEMPLATE = Path(__file__).with_name("vit_card_template.md")
INSTALL = 'pip install torch torchvision "transformers>=5.4,<6"'  # as in setup.cfg
TAGS = ["surgenet", "surgery", "endoscopy", "medical", "vit", "self-supervised-learning"]
LICENSE_FILE = "LICENSE_DINOV3.md"  # in repositories of DINOv3; Meta's license asks for a copy of it
LICENSE_TEXT = Path(__file__).with_name("license_dinov3.md")
# Validation IoU of the authors' ATLAS models on ATLAS-120k: val_iou_all in the names of their files, from the README
# of rlpddejong/ATLAS-model. Its train.sh starts them from SurgeNet2M-DINOv3.
ATLAS_IOU = {"ViT-S": "0.281", "ViT-B": "0.350", "ViT-L": "0.384"}
ATLAS_SOURCE = "https://github.com/rlpddejong/ATLAS-model/blob/68fc8703cbf8a8140c5b94c24eaff7204dd5f24a/README.md"
ARXIV = {"surgenetxl": "2501.09436"}


def card_context(entry: CatalogEntry, repo_id: str, provenance: dict[str, str] | None) -> dict:
    """Return the card data and the values of the template for the card of a published vision transformer.

    Args:
        entry: catalog entry of the checkpoint.
        repo_id: repository of the card.
        provenance: rows of the provenance table.
    """
    key, letter, patch = entry.backbone[:6], entry.backbone[10], int(entry.backbone[11:])
    layers, width = SIZES[letter]
    family = int(key[-1])
    known_data = all(data.procedure != "not published" for data in entry.pretraining_sets)
    registers = None
    if entry.tensors is not None:  # a file with register tokens has one more tensor
        registers = 4 * (entry.tensors == {1: 0, 2: 14 * layers + 8, 3: 0}[family])
    upstream = f"[{entry.upstream_repo}](https://huggingface.co/{entry.upstream_repo})"
    frames = f"{entry.pretraining_frames:,}" if known_data else "about 2 million"
    license: dict[str, Any] = {
        "license": entry.license,
        "license_name": "cc-by-nc-sa-4.0-and-dinov3-license" if family == 3 else None,
        "license_link": LICENSE_FILE if family == 3 else None,
    }
    return {
        "card_data": ModelCardData(
            **license,
            library_name="transformers",
            pipeline_tag="image-feature-extraction",
            tags=[*TAGS, key, *(f"arxiv:{ARXIV[name]}" for name in entry.citations if name in ARXIV)],
            base_model=entry.upstream_repo,
        ),
        "title": entry.name,
        "summary": (
            f"{entry.name} is a surgical foundation model by de Jong, Jaspers, et al. It is a "
            f"ViT-{letter.upper()}/{patch} backbone, pretrained with {FAMILIES[key]} on {frames} frames of surgical "
            f"video. The weights were converted tensor by tensor from {upstream} for use with transformers."
        ),
        "entry": entry,
        "repo_id": repo_id,
        "family": family,
        "layers": layers,
        "width": width,
        "heads": width // HEAD_WIDTH,
        "patch": patch,
        "registers": registers,
        "known_data": known_data,
        "atlas_iou": ATLAS_IOU if family == 3 else None,
        "atlas_source": ATLAS_SOURCE,
        "model_class": "DINOv3ViTModel" if family == 3 else "Dinov2WithRegistersModel",
        "backbone_class": "DINOv3ViTBackbone" if family == 3 else "Dinov2WithRegistersBackbone",
        "out_indices": [layers * i // 4 for i in range(1, 5)],
        "mean": NORMALIZATIONS[entry.normalization][0],
        "std": NORMALIZATIONS[entry.normalization][1],
        "leakage": [f"{title}: {note}" for title, note in known_leakage(entry).items()],
        "provenance": provenance,
        "citations": [CITATIONS[name] for name in entry.citations],
        "install": INSTALL,
    }
