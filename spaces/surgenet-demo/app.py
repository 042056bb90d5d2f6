"""Page of the Gradio demo. A Space and `surgenet demo` run this file."""

import errno
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from keeping import Sweeper, claim_folder

# set before the imports that read them: no telemetry, no progress bars in the log, and a folder for this process
os.environ.update(
    {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TQDM_DISABLE": "1"}
    | {"GRADIO_TEMP_DIR": str(claim_folder(Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())))}
)

import gradio as gr
from about import ABOUT, ADDRESS, HEADER, KEPT_SECONDS, OFFLINE, OFFLINE_GIVEN, note
from demo import TRAINED
from media import FULL, MAX_UPLOAD_BYTES, Refused, full_disk, read_image
from models import ModelStore
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from tabs import Tabs

from surgenet_hf.cli.arguments import command
from surgenet_hf.cli.demo import parse_arguments
from surgenet_hf.errors import UserError

HERE, FILES = Path(__file__).parent, Path(os.environ["GRADIO_TEMP_DIR"])
EXAMPLES = sorted((HERE / "examples").glob("frame_*.jpg"))
EXAMPLE_NAMES = ["Scene 1", "Scene 1, later", "Scene 2", "Scene 3"]
PAIR_NAMES = ["Two moments of one scene", "Two scenes"]
CLIPS = sorted((HERE / "examples").glob("clip_*.mp4"))
CLIP_NAMES = ["A scene, 6 s", "A procedure, 64 s"]
DRAWN = "Examples (synthetic)"
# fonts of the visitor's device, so that none are downloaded
SANS, MONO = ("system-ui", "Segoe UI", "Roboto", "sans-serif"), ("ui-monospace", "monospace")
THEME = gr.themes.Soft(
    primary_hue="teal",
    secondary_hue="teal",
    neutral_hue="slate",
    font=[gr.themes.Font(name) for name in SANS],
    font_mono=[gr.themes.Font(name) for name in MONO],
).set(  # sufficient contrast for small text, and visible borders
    body_background_fill="*neutral_50",
    block_border_width="1px",
    block_border_color="*neutral_200",
    block_label_text_color="*primary_800",
    block_title_text_color="*primary_800",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_600",
    body_text_color_subdued="*neutral_600",
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
)
# With this policy, the browser does not load data from other servers or send data to them.
POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
PRIVATE = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
MODEL = {"preprocess": False, "concurrency_id": "model", "concurrency_limit": 2}
UPLOAD = {"type": "filepath", "sources": ["upload", "clipboard"]}
FORM_BYTES = 2**16  # maximum size of an upload's form fields in addition to the file
# unused paths of gradio: /monitoring shows the use of the page, and the others store the data they receive
CLOSED = ("/monitoring", "/process_recording", "/component_server")
LATER = note("The result appears here.")
RESULT = {"interactive": False, "buttons": ["download", "fullscreen"]}


class Page(gr.Blocks):
    """Page that tells the visitor when the server's disk is full, at any step of a request."""

    async def process_api(self, *args, **kwargs):
        with full_disk():
            return await super().process_api(*args, **kwargs)


def build(store: ModelStore, kept_seconds: int = KEPT_SECONDS) -> gr.Blocks:
    """Build the page.

    Args:
        store: models of the demo.
        kept_seconds: age at which uploads and results are deleted. It is checked at intervals of a tenth of this time.
    """
    tabs = Tabs(store)
    cleaning = max(1, kept_seconds // 10), kept_seconds
    with Page(title="SurgeNet demo", analytics_enabled=False, delete_cache=cleaning) as page:
        gr.HTML(HEADER)
        banner = gr.HTML(visible=False, elem_id="banner")
        with gr.Tabs():
            with gr.Tab("Segment", id="segment"):
                _segment(tabs)
            with gr.Tab("Classify", id="classify"):
                _classify(tabs)
            with gr.Tab("Features", id="features"):
                chooser, about_model = _features(tabs)
            with gr.Tab("Video", id="video"):
                _video(tabs)
            with gr.Tab("About", id="about"):
                about = gr.Markdown(ABOUT, elem_id="about-text")
        gr.api(tabs.model_info, api_name="model_info", queue=False)

        def greet():
            problem = store.hub_problem()
            _, name = store.choices("features")[0]
            text = OFFLINE_GIVEN if store.given else OFFLINE
            banner = gr.HTML(text, visible=True) if problem else gr.HTML(visible=False)
            return banner, name, note(store.describe(name)["note"])

        page.load(greet, None, [banner, chooser, about_model], **PRIVATE)
        # only the browser knows the address, which depends on the port and on proxies
        address = f"text => text.replace({json.dumps(ADDRESS)}, location.origin + location.pathname)"
        page.load(fn=None, inputs=about, outputs=about, js=address, show_progress="hidden")
    return page


def _segment(tabs: Tabs) -> None:
    with gr.Row():
        with gr.Column():
            image, examples, model, run = _frame(tabs, "segmentation", "Segment")
        with gr.Column():
            overlay = gr.Image(label="Overlay", height=360, **RESULT, alt_text="Frame with class overlay")
            legend = gr.HTML(LATER, label="Legend", elem_id="legend")
            areas = gr.JSON(label="Areas", visible=False)
            mask = gr.DownloadButton("Download the mask (PNG with class ids)", elem_id="mask", interactive=True)
    outputs = [overlay, areas, mask, legend]
    running = run.click(tabs.segment, [image, model], outputs, api_name="segment", **MODEL)
    _choose([image], examples, (None, None, None, LATER), outputs, running)


def _classify(tabs: Tabs) -> None:
    with gr.Row():
        with gr.Column():
            image, examples, model, run = _frame(tabs, "classification", "Classify")
        with gr.Column():
            scores = gr.JSON(label="Scores", visible=False)
            bars = gr.HTML(LATER, label="Bars", elem_id="bars", min_height=120)
    running = run.click(tabs.classify, [image, model], [scores, bars], api_name="classify", **MODEL)
    _choose([image], examples, (None, LATER), [scores, bars], running)


def _frame(tabs: Tabs, task: str, name: str) -> tuple[gr.Image, gr.Dataset, gr.Dropdown, gr.Button]:
    """Build the inputs of a tab for a single frame: image, examples, model, and button."""
    image = gr.Image(label="Frame", height=280, **UPLOAD, alt_text="The frame that you chose")
    examples = _examples([image], [[path] for path in EXAMPLES], EXAMPLE_NAMES)
    model, about_model = _model(tabs, task)
    run = gr.Button(name, variant="primary", elem_id=f"run-{name.lower()}")
    about_model.render()
    return image, examples, model, run


def _features(tabs: Tabs) -> tuple[gr.Dropdown, gr.HTML]:
    with gr.Row():
        size = {"height": 240, "min_width": 320}
        text = "Frame A (click a point)"
        image_a = gr.Image(label=text, elem_id="frame-a", **size, **UPLOAD, alt_text="Frame A that you chose")
        image_b = gr.Image(label="Frame B (optional)", **size, **UPLOAD, alt_text="Frame B that you chose")
    pairs = [list(pair) for pair in zip(EXAMPLES[::2], EXAMPLES[1::2], strict=True)]
    examples = _examples([image_a, image_b], pairs, PAIR_NAMES)
    with gr.Row():
        with gr.Column():
            model, about_model = _model(tabs, "features")
            run = gr.Button("Show the features as colors", variant="primary", elem_id="run-features")
            about_model.render()
        with gr.Column():
            with gr.Row():
                x = gr.Slider(0, 100, 50, step=1, label="Point: x in %", info="from the left", min_width=140)
                y = gr.Slider(0, 100, 50, step=1, label="y in %", info="from the top", min_width=140)
            find = gr.Button("Find this point in frame B", elem_id="run-similarity")
    with gr.Row():
        map_a = gr.Image(
            label="Result for frame A", height=300, min_width=320, **RESULT, alt_text="Result for frame A"
        )
        map_b = gr.Image(
            label="Result for frame B", height=300, min_width=320, **RESULT, alt_text="Result for frame B"
        )
    text = gr.HTML(LATER, label="Note", elem_id="features-note")
    inputs, outputs = [image_a, image_b, x, y, model], [map_a, map_b, text]
    running = run.click(tabs.features, [image_a, image_b, model], outputs, api_name="features", **MODEL)
    finding = find.click(tabs.similarity, inputs, outputs, api_name="similarity", **MODEL)

    def point(image, event: gr.SelectData):
        width, height = read_image(image).info["uploaded_size"]
        return round(100 * event.index[0] / width), round(100 * event.index[1] / height)

    chosen = image_a.select(point, image_a, [x, y], preprocess=False, **PRIVATE)
    clicked = chosen.success(tabs.similarity, inputs, outputs, api_visibility="private", **MODEL)
    _choose([image_a, image_b], examples, (None, None, LATER), outputs, running, finding, clicked)
    return model, about_model


def _video(tabs: Tabs) -> None:
    with gr.Row():
        with gr.Column():
            clip = gr.Video(label="Clip", height=220, sources=["upload"])
            examples = _examples([clip], [[path] for path in CLIPS], CLIP_NAMES)
            rate = gr.Slider(
                0.5, 5, 2, step=0.5, label="Frames per second", info="Phase models use their own frame rate."
            )
            model, about_model = _model(tabs, "segmentation", "phases")
            with gr.Row():
                run = gr.Button("Start", variant="primary", elem_id="run-video")
                stop = gr.Button("Cancel", variant="stop", elem_id="stop-video")
            about_model.render()
            status = gr.HTML(elem_id="video-status")  # separate, as a frame can still arrive after a cancel
        with gr.Column():
            # a label would cover the name of the phase
            live = gr.Image(label="Current frame", show_label=False, height=300, **RESULT, alt_text="Current frame")
            ribbon = gr.HTML(LATER, label="Ribbon", elem_id="ribbon", min_height=90)
            result = gr.Video(label="Result", interactive=False, height=300, elem_id="result")
    outputs = [live, ribbon, result]
    run.click(**_filling([status], ("",)))
    running = run.click(
        tabs.video,
        [clip, rate, model],
        outputs,
        api_name="video",
        preprocess=False,
        show_progress_on=result,
        concurrency_id="video",
        concurrency_limit=1,
        trigger_mode="multiple",  # otherwise a frame that arrives after a cancel makes gradio ignore the next start
    )
    stop.click(None, cancels=running)
    canceled = note("Nothing is running now. Results so far are kept until the next start.")
    stop.click(**_filling([status], (canceled,)))
    _choose([clip], examples, (None, LATER, None, ""), [*outputs, status], running)


def _examples(inputs: list, samples: list[list[Path]], names: list[str]) -> gr.Dataset:
    """Build buttons with the names of the examples. `_choose` adds their behavior.

    `gr.Examples` is not suitable, because it would load an example before the other steps of `_choose`.
    """
    samples = [[str(path) for path in sample] for sample in samples]
    return gr.Dataset(components=inputs, samples=samples, label=DRAWN, sample_labels=names)


def _choose(inputs: list, examples: gr.Dataset, empty: tuple, outputs: list, *running) -> None:
    """Set up the steps that follow when a visitor chooses another frame or clip.

    The steps are: cancel running jobs, clear the results, and load the example. The browser runs them in this order,
    each after the previous one has ended. The first two do not wait for the server, so that even a fast visitor's next
    job starts after them.

    Args:
        inputs: components for frames or clips.
        examples: buttons of `_examples`.
        empty: values that clear the outputs.
        outputs: components of the results.
        running: events that can be canceled.
    """
    chosen = [examples.click, *(event for part in inputs for event in (part.upload, part.clear))]
    gr.on(chosen, None, cancels=list(running))
    gr.on(chosen, **_filling(outputs, empty))
    loaded = examples.click(lambda sample: sample if len(sample) > 1 else sample[0], examples, inputs, **PRIVATE)
    loaded.then(**_filling(outputs, empty))  # clear again, because a result could have arrived since the first time


def _filling(outputs: list, values: tuple) -> dict:
    """Return the arguments of an event that sets the values of components in the browser."""
    return {"fn": None, "outputs": outputs, "js": f"() => {json.dumps(values)}", "show_progress": "hidden"}


def _model(tabs: Tabs, *tasks: str) -> tuple[gr.Dropdown, gr.HTML]:
    """Return a dropdown of models that accepts a Hub id, and a note on the selected model that is not rendered yet."""
    choices = tabs.store.choices(*tasks, wait=False)
    name = choices[0][1]
    model = gr.Dropdown(
        choices, value=name, label="Model", info="Choose one, or type a Hub id (ORG/NAME).", allow_custom_value=True
    )
    # gradio would document that only names in the list are valid
    model.api_info = lambda: {
        "type": "string",
        "additional_description": "A name from the list, or a Hub id (ORG/NAME)",
    }
    text = gr.HTML(note(tabs.store.describe(name)["note"]), render=False)
    model.input(lambda name: note(tabs.model_info(name)["note"]), model, text, **PRIVATE)
    return model, text


class Guard:
    """ASGI middleware that adds `POLICY` to every response, blocks the paths in `CLOSED`, and limits uploads.

    Args:
        app: ASGI application.
        sweeper: sweeper of the upload folder, which reserves space for uploads.
    """

    def __init__(self, app, sweeper: Sweeper):
        self.app, self.sweeper = app, sweeper

    async def __call__(self, scope, receive, send):
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                extra = [(b"content-security-policy", POLICY), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *extra, (b"referrer-policy", b"no-referrer")]
            await send(message)

        path = scope.get("path", "").removeprefix("/gradio_api")
        if path.startswith(CLOSED):
            await PlainTextResponse("Not found", 404)(scope, receive, send_with_policy)
        elif path.rstrip("/") == "/upload" and scope.get("method") == "POST":
            await self._upload(scope, receive, send_with_policy)
        else:
            await self.app(scope, receive, send_with_policy)

    async def _upload(self, scope, receive, send) -> None:
        headers = Headers(scope=scope)
        size = int(headers.get("content-length", 0))  # the server checks that this is a number and enforces it
        if not size or "transfer-encoding" in headers:
            answer = PlainTextResponse("An upload must have a Content-Length header.", 411)
        elif size > MAX_UPLOAD_BYTES + FORM_BYTES:  # gradio limits each file of a request, not their total size
            answer = PlainTextResponse(
                f"The upload is too large; it may have up to {MAX_UPLOAD_BYTES // 2**20} MB.", 413
            )
        elif not await run_in_threadpool(self.sweeper.reserve, size):
            answer = PlainTextResponse(
                "The upload folder of this server is full. Please try again in a few minutes.", 507
            )
        else:
            answer = self.app
        try:
            await answer(scope, receive, send)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            await PlainTextResponse(FULL, 507)(scope, receive, send)
        finally:
            if answer is self.app:
                self.sweeper.release(size)


def serve(page: gr.Blocks, port: int | None = None, share: bool = False) -> None:
    """Serve the page until it is stopped by Ctrl-C or SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # a regular exit, which removes the files
    sweeper = Sweeper(FILES, page.delete_cache[1])
    page.queue(default_concurrency_limit=2, max_size=32)
    try:
        page.launch(
            server_port=port,
            share=share,
            theme=THEME,
            css_paths=HERE / "style.css",
            allowed_paths=[str(HERE / "examples")],  # gradio serves only files below the working directory otherwise
            max_file_size=MAX_UPLOAD_BYTES,
            show_error=False,  # unexpected errors are logged and not shown to visitors
            state_session_capacity=200,
            app_kwargs={"middleware": [Middleware(Guard, sweeper=sweeper)]},
            footer_links=["api"],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            mcp_server=False,
        )
    finally:
        page.close(verbose=False)  # close the page before its files are removed


@command
def main(argv: list[str] | None = None) -> None:
    """Serve the demo until it is interrupted."""
    args = parse_arguments(argv)
    try:
        store = ModelStore(args.model)
    except Refused as error:
        raise UserError(error.text) from error
    if store.choices("segmentation", wait=False)[0][1] == TRAINED:
        store.start_training()  # train now, so that the first visitor does not have to wait
    serve(build(store), args.port, args.share)


if __name__ == "__main__":
    main()
