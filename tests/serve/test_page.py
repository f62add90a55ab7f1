"""The web page in Chromium: upload, boxes, slider, class filter, sampling points, errors and downloads."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("chromium is not installed", allow_module_level=True)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
]  # fmt: skip
expect = playwright.expect


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, start):
    """Returns ``open_page(detector)``, which serves a detector and opens the page; it fails for errors of scripts."""
    opened, problems = [], []

    def open(detector, **limits):
        _, url = start(detector, **limits)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.extend(others(request.url, url)))
        page.goto(url)
        expect(page.locator("#model")).to_contain_text("5 classes: ant, bee, cat, dog, elk")
        opened.append(page)
        return page

    yield open
    for page in opened:
        page.close()
    assert not problems


def others(requested, own):
    """Returns the address of a request to another server."""
    return [] if requested.startswith((own, "blob:", "data:")) else [requested]


def upload(page, *files):
    """Chooses files (name, content)."""
    payload = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in files]
    page.locator("#file").set_input_files(payload)


def set_threshold(page, value):
    page.locator("#threshold").fill(str(value))


def listed(page):
    return page.locator("#detections button")


def canvas(page):
    """Returns the content of the canvas."""
    return page.evaluate("document.getElementById('canvas').toDataURL()")


def test_slider_and_class_filter(open_page, detector, picture):
    expected = detector(io.BytesIO(picture), score_threshold=0.05)
    scores = sorted(expected.scores.tolist())
    page = open_page(detector)
    upload(page, ("a.png", picture))
    set_threshold(page, 0.05)
    expect(listed(page)).to_have_count(len(expected))
    before = canvas(page)
    middle = round((scores[2] + scores[3]) / 2, 2)
    set_threshold(page, middle)
    expect(listed(page)).to_have_count(sum(score >= middle for score in scores))
    assert canvas(page) != before
    set_threshold(page, 0.05)
    name = expected.names[0]
    page.get_by_label(re.compile(f"^{name} ")).uncheck()
    expect(listed(page)).to_have_count(sum(other != name for other in expected.names))
    expect(page.locator("#count")).to_have_text(re.compile(rf"{sum(other != name for other in expected.names)} detec"))
    assert page.evaluate("document.activeElement.type") == "checkbox"  # keeps the focus of the keyboard


def test_images_chosen_before_the_model_is_described(open_page, detector, picture):
    page, held = open_page(detector), []
    page.route("**/model", lambda route: held.append(route), times=1)
    page.reload()
    upload(page, ("a.png", picture))
    expect(listed(page).first).to_be_visible()
    assert len(held) == 1


def test_boxes_are_drawn_at_their_pixels(open_page, detector, picture):
    box = detector(io.BytesIO(picture), score_threshold=0.05)[0].box
    page = open_page(detector)
    upload(page, ("a.png", picture))
    expect(listed(page).first).to_be_visible()
    set_threshold(page, 0.05)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download picture").click()
    assert download.value.suggested_filename == "a_detections.png"
    drawn = np.asarray(Image.open(download.value.path()).convert("RGB")).astype(int)
    factor = 480 // 40
    assert drawn.shape == (40 * factor, 56 * factor, 3)
    plain = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).repeat(factor, 0).repeat(factor, 1)
    changed = abs(drawn - plain).sum(2) > 30
    x1, y1, x2, y2 = (round(value * factor) for value in box)
    middle_x, middle_y = (x1 + x2) // 2, (y1 + y2) // 2
    sides = [changed[y, x] for x, y in ((x1, middle_y), (x2, middle_y), (middle_x, y1), (middle_x, y2))
             if 0 <= x < drawn.shape[1] and 0 <= y < drawn.shape[0]]  # fmt: skip
    assert sides and all(sides)


def test_click_shows_sampling_points(open_page, detector, picture):
    page = open_page(detector)
    upload(page, ("a.png", picture))
    set_threshold(page, 0.05)
    box = detector(io.BytesIO(picture), score_threshold=0.05)[0].box
    before, scale = canvas(page), page.locator("#canvas").bounding_box()["width"] / 56
    page.locator("#canvas").click(position={"x": (box[0] + box[2]) / 2 * scale, "y": (box[1] + box[3]) / 2 * scale})
    caption = page.locator("#caption")
    expect(caption).to_contain_text("32 sampling points of levels 1, 2, 3, 4, color")  # 4 heads x 4 levels x 2
    shapes = caption.locator("polygon").evaluate_all("all => all.map(shape => shape.getAttribute('points'))")
    assert len(set(shapes)) == 4
    assert page.locator("#detections button[aria-pressed=true]").count() == 1
    with_dashes = canvas(page)  # the box of the last layer, visible on that of the detection, which is the same
    page.evaluate("current.explanation.layer_boxes.fill([-9, -9, -8, -8]); render()")
    assert canvas(page) != with_dashes
    last = canvas(page)
    assert last != before
    page.get_by_label("Attention layer").select_option("1")
    assert canvas(page) != last
    page.keyboard.press("Escape")
    expect(caption).to_contain_text("Click a box")
    assert canvas(page) == before
    listed(page).nth(1).press("Enter")  # the list is the alternative for the keyboard
    expect(caption).to_contain_text("sampling points")


@pytest.mark.parametrize("is_panoptic", [False, True])
def test_masks_and_attention_maps(open_page, make_detector, picture, is_panoptic):
    detector = make_detector("detr", is_panoptic, MASK_ON=True, HIDDEN_DIM=128, NHEADS=8)
    expected = detector(io.BytesIO(picture), score_threshold=0.05)
    page = open_page(detector)
    upload(page, ("a.png", picture))
    set_threshold(page, 0.05)
    expect(listed(page)).to_have_count(len(expected))
    # The pixels of the tint are those of the masks.
    tinted = page.evaluate(
        """() => {
          const [height, width] = current.result.size;
          const shown = current.entries.filter(isShown);
          const pixels = tint(shown, width, height).getContext("2d").getImageData(0, 0, width, height).data;
          return [...Array(width * height).keys()].filter((index) => pixels[4 * index + 3] > 0);
        }"""
    )
    covered = expected.masks.any(0).numpy()
    if is_panoptic:
        stuff = [item for item in expected.segmentation.segments if not item["isthing"]]
        assert stuff
        covered = covered | np.isin(expected.segmentation.ids.numpy(), [item["id"] for item in stuff])
        expect(page.locator("#count")).to_have_text(
            re.compile(rf"^{len(expected)} detections?, {len(stuff)} stuff seg")
        )
        expect(page.locator("#detections .stuff")).to_have_count(len(stuff))
        names = {item["id"]: detector.class_names[item["category_id"]] for item in stuff}
        positions = page.evaluate(
            """() => current.entries.filter((entry) => !entry.box)
                 .map(({ name, runs }) => [name, ...inside(runs, current.result.size[0])])"""
        )
        for name, x, y in positions:
            assert names[int(expected.segmentation.ids[y, x])] == name
    assert tinted == np.flatnonzero(covered).tolist()
    listed(page).first.click()
    expect(page.locator("#caption")).to_contain_text(
        re.compile(r"attention of all heads, color by weight from blue \(0\) to yellow \(0\.\d+\)")
    )


def test_several_images_and_errors(open_page, detector, picture):
    page = open_page(detector, max_pixels=1_000_000, max_bytes=100_000)
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    damaged = ("notes.txt", b"no image"), ("bomb.png", bomb.getvalue()), ("large.png", bytes(100_001))
    upload(page, damaged[0], ("a.png", picture), *damaged[1:], ("b.png", picture))
    error = page.locator("#error")
    for text in (
        "notes.txt is not an image in a format that Pillow supports",
        "bomb.png has 12000 x 12000 pixels, more than the limit of 1,000,000",
        "large.png has 100001 bytes, more than the limit of 100000",
    ):
        expect(error).to_contain_text(text)
    buttons = page.locator("#images button")
    expect(buttons).to_have_count(5)
    expect(page.locator("#images .failed")).to_have_count(3)
    expect(page.locator("#images button[aria-pressed=true]")).to_contain_text("a.png")
    expect(buttons.last).to_have_text(re.compile(r"b.png \(\d+\)"))
    buttons.last.click()
    expect(page.locator("#images button[aria-pressed=true]")).to_contain_text("b.png")
    upload(page, ("a.png", picture))
    expect(error).to_be_empty()


def test_images_are_sent_again_while_the_server_is_busy(open_page, gate, picture):
    page = open_page(gate, timeout=1)
    upload(page, ("a.png", picture))  # occupies the thread until the gate opens
    expect(page.locator("#error")).to_contain_text("took more than 1 s")
    upload(page, ("b.png", picture))
    expect(page.locator("#caption")).to_have_text("The server is busy; waiting.")
    gate.open.set()
    expect(page.locator("#images button").last).to_have_text(re.compile(r"b.png \(\d+\)"))


def test_paste_drop_and_json(open_page, detector, picture):
    page = open_page(detector)
    for kind in ("paste", "drop"):
        page.evaluate(
            """([kind, bytes]) => {
              const data = new DataTransfer();
              data.items.add(new File([new Uint8Array(bytes)], `${kind}.png`, { type: "image/png" }));
              const options = { clipboardData: data, dataTransfer: data, bubbles: true };
              const made = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
              document.body.dispatchEvent(made);
            }""",
            [kind, list(picture)],
        )
        expect(page.locator("#images button[aria-pressed=true]")).to_contain_text(f"{kind}.png")
    set_threshold(page, 0.5)
    expected = detector(io.BytesIO(picture), score_threshold=0.5)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    answer = json.loads(download.value.path().read_text())
    assert answer["source"] == "drop.png" and answer["names"] == expected.names
    assert np.allclose(answer["boxes"], expected.boxes.numpy(), atol=1e-6)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone(browser, start, detector, picture, scheme):
    _, url = start(detector)
    page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page.goto(url)
    upload(page, ("a.png", picture))
    expect(listed(page).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", background)[0]) > 200) == (scheme == "light")
    page.close()
