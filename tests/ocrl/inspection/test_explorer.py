"""The page's data are the model's, all of it is in the one file, and it works in a browser."""

import base64
import io
import json
import re
import runpy
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ocrl.inspection.explorer import explore, render_explorer, sheet, touching
from ocrl.interfaces import Decoder
from ocrl.types import Clip, DecoderOutput, SlotOutput

CHROMIUM = runpy.run_path(str(Path(__file__).with_name("chromium.py")))
SIZE, NUM_FRAMES = 16, 6
# Slot 1 holds a square that walks right, slot 2 one that stands; slot 0 the rest.
LEFT = [1 + t for t in range(NUM_FRAMES)]


class Painter(Decoder):
    space = "pixels"

    def __init__(self, *, space="pixels"):
        super().__init__()
        self.space = space

    def forward(self, slots, target=None, *, attn=None):
        masks = attn.unflatten(-1, (SIZE, SIZE))
        colours = torch.eye(3).expand(*slots.shape[:2], 3, 3)
        parts = colours[..., None, None].expand(*colours.shape, SIZE, SIZE)
        return DecoderOutput((parts * masks[:, :, :, None]).sum(2), masks, parts)


class Model(torch.nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.backbone = torch.nn.Module()
        self.encoder.backbone.grid = (SIZE, SIZE)
        self.decoder = decoder

    def encode(self, clip):
        ids = clip.segmentation["entities"].flatten(2)
        attn = torch.nn.functional.one_hot(ids.clamp(max=2).long(), 3).mT.float()
        slots = torch.tensor([[0.0, 1], [1, 0], [3, 4]]).repeat(1, NUM_FRAMES, 1, 1)
        return SlotOutput(slots, attn, codes=torch.arange(3).expand(1, NUM_FRAMES, 3)[..., None])


def make_clip(segmentation=True):
    ids = torch.zeros(1, NUM_FRAMES, SIZE, SIZE, dtype=torch.int32)
    for t, left in enumerate(LEFT):
        ids[0, t, 2:6, left : left + 4] = 1
        ids[0, t, 10:14, 10:14] = 2
    video = torch.randint(0, 256, (1, NUM_FRAMES, 3, SIZE, SIZE), dtype=torch.uint8)
    table = torch.tensor([1, 2]).expand(1, NUM_FRAMES, 2)
    return Clip(
        video,
        torch.zeros(1, NUM_FRAMES, dtype=torch.bool),
        segmentation={"entities": ids},
        properties={"id": table, "category": table - 1},
    )


def explored(decoder=None, **options):
    model = Model(decoder or Painter())
    return explore(model, make_clip(), name="a </script> clip", **options)


def decode(source):
    """A sheet as (T,K,H,W,3)."""
    content = base64.b64decode(source["src"].removeprefix("data:image/png;base64,"))
    pixels = np.array(Image.open(io.BytesIO(content)).convert("RGB"))
    height, width = source["height"], source["width"]
    shape = (pixels.shape[0] // height, height, pixels.shape[1] // width, width, 3)
    return pixels.reshape(shape).transpose(0, 2, 1, 3, 4)


def test_a_sheet_has_frames_downwards_and_slots_to_the_right():
    tiles = torch.randint(0, 256, (3, 2, 3, 4, 5), dtype=torch.uint8)
    np.testing.assert_array_equal(decode(sheet(tiles)), tiles.permute(0, 1, 3, 4, 2))


def test_the_data_are_the_models():
    clip = make_clip()
    data = explore(Model(Painter()), clip, name="x", categories=["walker", "post"])
    np.testing.assert_array_equal(decode(data["frames"])[:, 0], clip.video[0].permute(0, 2, 3, 1))
    ids = clip.segmentation["entities"][0]
    np.testing.assert_array_equal(decode(data["ids"])[:, 0, ..., 0], ids)
    np.testing.assert_array_equal(decode(data["masks"])[:, 1, ..., 0], 255 * (ids == 1))
    np.testing.assert_array_equal(decode(data["attn"])[:, 2, ..., 0], 255 * (ids == 2))
    assert decode(data["parts"])[0, 1, 0, 0].tolist() == [0, 255, 0]
    assert data["centre"][2][1] == [pytest.approx((LEFT[2] + 2) / SIZE), pytest.approx(4 / SIZE)]
    assert data["share"][0] == [pytest.approx(1 - 32 / 256), 16 / 256, 16 / 256]
    assert data["alike"][0][2] == [0.8, 0.6, 1.0]
    assert data["drift"][0] == [None] * 3 and data["drift"][1] == [0, 0, 0]
    assert data["touching"][0] == [[1, 2], [0], [0]]
    assert data["objects"][0] == [None, ("walker 1", 1.0), ("post 2", 1.0)]
    assert data["codes"][0] == [[0], [1], [2]]


def test_a_slot_without_a_mask_has_no_place():
    model = Model(Painter())
    clip = make_clip()
    clip.segmentation["entities"][0, 3] = 0
    assert explore(model, clip, name="x")["centre"][3][1] is None


def test_who_touches_whom():
    ids = torch.tensor([[0, 0, 1], [0, 2, 2], [3, 3, 3]])
    assert touching(ids, num_slots=5) == [[1, 2, 3], [0, 2], [0, 1, 3], [0, 2], []]


def test_decoders_that_draw_nothing_leave_the_frame():
    data = explored(Painter(space="features"))
    assert data["recon"] is None and data["parts"] is None and data["masks"] is not None


def test_too_long_a_clip_is_refused():
    clip = make_clip()
    with pytest.raises(ValueError, match="one clip of one camera"):
        explore(Model(Painter()), Clip(clip.video[:, :, None], clip.is_first), name="x")
    tall = Clip(clip.video.repeat(1, 1, 1, 200, 1), clip.is_first, segmentation=clip.segmentation)
    with pytest.raises(ValueError, match="take a shorter clip"):
        explore(Model(Painter()), tall, name="x")


def render(**options):
    rate = options.pop("frames_per_second", 20.0)
    return render_explorer(
        [explored(**options), {**explored(), "name": "second"}],
        title="Inside <slots>",
        details={"data": "x & y"},
        frames_per_second=rate,
    )


class Sources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data")]


def test_everything_is_in_the_file():
    page = render()
    parser = Sources()
    parser.feed(page)
    assert parser.found == []
    assert not {"link", "iframe", "object", "embed", "base"} & set(parser.tags)
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttp|WebSocket|import\(", page)
    assert "default-src 'none'; img-src data:;" in page
    assert page.count("<script") == page.count("</script>") == 2
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    data = json.loads(text[1])
    assert [clip["name"] for clip in data["clips"]] == ["a </script> clip", "second"]
    assert len(data["colours"]) == 3
    assert "Inside &lt;slots&gt;" in page and "x &amp; y" in page
    assert "$" not in page.replace("$/", "")


def test_the_page_is_installed_with_the_package():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["ocrl.inspection"]
    assert any(Path("explorer.html").match(pattern) for pattern in patterns)


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="at least one clip"):
        render_explorer([], title="t", details={}, frames_per_second=8)
    with pytest.raises(ValueError, match="positive frames_per_second"):
        render(frames_per_second=0.0)


@pytest.fixture
def browser(tmp_path):
    if CHROMIUM["find_browser"]() is None:
        pytest.skip(f"none of {', '.join(CHROMIUM['NAMES'])} is on this machine")
    (tmp_path / "explorer.html").write_text(render())
    chromium = CHROMIUM["Chromium"](tmp_path / "profile")
    try:
        chromium.open(tmp_path / "explorer.html", until="document.body?.dataset.ready")
        yield chromium
        assert chromium.complaints() == []
        allowed = (("file:///", "data:image/png"), ("chrome", "about:"))
        assert all(url.startswith(allowed[0] + allowed[1]) for url in chromium.requests())
    finally:
        chromium.close()


def state(browser):
    return browser.evaluate("({...document.body.dataset})")


def click_frame(browser, x, y):
    """Click the pixel (x, y) of the frame."""
    box = browser.evaluate(
        "(() => { const b = document.getElementById('stage').getBoundingClientRect();"
        "return [b.left, b.top, b.width, b.height]; })()"
    )
    browser.click(box[0] + (x + 0.5) / SIZE * box[2], box[1] + (y + 0.5) / SIZE * box[3])


def test_a_click_shows_the_slot(browser):
    assert state(browser)["slot"] == ""
    assert browser.evaluate("document.getElementById('detail').hidden")
    before = browser.screenshot()
    click_frame(browser, LEFT[0] + 1, 3)
    assert state(browser)["slot"] == "1"
    assert browser.evaluate("document.getElementById('name').textContent") == "Slot 1"
    assert browser.evaluate("document.getElementById('facts').innerText").split("\n")[-1] == "1"
    assert "object 1 (IoU 1.00)" in browser.evaluate("document.body.innerText")
    assert browser.screenshot() != before
    # What is drawn: the mask of slot 1 is white in its square and black elsewhere.
    pixel = (
        "Array.from(document.getElementById('mask').getContext('2d').getImageData({},{},1,1).data)"
    )
    assert browser.evaluate(pixel.format(LEFT[0], 2)) == [255, 255, 255, 255]
    assert browser.evaluate(pixel.format(0, 0)) == [0, 0, 0, 255]
    # Its part is green there, as the decoder paints it.
    part = pixel.replace("mask", "part").format(LEFT[0], 2)
    assert browser.evaluate(part) == [0, 255, 0, 255]
    # The most alike neighbour of slot 1 comes first, and a click goes there.
    near = "Array.from(document.querySelectorAll('#near button')).map(b => b.dataset.slot)"
    assert browser.evaluate(near) == ["2", "0"]
    browser.evaluate("document.querySelector('#near button').click()")
    assert state(browser)["slot"] == "2"
    click_frame(browser, 11, 11)
    assert state(browser)["slot"] == ""


def test_time_moves_the_click(browser):
    browser.press("End")
    assert state(browser)["frame"] == str(NUM_FRAMES - 1)
    click_frame(browser, LEFT[-1] + 3, 3)
    assert state(browser)["slot"] == "1"
    browser.press("Home")
    click_frame(browser, LEFT[-1] + 3, 3)
    assert state(browser)["slot"] == "0"


def test_the_keyboard_does_it_all(browser):
    browser.press("2")
    assert state(browser)["slot"] == "2"
    browser.press("7")
    assert state(browser)["slot"] == "2"
    browser.press("ArrowDown")
    assert state(browser)["slot"] == "0"
    browser.press("ArrowUp")
    assert state(browser)["slot"] == "2"
    modes = []
    for _ in range(4):
        browser.press("m")
        modes.append(state(browser)["mode"])
    assert modes == ["recon", "attn", "frame", "slots"]
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    browser.press("ArrowLeft")
    assert state(browser)["frame"] == "1"
    browser.press("Escape")
    assert state(browser)["slot"] == ""
    browser.press(" ")
    assert state(browser)["playing"] == "true"
    browser.wait("document.body.dataset.frame > 3")
    browser.press(" ")
    assert state(browser)["playing"] == "false"


def test_another_clip_opens(browser):
    browser.press("1")
    browser.evaluate(
        "(() => { const s = document.getElementById('clips'); s.value = '1';"
        "s.dispatchEvent(new Event('change')); })()"
    )
    browser.wait("document.body.dataset.clip === '1'")
    assert state(browser)["slot"] == ""
