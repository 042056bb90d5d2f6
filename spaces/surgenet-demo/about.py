"""Texts of the page: header, banners, and the About tab."""

from html import escape

from folders import MAX_BYTES, MAX_FLOPS, MAX_IMAGE_SIZE
from media import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, MAX_SECONDS, MAX_UPLOAD_BYTES

from surgenet_hf.checkpoints.catalog import CATALOG, CITATIONS

HEADER = """<div class="header"><h1>SurgeNet demo</h1>
<p>See what surgical foundation models see in a frame or a clip.</p>
<p class="warning" role="note"><strong>Not a medical device.</strong> For research only: never use it for decisions on
patients, and upload nothing that shows who a patient is.</p></div>"""

OFFLINE = """<div class="banner" role="status"><strong>The Hugging Face Hub cannot be reached.</strong> The published
SurgeNet models cannot be fetched now. Every tab works with a small demo model instead, which is untrained or was
trained on drawn scenes only; what it says of real frames means nothing.</div>"""

# variant for a demo with the owner's models, which are meant for real frames
OFFLINE_GIVEN = """<div class="banner" role="status"><strong>The Hugging Face Hub cannot be reached.</strong> Published
SurgeNet models, and others by their Hub id, cannot be fetched now. The models marked "Demo model" are untrained, or
were trained on drawn scenes only; what they say of real frames means nothing.</div>"""

ADDRESS = "http://127.0.0.1:7860/"  # placeholder in the example; the page inserts its own address
KEPT_SECONDS = 1800  # maximum age of uploads and results
_ROWS = "\n".join(
    f"| {entry.name} | {entry.backbone} | {entry.pretraining_frames:,} | {entry.license} |" for entry in CATALOG
)
ABOUT = f"""
## What this is

SurgeNet models are backbones pretrained with DINO, without labels, on frames of surgical videos (Jaspers et al.,
Medical Image Analysis 108:103873, 2026). **Features** shows what such a backbone tells apart. **Segment**,
**Classify** and **Video** need a model that was fine-tuned for the task; until you choose one, a small demo model
stands in, which was trained on drawn scenes or not at all.

## Not a medical device

For research and teaching. Nothing here was validated for clinical use. Do not use it to decide on, diagnose, treat or
monitor anybody. Models fail silently: on other procedures, other cameras, smoke, blood, and at random.

## Models

| name | backbone | frames of pretraining | licence |
|---|---|---|---|
{_ROWS}

Any public fine-tuned SurgeNet model on the Hub can be typed in by its id (`ORG/NAME`). Only SurgeNet's own model types
in the safetensors format are loaded, and no code of a repository is run. A model may have up to
{MAX_BYTES / 1e9:.0f} GB, resize frames to at most {MAX_IMAGE_SIZE} x {MAX_IMAGE_SIZE} pixels, and need up to
{MAX_FLOPS / 1e9:.0f} billion operations for a frame (about half a minute on two processor cores). Some of the
pretraining sets hold public videos (Cholec80, Endoscapes and others): a model may have seen frames like yours.

## Licence

Code: MIT. The SurgeNet weights, and models fine-tuned from them, are CC BY-NC-SA 4.0: not for commercial use. The
example frames and clips are drawn by a program.

## What happens to your files

They stay on this server for at most {KEPT_SECONDS * 12 // 600} minutes and are then deleted, or earlier if many files
are uploaded. Nothing is recorded or sent elsewhere. The server asks only the Hugging Face Hub, for models. Pictures
may have up to {MAX_IMAGE_BYTES // 2**20} MB and {MAX_IMAGE_PIXELS // 10**6} million pixels, clips up to
{MAX_UPLOAD_BYTES // 2**20} MB and {MAX_SECONDS // 60} minutes.

## From Python

```python
from gradio_client import Client, handle_file

client = Client("{ADDRESS}")  # or the ORG/NAME of a Space
overlay, areas, mask, legend = client.predict(handle_file("frame.jpg"), "demo", api_name="/segment")
```

The others are `/classify`, `/features`, `/similarity`, `/video` and `/model_info`; "Use via API" below documents them.

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
