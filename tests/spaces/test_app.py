"""Tests of the demo in a browser, through gradio_client, with many users, and without network."""

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from surgenet_hf import SurgeNetForSemanticSegmentation
from surgenet_hf.image_processing import build_image_processor
from surgenet_hf.inference.prediction import predict_segmentation
from tests.spaces.running import DEMO, HOSTILE, LABELS, start, stop

EXAMPLES = sorted((DEMO / "examples").glob("frame_*.jpg"))
CLIP = DEMO / "examples" / "clip_1.mp4"
USERS, REQUESTS = 8, 48


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))


def expected_mask(folder: Path, image: Image.Image) -> np.ndarray:
    model = SurgeNetForSemanticSegmentation.from_pretrained(folder)
    ((_, class_map),) = predict_segmentation(model, build_image_processor(image_size=64), [{"image": image}])
    return class_map


CHOSEN = """() => [...document.querySelectorAll("img[alt$='that you chose'], video")]
    .filter(part => part.offsetParent && !part.closest("#result")).map(part => part.src).join()"""


def choose_example(page, number: int = 0) -> None:
    """Choose another example than the current one and wait until it appears."""
    before = page.evaluate(CHOSEN)
    page.locator(".gallery-item:visible").nth(number).click()
    page.wait_for_function(f"before => ![before, ''].includes(({CHOSEN})())", arg=before)


def test_segment_in_the_browser(page, models, tmp_path):
    """Test the example, the overlay, the legend with escaped names, and the bytes of the mask."""
    page.get_by_text("Not a medical device.").first.wait_for()
    page.get_by_text("The Hugging Face Hub cannot be reached.").wait_for()
    assert page.get_by_text('The models marked "Demo model" are untrained').is_visible()
    assert not page.get_by_text("Every tab works").is_visible()  # the models belong to the owner
    choose_example(page)
    page.locator("#run-segment").click()
    page.locator("#legend table").wait_for()
    image = Image.open(EXAMPLES[0]).convert("RGB")
    mask = expected_mask(models.segmentation, image)
    shares = np.bincount(mask.ravel(), minlength=len(LABELS)) / mask.size
    assert (shares > 0).sum() > 1
    rows = page.locator("#legend tbody tr").all_inner_texts()
    expected = sorted((i for i in range(len(LABELS)) if shares[i] > 0), key=lambda i: -shares[i])
    assert [int(re.search(r"\d+", row)[0]) for row in rows] == expected
    for row, i in zip(rows, expected, strict=True):
        assert LABELS[i] in row  # the hostile name also appears as text
    assert page.locator("#legend img").count() == 0
    assert page.title() == "SurgeNet demo"

    with page.expect_download() as download:
        page.locator("#mask").click()
    path = tmp_path / "mask.png"
    download.value.save_as(path)
    saved = Image.open(path)
    assert saved.format == "PNG"
    np.testing.assert_array_equal(np.asarray(saved), mask)


def test_start_without_scrolling_and_the_address(page, server):
    """Test that start buttons are visible without scrolling in a window of 1280 x 900, with the banner.

    The example in About contains the address of this server.
    """
    for tab, button in {
        "Segment": "segment",
        "Classify": "classify",
        "Features": "features",
        "Video": "video",
    }.items():
        page.get_by_role("tab", name=tab).click()
        start = page.locator(f"#run-{button}")
        start.wait_for()
        box = start.bounding_box()
        assert box["y"] + box["height"] <= 900, tab
    page.get_by_role("tab", name="About").click()
    page.get_by_text(f'Client("{server.url}")').wait_for()


def choose_model(page, name: str) -> None:
    page.get_by_role("textbox", name="Model").or_(page.get_by_label("Model")).locator("visible=true").first.click()
    page.get_by_role("option", name=name, exact=True).click()


@pytest.mark.slow
def test_a_result_is_of_the_frame_beside_it(page):
    """Test that a result belongs to the current frame.

    When another frame is chosen while the first is processed, only results of the second may appear.
    """
    choose_example(page)
    choose_model(page, "slow")
    began = time.monotonic()
    page.locator("#run-segment").click()
    page.locator("#legend table").wait_for()
    seconds = time.monotonic() - began  # includes the loading time
    choose_example(page, 1)
    page.get_by_text("The result appears here.").locator("visible=true").wait_for()
    page.locator("#run-segment").click()
    page.wait_for_timeout(200)
    choose_example(page, 2)
    page.wait_for_timeout(1000 * seconds)
    assert page.locator("#legend table").count() == 0
    assert page.locator("#legend").inner_text().endswith("The result appears here.")
    assert page.locator("img[alt='Frame with class overlay']").count() == 0
    choose_model(page, "organs")
    page.locator("#run-segment").click()
    page.locator("#legend table").wait_for()


def test_everything_has_a_name_for_screen_readers(page):
    for tab in ("Segment", "Classify", "Features", "Video"):
        page.get_by_role("tab", name=tab).click()
        choose_example(page)
        page.wait_for_timeout(300)
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, img')].filter(e => e.offsetParent).filter(
                e => !(e.ariaLabel || e.alt || e.title || e.innerText || '').trim()).map(e => e.outerHTML)"""
        )
        assert not nameless
    assert page.get_by_role("button", name="A procedure, 64 s").is_visible()


def test_classify_in_the_browser(page):
    page.get_by_role("tab", name="Classify").click()
    choose_example(page)
    page.locator("#run-classify").click()
    page.locator("#bars .bars").wait_for()
    bars = page.locator("#bars").inner_text()
    for criterion in ("C1 two structures", "C2 hepatocystic triangle", "C3 cystic plate"):
        assert criterion in bars
    assert len(re.findall(r"(?:not )?met$", bars, re.MULTILINE)) == 3
    assert len(re.findall(r"\d+\.\d.%", bars)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["Segment", "Classify"])
def test_a_quick_visitor_with_a_slow_server(page, tab):
    """Test a start as soon as the example appears, on a slow server.

    Everything that belongs to the choice of an example must be done by then.
    """
    page.get_by_role("tab", name=tab).click()
    choose_example(page, 1)  # so that there is a choice to discard

    def delay(route):
        page.wait_for_timeout(1000)
        route.continue_()

    page.route("**/run/predict", delay)
    page.locator(f"#run-{tab.lower()}").click()
    choose_example(page)
    page.locator(f"#run-{tab.lower()}").click()
    page.locator({"Segment": "#legend table", "Classify": "#bars .bars"}[tab]).wait_for()
    page.wait_for_timeout(3000)
    assert page.locator("#legend table:visible, #bars .bars:visible").count() == 1
    assert page.get_by_text("Error", exact=True).locator("visible=true").count() == 0


def test_a_click_in_features(page):
    page.get_by_role("tab", name="Features").click()
    page.locator(".gallery-item:visible, .gallery button:visible").first.click()
    frame = page.locator("#frame-a img").first
    frame.wait_for()
    page.locator("#run-features").click()
    page.get_by_text("Similar colors indicate similar features").wait_for()
    box = frame.bounding_box()  # the frame is centered within the box at its own aspect ratio
    width = min(box["width"], box["height"] * 4 / 3)
    left = (box["width"] - width) / 2
    frame.click(position={"x": left + 0.25 * width, "y": 0.75 * box["height"]})
    page.get_by_text("Yellow: most similar").wait_for()
    point = [float(page.get_by_label(f"number input for {axis} in %").input_value()) for axis in ("Point: x", "y")]
    assert point == pytest.approx([25, 75], abs=3)


@pytest.mark.slow
def test_a_clip_with_progress_cancel_and_result(page, server):
    page.get_by_role("tab", name="Video").click()
    choose_example(page, 1)
    choose_model(page, "slow")  # slow enough to be running when canceled
    page.locator("#run-video").click()
    page.locator("#ribbon table").wait_for()
    page.get_by_text(re.compile(r"Frame \d+ of 128, \d+ (s|min) left")).wait_for()
    assert 0 < page.locator("#ribbon progress").evaluate("bar => bar.position") < 1
    page.locator("#stop-video").click()
    page.get_by_text("Nothing is running now.").wait_for()
    page.locator("#ribbon progress").wait_for(state="hidden")
    for _ in range(600):  # the partial video is deleted
        begun = list(server.files.rglob("result.mp4"))
        if not begun:
            break
        page.wait_for_timeout(100)
    assert not begun
    assert page.locator("#result video").count() == 0

    choose_model(page, "phases")
    page.locator("#run-video").click()
    page.locator("#ribbon .ribbon").wait_for()
    assert page.locator("#video-status").inner_text() == ""
    assert page.get_by_alt_text("Current frame").is_visible()
    assert not page.get_by_text("Current frame").is_visible()  # it would cover the phase name
    page.locator("#result video").wait_for(timeout=60_000)
    page.wait_for_function("document.querySelector('#result video').readyState >= 2")  # the browser decodes it
    assert page.evaluate("document.querySelector('#result video').duration") == pytest.approx(64, abs=1)
    assert page.locator("#ribbon progress").count() == 0

    choose_example(page, 0)  # there is no result for another clip yet
    page.locator("#result video").wait_for(state="detached")
    assert page.locator("#ribbon").inner_text() == "The result appears here."
    assert page.get_by_alt_text("Current frame").count() == 0


@pytest.mark.slow
def test_what_was_on_its_way_is_emptied(page):
    """Test that frames of a clip that arrive after another was chosen are cleared.

    The server is slow: it cancels only after another frame has arrived, and loads the example after that.
    """
    page.get_by_role("tab", name="Video").click()
    choose_example(page, 1)
    choose_model(page, "slow")
    page.locator("#run-video").click()
    page.locator("#ribbon table").wait_for()
    page.evaluate("""() => {
        const fetch = window.fetch;
        const late = new Promise(done => { window.lateFrameArrived = done; });
        let canceled;
        const isCanceled = new Promise(done => { canceled = done; });
        window.fetch = async (input, ...more) => {
            const url = String(input.url ?? input);
            if (url.includes("/run/predict")) await isCanceled;
            if (!url.includes("/cancel")) return fetch(input, ...more);
            await late;
            const response = await fetch(input, ...more);
            canceled();
            return response;
        };
    }""")
    page.locator(".gallery-item:visible").first.click()
    for _ in range(2):  # the first frame may have arrived before the results were cleared, the second is late
        before = page.locator("#ribbon").inner_html()
        page.wait_for_function(
            "before => document.querySelector('#ribbon table')"
            " && document.querySelector('#ribbon').innerHTML !== before",
            arg=before,
        )
    page.evaluate("window.lateFrameArrived()")
    page.wait_for_function("document.querySelector('#ribbon').innerText === 'The result appears here.'")
    page.wait_for_timeout(1000)
    assert page.locator("#ribbon table").count() == 0
    assert page.get_by_alt_text("Current frame").count() == 0


def test_a_broken_file_gets_a_message(page, tmp_path):
    """Test that a broken file with a hostile name gives a clear message and the page continues to work."""
    path = tmp_path / "..%2f<b>x<b>.png"
    path.write_bytes(b"GIF89a not really" * 50)
    page.locator("input[type=file]").first.set_input_files(path)
    page.wait_for_timeout(500)
    page.locator("#run-segment").click()
    page.get_by_text("This file cannot be read as an image.").wait_for()
    page.reload()
    choose_example(page)
    page.locator("#run-segment").click()
    page.locator("#legend table").wait_for()


def test_keyboard_alone(page):
    """Test that the keyboard alone leads from the first tab to a result."""
    choose_example(page)
    page.get_by_role("tab", name="Segment").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "run-segment":
            break
    page.keyboard.press("Enter")
    page.locator("#legend table").wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_layout(browser, server, width, theme):
    """Test that no tab is wider than the screen and that text has enough contrast."""
    page = browser.new_page(viewport={"width": width, "height": 850}, color_scheme=theme)
    page.goto(server.url)
    for tab in ("Segment", "Classify", "Features", "Video"):
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = (
        page.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}")
        for where, what in ((".note", "color"), ("body", "backgroundColor"))
    )
    assert contrast(ink, ground) > 4.5  # WCAG AA
    page.close()


def contrast(ink: str, ground: str) -> float:
    def light(color):
        values = np.array([float(v) for v in re.findall(r"[\d.]+", color)[:3]]) / 255
        linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    low, high = sorted((light(ink), light(ground)))
    return (high + 0.05) / (low + 0.05)


def test_the_page_may_not_call_elsewhere(page):
    blocked = page.evaluate(
        """() => new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.blockedURI));
            fetch('http://127.0.0.1:9/').catch(() => {});
        })"""
    )
    assert blocked == "http://127.0.0.1:9/"


@pytest.mark.slow
def test_endpoints(client, models):
    image = handle_file(str(EXAMPLES[1]))
    endpoints = client.view_api(return_format="dict")["named_endpoints"]
    assert endpoints.keys() == {"/segment", "/classify", "/features", "/similarity", "/video", "/model_info"}
    assert not client.view_api(return_format="dict")["unnamed_endpoints"]

    parameters = {
        (name, parameter["parameter_name"]): parameter
        for name, endpoint in endpoints.items()
        for parameter in endpoint["parameters"]
    }
    for (name, parameter), said in parameters.items():
        if parameter == "model":  # accepts models that are not in the list
            assert said["python_type"]["type"] == "str", name
    for name in ("/features", "/similarity"):
        assert parameters[name, "image_b"]["parameter_has_default"]
        assert not parameters[name, "image_a"]["parameter_has_default"]

    overlay, areas, mask, legend = client.predict(image, "organs", api_name="/segment")
    picture = Image.open(EXAMPLES[1]).convert("RGB")
    np.testing.assert_array_equal(np.asarray(Image.open(mask)), expected_mask(models.segmentation, picture))
    assert Image.open(overlay).size == picture.size
    assert sum(area["percent"] for area in areas) == pytest.approx(100, abs=0.01)
    assert HOSTILE not in legend

    scores, _ = client.predict(image, "steps", api_name="/classify")
    assert scores.keys() == {"cut", "sew", "wait"}
    assert sum(scores.values()) == pytest.approx(1, abs=1e-3)
    map_a, map_b, _ = client.predict(image_a=image, model="backbone", api_name="/features")
    assert Image.open(map_a).size == picture.size
    assert map_b is None
    map_a, map_b, _ = client.predict(image, image, 30, 60, "backbone", api_name="/similarity")
    assert Image.open(map_b).size == picture.size

    job = client.submit(handle_file(str(CLIP)), 2, "organs", api_name="/video")
    _, _, result = job.result()
    path = result["video"] if isinstance(result, dict) else result
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 12  # six seconds at two frames per second
    assert (frames[0].width, frames[0].height) == (320, 240)

    info = client.predict("phases", api_name="/model_info")
    assert info["labels"] == ["cut", "sew", "wait"]
    assert "phases" in info["tasks"]


@pytest.mark.slow
def test_refusals(client, server, models, tmp_path):
    image, path = handle_file(str(EXAMPLES[0])), str(models.segmentation)
    for wanted, inputs in {
        r"There is no model '/": (image, path),  # folders of the server cannot be named
        r"There is no model '\.\./": (image, "../organs"),
        r"no model ''": (image, ""),
        r"not for segmentation": (image, "cvs"),
        r"could not be downloaded": (image, "someone/something"),
        r"cannot be read as an image": (handle_file(str(CLIP)), "organs"),
        r"choose an example": (None, "organs"),
    }.items():
        with pytest.raises(AppError, match=wanted):
            client.predict(*inputs, api_name="/segment")
    # a file of the server or an address instead of an upload; gradio_client is not used, as it would upload the file
    for where in (str(EXAMPLES[0]), "/etc/passwd", "http://example.invalid/frame.png"):
        for meta in ({}, {"meta": {"_type": "gradio.FileData"}}):
            call = f"{server.url}gradio_api/call/segment"
            event = httpx.post(call, json={"data": [{"path": where} | meta, "organs"]}).json()["event_id"]
            answer = httpx.get(f"{call}/{event}", timeout=60).text
            assert answer.startswith("event: error"), answer
    with pytest.raises(AppError, match="x is 'left'; please give a number"):
        client.predict(image, None, "left", 50, "backbone", api_name="/similarity")
    assert not server.elsewhere.exists(), server.elsewhere.read_text()


def test_what_gradio_offers_besides_is_closed(server):
    """Test that other endpoints of gradio are closed, which show visitor statistics or store files."""
    for path in ("monitoring", "monitoring/summary", "monitoring/x"):
        assert httpx.get(server.url + path).status_code == 404
    for path in ("process_recording", "component_server", "component_server/"):
        answer = httpx.post(f"{server.url}gradio_api/{path}", files={"video": b"x"})
        assert answer.status_code == 404
        assert "content-security-policy" in answer.headers
    assert httpx.get(f"{server.url}config").status_code == 200


def test_long_clips_are_not_cut_unseen(client, tmp_path):
    """Test that a clip with too many frames is refused before it is processed."""
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=2)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        for _ in range(2 * 130):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(AppError, match="has 650 frames; up to 600"):
        client.predict(handle_file(str(tmp_path / "a.mp4")), 5, "organs", api_name="/video")


def memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


@pytest.mark.slow
def test_many_users(server, models, tmp_path):
    """Test eight users with six requests each.

    Each user must get the mask of their own image, and memory must not grow.
    """
    rng = np.random.default_rng(0)
    pictures, masks = [], []
    for user in range(USERS):
        blocks = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        image = Image.fromarray(blocks).resize((160, 120), Image.Resampling.BICUBIC)
        image.save(tmp_path / f"{user}.png")
        pictures.append(tmp_path / f"{user}.png")
        masks.append(expected_mask(models.segmentation, image))
    assert len({mask.tobytes() for mask in masks}) == USERS

    clients = [
        Client(server.url, verbose=False, download_files=str(tmp_path / f"downloads{user}")) for user in range(USERS)
    ]

    def work(user: int, requests: int) -> None:
        for _ in range(requests):
            _, _, mask, _ = clients[user].predict(handle_file(str(pictures[user])), "organs", api_name="/segment")
            np.testing.assert_array_equal(np.asarray(Image.open(mask)), masks[user])

    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(work, range(USERS), [3] * USERS))
        before, began = memory(server.pid), time.monotonic()
        list(pool.map(work, range(USERS), [REQUESTS // USERS - 3] * USERS))
    grown, seconds = memory(server.pid) - before, time.monotonic() - began
    print(f"{REQUESTS - 3 * USERS} requests in {seconds:.1f} s; memory {before:.0f} MB, grown by {grown:.0f} MB")
    assert grown < 80


@pytest.mark.slow
def test_without_network(tmp_path, browser):
    """Test the demo without models and without the Hub.

    It shows the banner, trains a small model when requested, and deletes files after their time.
    """
    code = "import app, demo, models; demo.DEMO_STEPS = 3; app.serve(app.build(models.ModelStore(), kept_seconds=2))"
    left = tmp_path / "server" / "files" / "surgenet-demo-of-one-that-was-killed"
    left.mkdir(parents=True)
    (left / "patient.png").write_bytes(b"x")
    server = start(["-c", code], tmp_path / "server")
    try:
        assert not left.exists()
        page = browser.new_page()
        page.goto(server.url)
        page.get_by_text("The Hugging Face Hub cannot be reached.").wait_for()
        assert page.get_by_text("Every tab works with a small demo model").is_visible()
        page.close()
        client = Client(server.url, verbose=False, download_files=str(tmp_path))
        for number in range(2):
            Image.effect_mandelbrot((80, 60), (-2, -1, 1, 1), 20 + number).save(tmp_path / "visit.png")
            image = handle_file(str(tmp_path / "visit.png"))
            *_, legend = client.predict(image, "demo", api_name="/segment")
            assert "trained for seconds on synthetic scenes" in legend
        scores, bars = client.predict(image, "demo-cvs", api_name="/classify")
        assert len(scores) == 3
        assert "untrained" in bars
        assert "met" not in re.findall(r"\w+", bars)  # random weights give no verdict
        with pytest.raises(AppError, match="could not be loaded from the Hub"):
            client.predict(image, None, "SurgeNetXL", api_name="/features")
        break_off_an_upload(server)
        ours = {path.name for path in (DEMO / "examples").iterdir()} | {"lock"}
        assert any(path.name == "visit.png" for path in server.files.rglob("*"))
        for _ in range(300):
            kept = [path for path in server.files.rglob("*") if path.is_file() and path.name not in ours]
            if not kept:
                break
            time.sleep(0.2)
        assert not kept
        assert {path.name for path in server.files.rglob("*") if path.is_file()} == ours  # the examples remain
        httpx.post(f"{server.url}gradio_api/upload", files={"files": ("patient.png", b"x")}).raise_for_status()
        assert list(server.files.rglob("patient.png"))
        assert not server.elsewhere.exists(), server.elsewhere.read_text()
    finally:
        stop(server)
    assert not list(server.files.iterdir())  # deleted on SIGTERM


# While the flag file exists, writing uploads and images fails as on a full disk. The folder may hold up to 40 MiB.
FULL_DISK = """
import errno, sys
from pathlib import Path
import app, demo, keeping, models
from gradio import route_utils
from PIL import Image

flag, demo.DEMO_STEPS = Path(sys.path[0] or ".") / {flag!r}, 3
def failing(function):
    def fail(*args, **kwargs):
        if flag.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args, **kwargs)
    return fail
route_utils.NamedTemporaryFile = failing(route_utils.NamedTemporaryFile)
Image.Image.save = failing(Image.Image.save)
keeping.MAX_FOLDER_BYTES = 40 * 2**20
app.serve(app.build(models.ModelStore({models!r})))
"""


@pytest.mark.slow
def test_a_disk_that_is_full_and_uploads_without_end(models, tmp_path):
    flag = tmp_path / "full"
    code = FULL_DISK.format(flag=str(flag), models=[str(models.segmentation), str(models.backbone)])
    server = start(["-c", code], tmp_path / "server")
    address = f"{server.url}gradio_api/upload"
    try:

        def ask(name, *data):
            """Return the end of an answer, without gradio_client, which would upload the file again."""
            call = f"{server.url}gradio_api/call/{name}"
            event = httpx.post(call, json={"data": data}).json()["event_id"]
            return httpx.get(f"{call}/{event}", timeout=60).text

        uploaded = httpx.post(address, files={"files": ("a.jpg", EXAMPLES[0].read_bytes())}).json()[0]
        frame = {"path": uploaded, "meta": {"_type": "gradio.FileData"}}
        flag.touch()
        answer = httpx.post(address, files={"files": ("b.jpg", EXAMPLES[1].read_bytes())})
        assert (answer.status_code, answer.text[:28]) == (507, "The disk of this server is f")
        assert "disk of this server is full" in ask("segment", frame, "organs")  # a file of the demo itself
        assert "disk of this server is full" in ask("features", frame, None, "backbone")  # a file that gradio creates
        flag.unlink()
        assert "event: complete" in ask("features", frame, None, "backbone")

        answers = [
            httpx.post(address, files={"files": (f"{number}.png", bytes([number]) * 8 * 2**20)}) for number in range(6)
        ]
        assert {answer.status_code for answer in answers[:3]} == {200}
        assert answers[-1].status_code == 507
        assert "try again in a few minutes" in answers[-1].text
        files = [path.stat().st_size for path in server.files.rglob("*") if path.is_file()]
        assert sum(files) < 40 * 2**20
        assert "event: complete" in ask("features", frame, None, "backbone")  # existing files still work

        def in_pieces():
            yield b"x"

        assert httpx.post(address, content=in_pieces()).status_code == 411
        two = [("files", (f"{number}.mp4", bytes(60 * 2**20))) for number in range(2)]
        assert httpx.post(address, files=two).status_code == 413
    finally:
        stop(server)


def break_off_an_upload(server) -> None:
    """Break off an upload like a browser that is closed; gradio keeps the partial file."""
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {10**7}\r\n"
        "Content-Type: multipart/form-data; boundary=edge\r\n\r\n--edge\r\n"
        'Content-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + b"patient" * 200_000)
        for _ in range(300):
            partial = [path for path in server.files.rglob("tmp*") if path.is_file() and path.stat().st_size]
            if partial:
                break
            time.sleep(0.1)
    assert partial
