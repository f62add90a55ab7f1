"""`Detector.explain`: tensors, pictures and the page."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr import Detector
from projects_deformable_detr.errors import ArgumentError
from projects_deformable_detr.inference import explanation_figures as figures
from projects_deformable_detr.inference.model import to_predictions

MASKS = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}
KINDS = {  # variant and changes of its config
    "single_scale": ("single_scale", {}),
    "single_scale_dc5": ("single_scale_dc5", {}),
    "multi_scale": ("multi_scale", {}),
    "box_refine": ("box_refine", {}),
    "two_stage": ("two_stage", {}),
    "encoder_only": ("encoder_only", {}),
    "own_level": ("own_level", {}),
    "detr": ("detr", {}),
    "detr_pre_norm": ("detr_pre_norm", {}),
    "detr_dc5_plus": ("detr_dc5_plus", {}),
    "masks": ("two_stage", MASKS),
    "panoptic": ("detr", MASKS | {"panoptic": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_models(save_tiny, files, kind):
    variant, changes = KINDS[kind]
    detector = Detector.load(save_tiny(variant, **changes))
    explanation = detector.explain(files[0], points=[(20, 30)], score_threshold=0, top_k=3)
    expected = detector(files[0], score_threshold=0, top_k=3)
    found, count = explanation.detections, len(explanation.detections)
    assert count == 3
    torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(explanation.boxes[-1].clamp_min(0).minimum(torch.tensor([56, 40, 56, 40])), found.boxes)
    layers = 2 if variant == "encoder_only" else 3
    levels = len(explanation.spatial_shapes)
    assert explanation.attention.weights.shape[:2] == (layers, count)
    assert explanation.point_attention.weights.shape[:2] == (2, levels)
    if variant.startswith("detr"):
        sums = explanation.attention.weights.sum((-2, -1))
        assert explanation.attention.weights.shape[-2:] == explanation.spatial_shapes[0]
    else:
        sums = explanation.attention.weights.sum((-2, -1))
        reached = {"own_level": 1}.get(variant, levels)
        heads = changes.get("NHEADS", 4)
        assert explanation.point_attention.weights.shape[2:] == (heads, reached, 2)
        points = explanation.sampling_points(1, layer=0)
        assert len(points.weights) == heads * levels * 2 and points.layers.unique().tolist() == [0]
        index = int(points.weights.argmax())
        head, level = int(points.heads[index]), int(points.levels[index])
        k = index % 2
        assert torch.equal(points.locations[index], explanation.attention.locations[0, 1, head, level, k])
    torch.testing.assert_close(sums, torch.ones_like(sums))
    assert (explanation.proposals is not None) == (variant == "two_stage")
    pictures = [explanation.draw(1), explanation.draw_point(0)]
    if kind in ("two_stage", "encoder_only", "own_level", "detr"):
        pictures += [explanation.draw(0, by="layer"), explanation.draw(2, layer=0, by="head"), explanation.draw_boxes()]
    assert all(min(picture.size) > 300 for picture in pictures)
    if variant == "two_stage":
        assert len(explanation.proposals.boxes) == 7 and (explanation.proposals.scores.diff() <= 0).all()
        # The references of the first layer are the proposals.
        centers = (explanation.proposals.boxes[:, :2] + explanation.proposals.boxes[:, 2:]) / 2
        references = explanation.attention.references[0, :, :2]
        torch.testing.assert_close(references, centers[explanation.queries], atol=1e-3, rtol=1e-4)
        explanation.draw_proposals()
    assert not any(module._forward_pre_hooks for module in detector.model.modules())


@pytest.fixture
def focused(save_tiny):
    """A detector whose queries attend to one point of level 1, two pixels of the level right of (0.25, 0.6)."""
    detector = Detector.load(save_tiny())
    model = detector.model
    with torch.no_grad():
        model.queries.reference_points.weight.zero_()
        model.queries.reference_points.bias.copy_(torch.logit(torch.tensor([0.25, 0.6])))
        attention = model.decoder.layers[-1].cross_attn
        for linear in (attention.sampling_offsets, attention.attention_weights):
            linear.weight.zero_()
            linear.bias.zero_()
        attention.sampling_offsets.bias.view(4, 4, 2, 2)[2, 1, 1] = torch.tensor([2.0, 0.0])
        attention.attention_weights.bias.view(4, 4, 2)[2, 1, 1] = 50.0
    return detector


def test_markers_are_at_the_sampled_pixels(focused):
    image = np.full((120, 240, 3), 60, dtype=np.uint8)
    explanation = focused.explain(image, score_threshold=0, top_k=1)
    height, width = explanation.spatial_shapes[1]
    place = 240 * (0.25 + 2 / width), 120 * 0.6
    points = explanation.sampling_points(0)
    best = int(points.weights.argmax())
    assert (int(points.heads[best]), int(points.levels[best])) == (2, 1)
    assert points.locations[best].tolist() == pytest.approx(place, abs=0.01)
    color = np.array([int(figures.RAMP[-1][start : start + 2], 16) for start in (1, 3, 5)])
    # One picture, and the third of a grid, which has gaps of 8 pixels.
    pictures = (explanation.draw(0), 1000 / 240, 0, 0), (explanation.draw(0, by="layer"), 560 / 240, 1144, 8)
    for picture, scale, left, top in pictures:
        pixels = np.asarray(picture, dtype=int)[: round(120 * scale) + top]  # without the legend
        rows, columns = (abs(pixels - color).max(-1) < 12).nonzero()
        marker = (columns.mean() + 0.5 - left) / scale, (rows.mean() + 0.5 - top) / scale
        assert marker == pytest.approx(place, abs=0.3)


def test_attention_map_is_at_its_pixels(save_tiny):
    detector = Detector.load(save_tiny("detr"))
    explanation = detector.explain(np.full((120, 240, 3), 60, dtype=np.uint8), score_threshold=0, top_k=1)
    weights = torch.zeros_like(explanation.attention.weights)
    rows, columns = weights.shape[-2:]
    weights[..., 1, 2] = 1.0
    object.__setattr__(explanation.attention, "weights", weights)
    pixels = np.asarray(explanation.draw(0), dtype=float)[:500]
    bright = pixels[..., 0] + pixels[..., 1] - pixels[..., 2]
    y, x = (int(part) for part in np.unravel_index(bright.argmax(), bright.shape))
    assert abs(x / 1000 - 2.5 / columns) < 0.5 / columns and abs(y / 500 - 1.5 / rows) < 0.5 / rows


def test_page_contains_the_image_and_the_numbers(save_tiny, files):
    explanation = Detector.load(save_tiny("two_stage", ("</script>", "b", "c", "d", "e"))).explain(
        files[0], points=[(3, 4)], score_threshold=0, top_k=2
    )
    page = explanation.page()
    assert not re.search(r"(src|href)=|https?://(?!www.w3.org)", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["image"].startswith("data:image/png;base64,") and data["size"] == [56, 40]
    assert len(data["items"]) == 2 + 4 and len(data["proposals"][0]) == 7
    item = data["items"][1]
    np.testing.assert_allclose(item["attention"]["weights"], explanation.attention.weights[:, 1].flatten(), atol=1e-5)
    locations = np.reshape(item["attention"]["locations"], (*item["attention"]["shape"], 2))
    np.testing.assert_allclose(locations, explanation.attention.locations[:, 1], atol=0.051)
    np.testing.assert_allclose(item["boxes"], explanation.boxes[:, 1], atol=0.051)


def test_page_in_a_browser(save_tiny, files, tmp_path):
    """Selects a detection, layer, head and level, and points at a sampling point."""
    browser = shutil.which("chromium") or pytest.skip("chromium is not installed")
    explanation = Detector.load(save_tiny("two_stage")).explain(files[0], score_threshold=0, top_k=2)
    points = explanation.sampling_points(1, layer=0)
    inside = (points.locations > 2).all(1) & (points.locations < torch.tensor([54, 38])).all(1)
    row = int((inside * points.weights).argmax())
    (x, y), head, level = points.locations[row].tolist(), int(points.heads[row]), int(points.levels[row])
    script = f"""<script>setTimeout(() => {{
      const choose = (id, value) => {{ get(id).value = value; get(id).dispatchEvent(new Event("change")); }};
      choose("item", 1); choose("layer", 0); choose("head", {head}); choose("level", {level});
      const place = canvas.getBoundingClientRect();
      const where = {{clientX: place.left + {x} * scale, clientY: place.top + {y} * scale}};
      canvas.dispatchEvent(new PointerEvent("pointermove", where));
      const count = shown.length, hover = get("hover").textContent, colors = [];
      choose("layer", 1);
      const cleared = get("hover").textContent;
      box = (corners, color) => colors.push(color);
      for (const id of ["boxes", "proposals"]) get(id).click();
      const legend = [...get("legend").children].map(part => part.textContent);
      document.title = JSON.stringify({{count, hover, cleared, colors, legend}});
    }}, 500);</script>"""
    path = tmp_path / "page.html"
    path.write_text(explanation.page().replace("</body>", script + "</body>"), encoding="utf-8")
    names = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking dump-dom"
    flags = [*names.split(" "), f"user-data-dir={tmp_path}", "virtual-time-budget=3000"]
    command = [browser, *(f"--{flag}" for flag in flags), path.as_uri()]
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    result = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", page)[1]))
    assert result["count"] == 2 and result["cleared"] == ""
    found = re.search(r"weight ([\d.e-]+), layer 1, head (\d), level (\d)$", result["hover"])
    weights = points.weights[(points.heads == head) & (points.levels == level)]
    assert (int(found[2]), int(found[3])) == (head + 1, level + 1)
    assert min(abs(weights - float(found[1]))) < 0.01 * float(found[1])
    assert result["legend"][2:-1] == ["green cross: reference point", "boxes: first layer dark, last layer yellow"]
    assert result["legend"][-1].startswith("objectness of proposals 00.")
    assert result["colors"][-len(explanation.boxes) - 1] == "rgb(240,249,33)"  # the best proposal, before the boxes


def test_legends(save_tiny, files, monkeypatch):
    """The end of a scale is a value, in the legend or in the title of each panel; the cross of a token is named."""
    legends, titles = [], []
    panels = figures._panels

    def record(explanation, marks, legend):
        titles.append([title for title, _ in marks])
        legends.append(legend)
        return panels(explanation, marks, legend)

    monkeypatch.setattr(figures, "_panels", record)
    options = {"points": [(20, 30)], "gradients": True, "score_threshold": 0, "top_k": 1}
    dense, sampled = (Detector.load(save_tiny(kind)).explain(files[0], **options) for kind in ("detr", "multi_scale"))
    for draw in (dense.draw_point, dense.draw):
        draw(0)
    dense.draw(0, by="layer")
    dense.draw_gradients(0)
    sampled.draw_point(0)
    weights = dense.point_attention.weights[-1, 0].mean(0), dense.attention.weights[-1, 0].mean(0)
    assert [legend[0][2] for legend in legends[:2]] == [f"{float(part.max()):.2g}" for part in weights]
    assert legends[0][1:] == [("cross", "point", "")] and legends[1][1:] == []
    assert titles[2][2] == f"layer 3: 0 to {legends[1][0][2]}"
    top = float(dense.gradients[0, 0].quantile(0.999))
    assert titles[3][0] == f"gradient of center: 0 to {top:.2g}"
    assert [legend[0][2] for legend in legends[2:4]] == ["value in the title"] * 2
    assert legends[4][-1] == ("cross", "token nearest to the point", "")


def test_gradients(save_tiny, files):
    detector = Detector.load(save_tiny("box_refine"))
    explanation = detector.explain(files[0], detections=[1], gradients=True, score_threshold=0)
    assert explanation.gradients.shape[:2] == (1, 3) and explanation.gradients.amax((2, 3)).min() > 0
    assert explanation.draw_gradients(0).size[0] > 1000
    assert not any(parameter.requires_grad for parameter in detector.model.parameters())


def test_selections_and_errors(detector, files):
    everything = detector.explain(files[0], score_threshold=0, top_k=5)
    some = detector.explain(files[0], detections=[3, 0, 3], score_threshold=0, top_k=5)
    assert torch.equal(some.queries, everything.queries[[3, 0]]) and some.indices.tolist() == [3, 0]
    torch.testing.assert_close(
        some.attention.locations, everything.attention.locations[:, [3, 0]], rtol=1e-4, atol=1e-3
    )
    none = detector.explain(files[0], detections=(), points=[(5, 5), (50, 30)])
    assert len(none.detections) == 0 and none.point_attention.weights.shape[1] == 8
    assert none.draw_point(-1, by="level").size[0] > 500
    for options, argument in (
        ({"detections": [5], "score_threshold": 0, "top_k": 5}, "detections"),
        ({"detections": 0}, "detections"),
        ({"points": [(57, 5)]}, "points"),
        ({"points": [5, 5]}, "points"),
    ):
        with pytest.raises(ArgumentError, match=f"^{argument} must"):
            detector.explain(files[0], **options)
    with pytest.raises(ArgumentError, match="image must be one"):
        detector.explain(files)
    for call in (
        lambda: everything.draw(5),
        lambda: everything.draw(0, layer=3),
        lambda: everything.draw("0"),
        lambda: everything.draw(1.5),
        lambda: everything.draw("0"),
        lambda: everything.draw(1.5),
        lambda: everything.draw(0, by="query"),
        lambda: everything.draw_point(0),
        everything.draw_proposals,
        lambda: everything.draw_gradients(0),
    ):
        with pytest.raises(ArgumentError):
            call()


def test_exported_models_have_no_attention(detector, files):
    def runner(images, mask):
        return to_predictions(torch.zeros(1, 2, 5), torch.zeros(1, 2, 4))

    with pytest.raises(ArgumentError, match="exported"):
        Detector(runner, detector.metadata).explain(files[0])


def test_sixteen_bit_points_are_those_of_the_model(save_tiny, files):
    path = save_tiny()
    full, half = (
        Detector.load(path, dtype=dtype).explain(files[0], detections=(), points=[(20, 20)])
        for dtype in ("float32", "bfloat16")
    )
    difference = (full.point_attention.locations - half.point_attention.locations).abs().mean()
    assert 0 < difference < 0.5


def test_image_and_page_files(detector, files, tmp_path):
    explanation = detector.explain(Image.open(files[1]), score_threshold=0, top_k=1)
    explanation.save_page(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == explanation.page()
