"""Texts of the page: header, banners, and the About tab."""

from html import escape

from folders import MAX_BYTES, MAX_FLOPS, MAX_IMAGE_SIZE, PUBLISHED
from media import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_SECONDS, MAX_UPLOAD_BYTES

from surgenet_hf.checkpoints.catalog import CITATIONS

HEADER = """<div class="header"><h1>SurgeNet demo</h1>
<p>Try surgical foundation models on a frame or a clip.</p>
<p class="warning" role="note"><strong>Not a medical device.</strong> For research only. Never use it for decisions
about patients, and do not upload anything that identifies a patient.</p></div>"""

OFFLINE = """<div class="banner" role="status"><strong>The Hugging Face Hub cannot be reached.</strong> The published
SurgeNet models cannot be downloaded now. Every tab works with a small demo model instead. It is untrained or was
trained on synthetic scenes only, so its predictions on real frames are meaningless.</div>"""

# variant for a demo with the owner's models, which are meant for real frames
OFFLINE_GIVEN = """<div class="banner" role="status"><strong>The Hugging Face Hub cannot be reached.</strong> Published
SurgeNet models and other Hub models cannot be downloaded now. The models marked "Demo model" are untrained or were
trained on synthetic scenes only, so their predictions on real frames are meaningless.</div>"""

ADDRESS = "http://127.0.0.1:7860/"  # placeholder in the example; the page inserts its own address
KEPT_SECONDS = 1800  # maximum age of uploads and results
LICENSES = {"other": "cc-by-nc-sa-4.0 and Meta's DINOv3 License"}
_ROWS = "\n".join(
    f"| {entry.name} | {entry.backbone} | {entry.pretraining_frames:,} | "
    f"{LICENSES.get(entry.license, entry.license)} |"
    for entry in PUBLISHED
)
ABOUT = f"""
## About this demo

SurgeNet models are backbones that were pretrained with DINO, without labels, on frames of surgical videos (Jaspers et
al., Medical Image Analysis 108:103873, 2026). **Features** shows which structures such a backbone distinguishes.
**Segment**, **Classify**, and **Video** need a model that was fine-tuned for the task. Until you choose such a model,
they use a small demo model, which is untrained or was trained on synthetic scenes.

## Not a medical device

For research and teaching only. Nothing here was validated for clinical use. Do not use it to diagnose, treat, or
monitor anyone, or to make decisions about patients. Models can fail without warning, for example on other
procedures, with other cameras, or in smoke or blood.

## Models

| name | backbone | pretraining frames | license |
|---|---|---|---|
{_ROWS}

To use any public fine-tuned SurgeNet model on the Hub, type its id (`ORG/NAME`). Only SurgeNet model types in the
safetensors format are loaded. Code in repositories is never run. A model may have up to {MAX_BYTES / 1e9:.0f} GB. It
may resize frames to at most {MAX_IMAGE_SIZE} x {MAX_IMAGE_SIZE} pixels. It may need up to {MAX_FLOPS / 1e9:.0f}
billion floating-point operations per frame (about half a minute on two CPU cores). The pretraining data contains
public datasets (Cholec80, DSAD, and others). If your frames are from such a dataset, a model may have been pretrained
on them.

## License

Code: MIT. The SurgeNet weights and models fine-tuned from them: CC BY-NC-SA 4.0 (no commercial use). For those of
DINOv3, also Meta's [DINOv3 License](https://ai.meta.com/resources/models-and-libraries/dinov3-license/). The example
frames and clips are synthetic.

## What happens to your files

Your files are deleted from this server after at most {KEPT_SECONDS * 12 // 600} minutes, or earlier if many files are
uploaded. Nothing is recorded or sent elsewhere. The server contacts only the Hugging Face Hub, to download models.
Images may have up to {MAX_IMAGE_BYTES // 2**20} MB and {MAX_IMAGE_PIXELS // 10**6} million pixels. Clips may have up
to {MAX_UPLOAD_BYTES // 2**20} MB and be up to {MAX_SECONDS // 60} minutes long.

## From Python

```python
from gradio_client import Client, handle_file

client = Client("{ADDRESS}")  # or the ORG/NAME of a Space
overlay, areas, mask, legend = client.predict(handle_file("frame.jpg"), "demo", api_name="/segment")
```

The other endpoints are `/classify`, `/features`, `/similarity`, `/video`, and `/model_info`. They are documented under
"Use via API" below.

## Citation

```
{CITATIONS["surgenetxl"]}
```
"""


def note(text: str) -> str:
    """Format a note about a model or a result as HTML.

    The text is escaped, because it can contain values from a model's configuration.
    """
    return f'<p class="note">{escape(text)}</p>'
