"""Detectron2's .pkl files: ResNets with its names and Caffe2's, and pickles with more than arrays."""

import codecs
import pickle
import re
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, LoadOptions, import_state, load_weights, read_weights
from projects_deformable_detr.checkpoint.pickles import read_pickle

BGR = LoadOptions(input_format="BGR")


def write(path, content, protocol=2):
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.fixture
def resnet_50(make_cfg, shake):
    """A narrow detector with bottleneck blocks: ``resnet_50(NORM="GN")``."""
    return lambda **changes: shake(build_detector(make_cfg(DEPTH=50, **changes)))


def backbone_arrays(detector):
    return {
        key.removeprefix("backbone."): value.numpy()
        for key, value in detector.state_dict().items()
        if key.startswith("backbone.") and not key.endswith("num_batches_tracked")
    }


def caffe2_name(key, norm):
    """Returns Caffe2's name, None for running statistics, which are folded into the affine norm."""
    key = re.sub(r"^layer(\d)\.(\d+)", lambda match: f"res{int(match[1]) + 1}_{match[2]}", key)
    key = re.sub(r"\.conv([123])\.weight", lambda match: f"_branch2{'abc'[int(match[1]) - 1]}_w", key)
    key = key.replace(".downsample.0.weight", "_branch1_w").replace("conv1.weight", "conv1_w")
    key = re.sub(r"\.bn([123])\.", lambda match: f"_branch2{'abc'[int(match[1]) - 1]}_{norm}.", key)
    stem = "res_conv1_bn." if norm == "bn" else "conv1_gn."
    key = re.sub(r"^bn1\.", stem, key.replace(".downsample.1.", f"_branch1_{norm}."))
    return None if ".running" in key else key.replace(".weight", "_s").replace(".bias", "_b")


def caffe2_arrays(detector, norm):
    named = {caffe2_name(key, norm): value for key, value in backbone_arrays(detector).items()}
    named.pop(None, None)
    width = len(named["conv1_w"])
    return named | {"fc1000_w": np.zeros((9, 8)), "fc1000_b": np.zeros(9), "conv1_b": np.zeros(width)}


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_torchvision_weights_converted_for_detectron2(resnet_50, detectron2_name, tmp_path, protocol):
    """``R-50.pkl`` of "torchvision": Detectron2's names."""
    source, target = resnet_50(), resnet_50()
    arrays = {detectron2_name(key): value for key, value in backbone_arrays(source).items()}
    arrays |= {"stem.fc.weight": np.zeros((9, 8)), "stem.fc.bias": np.zeros(9)}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    report = load_weights(target, write(tmp_path / "R-50.pkl", content, protocol))
    assert (report.format, report.missing, report.unexpected) == ("resnet", (), ())
    check_backbones(source, target)


def check_backbones(source, target):
    expected, found = source.backbone.state_dict(), target.backbone.state_dict()
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
    assert not torch.equal(source.encoder.layers[0].norm.weight, target.encoder.layers[0].norm.weight)


def test_group_norm_of_caffe2_loads_where_images_are_bgr(resnet_50, tmp_path):
    source, target = resnet_50(NORM="GN"), resnet_50(NORM="GN")
    path = write(tmp_path / "R-50-GN.pkl", {"blobs": caffe2_arrays(source, "gn")})
    with pytest.raises(
        CheckpointError, match=r"the model uses RGB images.*Set `input_format=BGR`.*pixel_std=\[57\.375"
    ):
        load_weights(target, path)
    report = load_weights(target, path, BGR)
    assert (report.format, report.missing, report.unexpected) == ("resnet-caffe2", (), ())
    check_backbones(source, target)


def test_msra_resnet_needs_another_backbone(resnet_50, tmp_path):
    """The strides are in other convolutions."""
    source, target = resnet_50(), resnet_50()
    path = write(tmp_path / "R-50.pkl", caffe2_arrays(source, "bn"))
    assert import_state(read_weights(path).state)[0].name == "resnet-caffe2"
    for options in (None, BGR):
        with pytest.raises(CheckpointError) as caught:
            load_weights(target, path, options)
        text = str(caught.value)
        for key in ("R-50.pkl", "strides in the 3x3", "stride_in_1x1=True", "build_resnet_backbone", "[1.0,1.0,1.0]"):
            assert key in text


class Calls:
    """Pickles as a function call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Calls(eval, "open('made_by_a_pickle', 'w')"), "builtin(s|__).eval"),
        (Calls(exec, "open('made_by_a_pickle', 'w')"), "builtin(s|__).exec"),
        (Calls(open, "made_by_a_pickle", "w"), "io.open|_io.open"),
        (Calls(partial, open, "made_by_a_pickle", "w"), "functools.partial"),
        (Calls(getattr, "text", "upper"), "builtin(s|__).getattr"),
        (Calls(torch.load, "other.pkl"), "torch.serialization.load"),
        (Calls(np.load, "other.npy"), "numpy.load|numpy.lib"),
        (Calls(np.fromfile, "other.npy"), "fromfile"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_that_names_anything_else_is_rejected_and_not_run(tmp_path, monkeypatch, call, named, protocol):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "R-50.pkl", {"model": {"stem.conv1.weight": call}, "__author__": "someone"}, protocol)
    with pytest.raises(CheckpointError, match=rf"R-50\.pkl: .*without running code.*({named})"):
        read_weights(path)
    assert not (tmp_path / "made_by_a_pickle").exists()


def test_text_is_encoded_as_latin_1_only(tmp_path):
    """Python 3 writes bytes for Python 2 as a call of ``codecs.encode``, which has other encodings."""
    assert read_weights(write(tmp_path / "a.pkl", {"model": {"w": np.ones(2)}, "note": b"\xff"})).state.keys() == {"w"}
    path = write(tmp_path / "b.pkl", {"model": {"w": np.ones(2)}, "note": Calls(codecs.encode, "text", "rot13")})
    with pytest.raises(CheckpointError, match="'rot13'"):
        read_weights(path)


@pytest.mark.parametrize("cut", [0, 1, 100, -1])
def test_a_damaged_pickle_is_named(tmp_path, cut):
    path = write(tmp_path / "R-50.pkl", {"model": OrderedDict(weight=np.ones(100))})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CheckpointError, match=r"R-50\.pkl: corrupt"):
        read_weights(path)


@pytest.mark.parametrize("content", [{"model": {}}, {"model": [1]}, [1, 2], "text", {"model": {"name": "text"}}])
def test_a_pickle_without_weights_is_named(tmp_path, content):
    with pytest.raises(CheckpointError, match=r"odd\.pkl: no weights found"):
        read_weights(write(tmp_path / "odd.pkl", content))


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize(
    "content",
    [
        Calls(np.ndarray, (1,), np.dtype("O"), b"A" * 8),  # an array of pointers that the file chooses
        OrderedDict([("a", Calls(np.ndarray, (1,), np.dtype("O"), b"A" * 8))]),
        np.array([{"a": 1}], dtype=object),
        np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]),
        np.array(["text"]),
        np.zeros(2, dtype="M8[s]"),
    ],
    ids=["pointers", "pointers-in-a-dict", "objects", "records", "text", "dates"],
)
def test_arrays_of_anything_but_numbers_are_rejected(tmp_path, content, protocol):
    with pytest.raises(CheckpointError, match="not of numbers"):
        read_weights(write(tmp_path / "R-50.pkl", {"model": {"weight": content}}, protocol))


@pytest.mark.parametrize("shape", [(3,), (-1,), (2**62, 4)])
def test_arrays_with_a_wrong_number_of_bytes_are_rejected(tmp_path, shape):
    class Lies(np.ndarray):
        def __reduce__(self):
            make, arguments, (version, _, *rest) = super().__reduce__()
            return make, (np.ndarray, *arguments[1:]), (version, shape, *rest)

    content = np.zeros(2, np.float32).view(Lies)
    with pytest.raises(CheckpointError, match=r"with 8 bytes|not of numbers"):
        read_weights(write(tmp_path / "R-50.pkl", {"model": {"weight": content}}))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f2", "<f8", "|i1", "|u1", ">i8", "|b1"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_numbers_of_every_type_order_and_layout_are_read(tmp_path, kind, protocol):
    wanted = np.arange(6).reshape(2, 3).astype(kind)
    arrays = {"rows": wanted, "columns": np.asfortranarray(wanted), "empty": wanted[:0], "one": wanted[1, 1]}
    found = read_pickle(write(tmp_path / "a.pkl", arrays, protocol))
    assert np.array_equal(found["rows"], wanted) and np.array_equal(found["columns"], wanted)
    assert found["empty"].shape == (0, 3) and found["one"] == wanted[1, 1]
    assert found["columns"].tolist() == wanted.tolist()
