"""Sources, options and results of `Detector`."""

import copy
import dataclasses
import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from projects_deformable_detr.errors import ArgumentError
from projects_deformable_detr.inference import Detector, ImageError, loading
from projects_deformable_detr.inference.tiles import make_tiles, merge_tiles
from projects_deformable_detr.modeling import Detections as Found

ALL = {"score_threshold": 0.0}


def assert_equal(found, expected, tolerance=1e-5):
    assert found.size == expected.size
    torch.testing.assert_close(found.boxes, expected.boxes, atol=tolerance * max(found.size), rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=tolerance, rtol=0)
    assert found.labels.tolist() == expected.labels.tolist()


def test_kinds_of_images(detector, files):
    pixels = np.asarray(Image.open(files[0]))
    expected = detector(files[0], **ALL)
    assert len(expected) == 35 and expected.source == files[0]
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with open(files[0], "rb") as file:
        sources = [Path(files[0]), file, io.BytesIO(Path(files[0]).read_bytes())]
        sources += [Image.open(files[0]), pixels, tensor, tensor / 255]
        for found in detector(sources, **ALL):
            assert_equal(found, expected)
    assert_equal(detector(pixels[:, :, ::-1], color="bgr", **ALL), expected, 0)
    assert_equal(
        detector(torch.from_numpy(pixels[:, :, ::-1].copy()).permute(2, 0, 1), color="bgr", **ALL), expected, 0
    )


def test_single_images_lists_and_generators(detector, files):
    assert [item.source for item in detector(files)] == files
    assert detector([]) == []
    used = []

    def generate():
        for path in files * 3:
            used.append(path)
            yield path

    stream = detector(generate(), batch_size=1, **ALL)
    assert not used
    assert_equal(next(stream), detector(files[0], **ALL))
    assert len(used) <= 2
    assert len(list(stream)) == 3 * len(files) - 1


@pytest.mark.parametrize("variant", ["multi_scale", "two_stage", "detr"])
def test_detections_do_not_depend_on_the_batch(save_tiny, files, variant):
    detector = Detector.load(save_tiny(variant))
    for found, path in zip(detector(files, batch_size=3, **ALL), files, strict=True):
        assert_equal(found, detector(path, **ALL))


def test_orientation_gray_and_16_bits(detector, tmp_path):
    pixels = np.linspace(0, 255, 48 * 32).reshape(48, 32).astype(np.uint8)
    expected = detector(np.repeat(pixels[:, :, None], 3, 2), **ALL)
    rotated, wide = tmp_path / "rotated.png", tmp_path / "wide.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(rotated, exif=exif)
    Image.fromarray(pixels.astype(np.uint16) * 257).save(wide)
    for source in (rotated, wide, Image.open(rotated), pixels, pixels.astype(np.uint16) * 257):
        assert_equal(detector(source, **ALL), expected, 0)
    assert detector(rotated, **ALL).size == (48, 32)


@pytest.mark.parametrize(("path", "found"), [("", "an empty path"), (".", "a folder"), ("photos/*.jpg", "a pattern")])
def test_paths_that_are_no_files(detector, path, found):
    with pytest.raises(ImageError, match=f"must be an image file, got {found}: pass the paths"):
        detector(path)


def test_function_for_errors_is_checked(detector):
    with pytest.raises(ArgumentError, match="on_error must be a function or None, got 'skip'"):
        detector.stream([], on_error="skip")


@pytest.mark.parametrize(
    ("source", "named"),
    [
        (
            np.zeros((8, 8, 4), np.uint8),
            r"arrays \(H, W, 3\), or .* got shape \(8, 8, 4\) \(image 0\).*without the alpha",
        ),
        (np.zeros((8, 8, 1), np.uint8), r"got shape \(8, 8, 1\).*pass array\[:, :, 0\]"),
        (np.zeros((3, 8, 8), np.uint8), r"got shape \(3, 8, 8\).*transpose\(1, 2, 0\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"got shape \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.float32), "uint8 arrays with values in 0–255, got float32.*255 [*] array"),
        (np.zeros((8, 8), np.float64), "got float64"),
        (torch.zeros(8, 8, 3), r"tensors \(3, H, W\), got shape \(8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8), "pass a batch as a list of images"),
        (torch.full((3, 8, 8), 255.0), r"values in \[255, 255\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "got torch.int32"),
        ([["a.jpg"]], "got list at 0"),
        (b"jpeg", "got bytes; wrap .* in io.BytesIO"),
        ({"a": 1}, "got dict"),
        (7, "must be an iterable of paths, .*, got int"),
    ],
)
def test_bad_images(detector, source, named):
    with pytest.raises(ArgumentError, match=named):
        detector(source)


def test_unreadable_images(detector, files, tmp_path):
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken.jpg \(8 bytes\) is not an image in a format") as info:
        detector([files[0], broken])
    assert info.value.source == str(broken) and "record" not in str(info.value)
    with pytest.raises(ImageError, match=f"^{missing} does not exist$"):
        detector(missing)
    with pytest.raises(ImageError, match="^image 0 is not an image"):
        detector(io.BytesIO(b"no image"))
    errors = []
    found = list(detector.stream([broken, files[0], missing, files[1]], on_error=errors.append))
    assert [item.source for item in found] == files[:2]
    assert [error.source for error in errors] == [str(broken), str(missing)]


def test_thresholds_classes_and_top_k(detector, files):
    everything = detector(files[0], **ALL)
    middle = float(everything.scores[10])
    assert len(detector(files[0], score_threshold=middle)) == 11
    assert len(detector(files[0], top_k=3, **ALL)) == 3
    name = everything.names[0]
    found = detector(files[0], classes=[name], **ALL)
    assert set(found.names) == {name} and len(found) == 7
    assert detector(files[0], classes=detector.class_names.index(name), **ALL).names == found.names
    thresholds = dict.fromkeys(detector.class_names, 1.0) | {name: middle}
    kept = detector(files[0], score_threshold=thresholds)
    assert set(kept.names) == {name} and kept.scores.min() >= middle


def test_nms_is_by_class(detector, files):
    found = detector(files[0], nms_threshold=0.0, **ALL)
    for index, one in enumerate(found):
        for other in found[:index]:
            if one.label == other.label:
                width = min(one.box[2], other.box[2]) - max(one.box[0], other.box[0])
                height = min(one.box[3], other.box[3]) - max(one.box[1], other.box[1])
                assert width <= 0 or height <= 0
    assert 0 < len(found) < 35


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"score_threshold": 1.5}, r"score_threshold must be a number in \[0, 1\], got 1.5"),
        ({"score_threshold": "high"}, "score_threshold must be a number"),
        (
            {"score_threshold": {"bea": 0.5}},
            "score_threshold must contain only known class names, got 'bea'; did you mean bee?",
        ),
        ({"score_threshold": {"bee": -1}}, "got -1 for 'bee'"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"classes": ["fly"]}, "classes must contain only known class names, got 'fly'"),
        ({"classes": [5]}, "classes must be names or ids from 0 to 4, got 5"),
        ({"classes": 3.5}, "classes must be names or ids from 0 to 4, got 3.5"),
        ({"classes": []}, "classes must have at least one"),
        ({"nms_threshold": 2}, "nms_threshold must be in"),
        ({"tile": (40, 40)}, "tile must be .* overlap < size"),
        ({"tile": (10, 2)}, "tile must be .* size >= 32"),
        ({"tile": 10}, "tile must be"),
        ({"color": "hsv"}, "color must be one of 'rgb', 'bgr'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"tta": 3}, "tta must be"),
    ],
)
def test_bad_options(detector, files, options, named):
    with pytest.raises(ArgumentError, match=named):
        detector(files[0], **options)


def test_unknown_options(detector, files, save_tiny):
    with pytest.raises(TypeError, match="unknown option 'threshold' of a Detector: use score_threshold"):
        detector(files[0], threshold=0.5)
    with pytest.raises(TypeError, match="unexpected keyword argument 'half'"):
        Detector.load(save_tiny(), half=True)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dtype": "int8"}, "dtype must be one of 'float32', 'bfloat16', 'float16', got 'int8'"),
        ({"device": "toaster"}, "device must be auto, cpu, cuda or cuda:N, got 'toaster'"),
        ({"device": None}, "device must be auto, cpu, cuda or cuda:N, got 'None'"),
        ({"class_names": ["a"]}, "class_names must be 5 names for the model's classes, got 1"),
        ({"class_names": "abcde"}, "class_names must be a sequence of names"),
        ({"class_names": 5}, "class_names must be a sequence of names"),
    ],
)
def test_bad_arguments_of_load(save_tiny, options, named):
    with pytest.raises(ArgumentError, match=named):
        Detector.load(save_tiny(), **options)


def test_tiles(detector, files):
    pixels = np.asarray(Image.open(files[0]).resize((100, 80)))
    whole = detector(pixels, tile=(200, 50), **ALL)
    assert_equal(whole, detector(pixels, **ALL), 0)
    found = detector(pixels, tile=(60, 20), top_k=200, nms_threshold=1.0, **ALL)
    left, right = (detector(pixels[20:80, x : x + 60], **ALL) for x in (0, 40))
    boxes = {tuple(box) for box in found.boxes.round(decimals=2).tolist()}
    # The best detection of a tile is kept at its place in the image, unless it is cut.
    for part, x in ((left, 0), (right, 40)):
        moved = (part.boxes + torch.tensor([x, 20, x, 20])).round(decimals=2)
        assert sum(tuple(box) in boxes for box in moved.tolist()) > 3
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([100, 80, 100, 80])).all()


def test_default_limits_of_tiles_and_tta(detector, files):
    metadata = dataclasses.replace(
        detector.metadata, min_size=300, evaluation=dataclasses.replace(detector.metadata.evaluation, max_detections=3)
    )
    other = Detector(detector.model, metadata, device="cpu")
    pixels = np.asarray(Image.open(files[0]).resize((100, 80)))
    assert len(other(pixels, **ALL)) == 3 < len(other(pixels, tile=(60, 20), nms_threshold=1.0, **ALL)) <= 12
    assert len(other(pixels, tile=(60, 20), top_k=3, **ALL)) == 3
    with pytest.raises(ArgumentError, match=r"near the 300 pixels .* got TEST.AUG.MIN_SIZES \(48, 64\)"):
        other.stream([], tta=True)


@pytest.mark.parametrize(("size", "overlap", "width"), [(100, 20, 10), (100, 20, 17.5), (64, 32, 30)])
def test_an_object_at_a_seam_is_kept(size, overlap, width):
    tiles = make_tiles((size, 3 * size), size, overlap)
    for start in np.arange(0, 2 * size, 0.5):
        parts = []
        for _, left, _, columns in tiles:
            low, high = max(0, start - left), min(columns, start + width - left)
            boxes = torch.tensor([[low, 10.0, high, 20.0]] if high > low else [], dtype=torch.float32).reshape(-1, 4)
            parts.append(Found(boxes, torch.ones(len(boxes)), torch.zeros(len(boxes), dtype=torch.int64)))
        boxes = merge_tiles((size, 3 * size), tiles, parts, overlap, None, 100).boxes
        assert [start, 10, start + width, 20] in boxes.tolist()


def test_a_reused_array_and_a_failing_generator(detector):
    def frames():
        buffer = np.zeros((40, 56, 3), np.uint8)
        for value in (20, 120, 220):
            buffer[:] = value
            yield buffer
        raise RuntimeError("the camera is gone")

    found = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        for item in detector.stream(frames(), batch_size=1, **ALL):
            found.append(item)
    expected = detector([np.full((40, 56, 3), value, np.uint8) for value in (20, 120, 220)], batch_size=1, **ALL)
    assert len(found) == 3
    for item, other in zip(found, expected, strict=True):
        assert_equal(item, other, 0)
        assert np.array_equal(item.draw(threshold=1.0), other.draw(threshold=1.0))


def test_a_folder_among_files_is_reported(detector, files):
    errors = []
    found = list(detector.stream([files[0], ".", files[1]], on_error=errors.append, batch_size=4, **ALL))
    assert [item.source for item in found] == files[:2] and [error.source for error in errors] == ["."]


def test_tta(detector, files):
    found = detector(files[0], tta=True, **ALL)
    assert len(found) > 35  # detections of 4 views
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16, "float16"])
def test_half_precision(save_tiny, files, dtype):
    path = save_tiny()
    found, expected = (Detector.load(path, dtype=kind)(files[0], **ALL) for kind in (dtype, "float32"))
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    torch.testing.assert_close(found.scores, expected.scores, atol=0.02, rtol=0)


@pytest.mark.slow
def test_compiled_models(save_tiny, files, monkeypatch):
    """Without Inductor, which needs minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    path = save_tiny()
    compiled = pickle.loads(pickle.dumps(Detector.load(path, compile=True)))
    assert_equal(compiled(files[0], **ALL), Detector.load(path)(files[0], **ALL))


def test_threads(detector, files):
    expected = [detector(path, **ALL) for path in files]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda path: detector(path, **ALL), files * 5))
    for found, wanted in zip(results, expected * 5, strict=True):
        assert_equal(found, wanted, 0)


def test_the_given_module_is_not_changed(detector, files):
    module = copy.deepcopy(detector.model).train().requires_grad_(True)
    state = copy.deepcopy(module.state_dict())
    assert_equal(Detector(module, detector.metadata, device="cpu")(files[0], **ALL), detector(files[0], **ALL), 0)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    for arguments, named in (((module, None), "metadata must be"), ((3, detector.metadata), "runner must be")):
        with pytest.raises(ArgumentError, match=named):
            Detector(*arguments)


def test_load_does_not_copy_the_model(detector, monkeypatch):
    monkeypatch.setattr(loading, "open_model", lambda *_: (detector.model, detector.metadata))
    assert Detector.load("model.pth").model is detector.model


def test_pickle(detector, files):
    restored = pickle.loads(pickle.dumps(detector))
    found = pickle.loads(pickle.dumps(restored(files[0], **ALL)))
    assert_equal(found, detector(files[0], **ALL), 0)


def test_random_state_and_gradients(detector, files, save_tiny):
    path = save_tiny()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    Detector.load(path)(files[0])
    assert torch.rand(1) == expected and torch.is_grad_enabled()
