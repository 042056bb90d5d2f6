"""Pictures for web pages: overlays, heat maps, and video frames as arrays, and legends, bars, and ribbons as HTML.

The HTML needs no script and no style sheet, and escapes every name. It takes its text colors from the page (light or
dark). A number or a name always accompanies a color.
"""

from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from PIL import Image, ImageDraw, ImageFont

from ..metrics.sequences import segments
from .overlays import NOT_PAINTED, id_places, paint
from .style import color

HEAT = "cividis"  # readable with every kind of color vision
SEEN = 0.35  # opacity of the gray frame below a heat map
_ROW = "display:flex;align-items:center;gap:.6em;padding:.2em 0"
_NUMBER = "min-width:4.2em;text-align:right;font-variant-numeric:tabular-nums"
_TRACK = "flex:1 1 5em;height:.8em;border-radius:.4em;background:rgba(128,128,128,.25);overflow:hidden;min-width:3em"


def overlay_picture(
    frame: np.ndarray, class_map: np.ndarray, labels: Sequence[str], colors: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """Paint a class map over a frame, and write the id of each class at its thickest place.

    Args:
        frame: uint8 (H, W, 3).
        class_map: integers (H, W).
        labels: name of each class id.
        colors: RGB color (0 to 255) of each class id.

    Returns:
        uint8 (H, W, 3).
    """
    picture = Image.fromarray(paint(frame, class_map, labels, colors))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(12, min(picture.size) // 14))
    for i, x, y in id_places(class_map):
        if labels[i].lower() != NOT_PAINTED:
            draw.text((x, y), str(i), "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


def heat_picture(frame: np.ndarray, values: np.ndarray, point: tuple[float, float] | None = None) -> np.ndarray:
    """Paint a heat map over a gray frame, and mark `point` with a ring.

    Args:
        frame: uint8 (H, W, 3).
        values: array (h, w) from 0 (dark blue) to 1 (yellow).
        point: (x, y) as shares of width and height, or None.

    Returns:
        uint8 (H, W, 3).
    """
    size = frame.shape[1], frame.shape[0]
    heat = enlarge(colormaps[HEAT](np.clip(values, 0, 1))[..., :3], size)
    gray = np.asarray(Image.fromarray(frame).convert("L"), np.float32)[..., None]
    picture = Image.fromarray((SEEN * gray + (1 - SEEN) * heat).round().astype(np.uint8))
    if point is not None:
        x, y, radius = point[0] * size[0], point[1] * size[1], max(6, min(size) // 40)
        draw = ImageDraw.Draw(picture)
        for grown, stroke in ((1, "black"), (0, "white"), (-2, "black")):
            reach = radius + grown
            draw.ellipse((x - reach, y - reach, x + reach, y + reach), outline=stroke, width=2)
    return np.asarray(picture)


def enlarge(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Convert colors (h, w, 3) from 0 to 1 to uint8 (H, W, 3), where `size` is (W, H)."""
    return np.asarray(Image.fromarray((255 * picture).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC))


def phase_picture(frame: np.ndarray, phases: np.ndarray, labels: Sequence[str], length: int) -> np.ndarray:
    """Draw a video frame with the name of the current phase above it and the ribbon so far below it.

    Args:
        frame: uint8 (H, W, 3).
        phases: phase ids (T,) of the frames so far, with T at least 1.
        labels: names of the phases.
        length: number of frames of the whole video, for the scale of the ribbon.

    Returns:
        uint8 (H + two strips, W, 3).
    """
    height, width = frame.shape[:2]
    strip = max(16, height // 14)
    picture = Image.new("RGB", (width, height + 2 * strip), (24, 24, 27))
    picture.paste(Image.fromarray(frame), (0, strip))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(round(0.7 * strip))
    name = " ".join(f"{phases[-1] + 1}  {labels[phases[-1]]}".splitlines())  # PIL cannot anchor multiline text
    draw.text((strip / 3, strip / 2), _cut(name, font, width - 2 * strip / 3), "white", font, anchor="lm")
    scale = width / max(length, len(phases))
    for phase, start, end in zip(*segments(phases), strict=True):
        fill = tuple(round(255 * value) for value in to_rgb(color(phase)))
        draw.rectangle((start * scale, height + strip + 2, end * scale - 1, height + 2 * strip), fill)
        if (end - start) * scale > strip:
            place = (start + end) / 2 * scale, height + 1.5 * strip
            draw.text(place, str(phase + 1), "white", font, anchor="mm", stroke_width=2, stroke_fill="black")
    return np.asarray(picture)


def _cut(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """Shorten a text to a width in pixels, with an ellipsis if a part is cut off."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def legend_html(
    labels: Sequence[str], colors: Sequence[tuple[int, int, int]], shares: Sequence[float], caption: str = ""
) -> str:
    """Return a table of the classes that occur, sorted by area, with color, id, name, and share of the picture.

    Args:
        labels: name of each class id.
        colors: RGB color (0 to 255) of each class id.
        shares: share of the picture (0 to 1) of each class id.
        caption: caption of the table.
    """
    rows = []
    for i in sorted((i for i, share in enumerate(shares) if share > 0), key=lambda i: -shares[i]):
        fill = "transparent" if labels[i].lower() == NOT_PAINTED else f"rgb{tuple(map(int, colors[i]))}"
        swatch = (
            f'<span style="display:inline-block;width:1.1em;height:1.1em;border:1px solid;border-radius:.2em;'
            f'vertical-align:-.15em;background:{fill}"></span>'
        )
        number = f"{100 * shares[i]:.1f}&nbsp;%" if shares[i] >= 0.0005 else "&lt;&nbsp;0.1&nbsp;%"
        rows.append(
            f"<tr><td>{swatch}</td><td>{i}</td><td style='overflow-wrap:anywhere'>{escape(labels[i])}</td>"
            f"<td style='text-align:right;white-space:nowrap'>{number}</td></tr>"
        )
    head = "<tr><th></th><th>id</th><th style='text-align:left'>class</th><th style='text-align:right'>area</th></tr>"
    return (
        f"<table class='legend' style='width:100%;border-spacing:.5em .25em;border-collapse:separate'>"
        f"<caption style='text-align:left'>{escape(caption)}</caption><thead>{head}</thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def bars_html(labels: Sequence[str], values: Sequence[float], notes: Sequence[str] = (), caption: str = "") -> str:
    """Return a bar for each value in the given order, followed by the value in percent and an optional note.

    Args:
        labels: text for each bar.
        values: values from 0 to 1.
        notes: note for each bar, or an empty sequence.
        caption: text above the bars.
    """
    rows = []
    for i, (label, value) in enumerate(zip(labels, values, strict=True)):
        fill = f"<div style='width:{100 * value:.1f}%;height:100%;background:{color(0)}'></div>"
        note = f"<span style='min-width:5em'>{escape(notes[i])}</span>" if notes else ""
        rows.append(
            f"<div role='listitem' style='{_ROW};flex-wrap:wrap'><span style='flex:1 1 10em;overflow-wrap:anywhere'>"
            f"{escape(label)}</span><span style='{_TRACK}'>{fill}</span>"
            f"<span style='{_NUMBER}'>{100 * value:.1f}&nbsp;%</span>{note}</div>"
        )
    return f"<p style='margin:0 0 .4em'>{escape(caption)}</p><div class='bars' role='list'>{''.join(rows)}</div>"


def ribbon_html(
    phases: np.ndarray, labels: Sequence[str], length: int, seconds_per_frame: float = 1.0, caption: str = ""
) -> str:
    """Return the phase ribbon of a video so far, with a colored, numbered section for each segment and a legend.

    Args:
        phases: phase ids (T,) of the frames so far.
        labels: names of the phases.
        length: number of frames of the whole video, which corresponds to the full width of the ribbon.
        seconds_per_frame: time between consecutive frames in seconds.
        caption: text above the ribbon.
    """
    whole = max(length, len(phases), 1)
    parts = []
    for phase, start, end in zip(*segments(phases), strict=True) if len(phases) else []:
        share = (end - start) / whole
        name = f"{phase + 1} {labels[phase]}, {clock(start * seconds_per_frame)} to {clock(end * seconds_per_frame)}"
        parts.append(
            f"<div title='{escape(name)}' style='width:{100 * share:.3f}%;background:{color(phase)};color:#fff;"
            f"text-shadow:0 0 3px #000,0 0 3px #000;text-align:center;overflow:hidden;line-height:2em'>"
            f"{phase + 1 if share > 0.02 else ''}</div>"
        )
    legend = []
    for phase in sorted(set(np.asarray(phases).tolist())):
        seconds = clock(int((np.asarray(phases) == phase).sum()) * seconds_per_frame)
        swatch = f"<span style='width:1.1em;height:1.1em;border-radius:.2em;background:{color(phase)}'></span>"
        legend.append(
            f"<div style='{_ROW}'>{swatch}<span style='flex:1;overflow-wrap:anywhere'>{phase + 1}&nbsp; "
            f"{escape(labels[phase])}</span><span style='{_NUMBER}'>{seconds}</span></div>"
        )
    return (
        f"<p style='margin:0 0 .4em'>{escape(caption)}</p><div class='ribbon' role='img' "
        f"aria-label='{escape(caption)}' style='display:flex;height:2em;border-radius:.3em;overflow:hidden;"
        f"background:rgba(128,128,128,.25)'>{''.join(parts)}</div>{''.join(legend)}"
    )


def clock(seconds: float) -> str:
    """Return a time in seconds as minutes and seconds, such as 3:07."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
