"""Complete and partial loading of weights into a detector."""

import logging

import pytest
import torch
import torchvision

from projects_deformable_detr import build_detector
from projects_deformable_detr.checkpoint import CheckpointError, LoadOptions, load_weights, save_detector
from projects_deformable_detr.config.checkpoint import LOADING_KEYS
from projects_deformable_detr.config.reading import naming_keys
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.zoo.files import DownloadError, UrlFile


def copy_state(detector):
    return {key: value.clone() for key, value in detector.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in one.items())


def write(state, path, wrap=lambda state: {"model": state}):
    torch.save(wrap(state), path)
    return path


@pytest.fixture
def detector(make_cfg):
    return build_detector(make_cfg("box_refine"))


@pytest.mark.parametrize("variant", ["box_refine", "encoder_only", "detr"])
@pytest.mark.parametrize(
    ("prefix", "wrap"),
    [
        ("detector.", lambda state: {"model": state, "iteration": 7}),
        ("detector.", lambda state: {"state_dict": state, "epoch": 3, "pytorch-lightning_version": "2.6.0"}),
        ("module.detector.", lambda state: {"model": state}),
        ("module.", lambda state: {"model": state, "n_averaged": torch.tensor(3)}),
        ("_orig_mod.detector.", lambda state: state),
        ("detector._orig_mod.", lambda state: state),
        ("model.", lambda state: state),
        ("model.module._orig_mod.", lambda state: state),
        ("", lambda state: state),
    ],
    ids=["detectron2", "lightning", "ddp", "average", "compiled", "compiled_part", "attribute", "all_three", "bare"],
)
def test_files_of_either_engine(make_cfg, check_same, tmp_path, variant, prefix, wrap):
    detector, other = (build_detector(make_cfg(variant)) for _ in range(2))
    state = {f"{prefix}{key}": value for key, value in detector.state_dict().items()}
    assert load_weights(other, write(state, tmp_path / "a.ckpt", wrap)).format == "native"
    check_same(other, detector)


def corrupt(state):
    """Removes a weight, adds one, and changes the shape of another."""
    del state["tokenizer.level_embed"]
    state["decoder.extra.weight"] = torch.zeros(3)
    state["queries.content"] = torch.zeros(9, 64)
    return state


def test_mismatches_are_listed_and_the_detector_is_unchanged(make_cfg, detector, tmp_path):
    other = build_detector(make_cfg("box_refine"))
    before = copy_state(other)
    path = write(corrupt(copy_state(detector)), tmp_path / "corrupt.pth")
    with pytest.raises(CheckpointError) as caught:
        load_weights(other, path)
    text = str(caught.value)
    for part in (
        "corrupt.pth",
        "missing in the file (1): tokenizer.level_embed",
        "unexpected in the file (1): decoder.extra.weight",
        "queries.content: (9, 64) in the file, (7, 64) in the model",
        "set `allow_partial=True`",
    ):
        assert part in text
    assert same(other.state_dict(), before)


def test_allow_partial_loads_matching_weights_and_warns_about_the_others(make_cfg, detector, tmp_path, caplog):
    other = build_detector(make_cfg("box_refine"))
    before = copy_state(other)
    path = write(corrupt(copy_state(detector)), tmp_path / "corrupt.pth")
    with caplog.at_level(logging.WARNING):
        report = load_weights(other, path, LoadOptions(allow_partial=True))
    assert report.missing == ("tokenizer.level_embed",)
    assert report.unexpected == ("decoder.extra.weight",)
    assert report.mismatched == ("queries.content",)
    for name in ("tokenizer.level_embed", "decoder.extra.weight", "queries.content"):
        assert name in caplog.text
    kept = {"tokenizer.level_embed", "queries.content"}
    expected = {key: before[key] if key in kept else value for key, value in detector.state_dict().items()}
    assert same(other.state_dict(), expected)


def test_one_summary_counts_what_is_loaded(detector, tmp_path, caplog):
    """Tensors of a class head with initial weights are not counted."""
    save_detector(tmp_path / "model.pth", detector, iteration=0, cfg_text="", class_names=list("abcde"))
    count = len(detector.state_dict())
    with caplog.at_level(logging.INFO):
        load_weights(detector, tmp_path / "model.pth", LoadOptions(class_names=tuple("abcde")))
        load_weights(detector, tmp_path / "model.pth", LoadOptions(class_names=tuple("vwxyz")))
    first, second = caplog.records
    assert first.levelname == "INFO" and f"{count} of {count} tensors are loaded" in first.getMessage()
    assert second.levelname == "WARNING"
    assert f"{count - 6} of {count} tensors are loaded\n  The class head of 5 classes (v, w, x" in second.getMessage()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_rejected(detector, tmp_path, value):
    before, state = copy_state(detector), copy_state(detector)
    state["queries.content"][0] = value
    path = write(state, tmp_path / "diverged.pth")
    with pytest.raises(CheckpointError, match=r"diverged\.pth has NaN or infinite values in 1 of \d+ tensors \(.*\)"):
        load_weights(detector, path)
    assert same(detector.state_dict(), before)


@pytest.mark.parametrize("changes", [{"HIDDEN_DIM": 32}, {"DEC_LAYERS": 2}, {"NUM_FEATURE_LEVELS": 3}])
def test_another_architecture_is_rejected(make_cfg, detector, tmp_path, changes):
    save_detector(tmp_path / "model.pth", detector, iteration=0, cfg_text="")
    with pytest.raises(CheckpointError, match="does not match the architecture"):
        load_weights(build_detector(make_cfg("box_refine", **changes)), tmp_path / "model.pth")


def test_two_stage_weights_do_not_load_into_one_stage(make_cfg, detector, tmp_path):
    save_detector(tmp_path / "two.pth", build_detector(make_cfg("two_stage")), iteration=0, cfg_text="")
    with pytest.raises(CheckpointError, match=r"missing.*queries\.content[\s\S]*unexpected.*queries\."):
        load_weights(detector, tmp_path / "two.pth")


def test_unknown_weights_are_named(detector, tmp_path):
    path = write({"encoder.embeddings": torch.zeros(3)}, tmp_path / "bert.pth")
    with pytest.raises(CheckpointError, match=r"bert\.pth: the keys \(encoder\.embeddings"):
        load_weights(detector, path)


def test_a_backbone_of_another_depth_is_rejected(make_cfg, detector, tmp_path):
    path = write(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight: \(64, 3, 7, 7\) in the file, \(16, 3, 7, 7\)"):
        load_weights(detector, path)


def test_torchvision_weights_by_name(make_cfg, monkeypatch, tmp_path):
    cfg = make_cfg()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    detector, state = build_detector(cfg), torchvision.models.resnet18(weights=None).state_dict()
    path = write(state, tmp_path / "resnet18.pth", lambda state: state)
    monkeypatch.setattr(UrlFile, "download", lambda file: path if "resnet18-f37072fd" in file.url else None)
    for source in ("torchvision://resnet18", "zoo://resnet18"):
        assert load_weights(detector, source).format == "resnet"
        assert torch.equal(detector.backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
        detector.backbone.layer4[1].conv2.weight.data.zero_()
        with pytest.raises(CheckpointError, match="weights of a backbone"):
            load_weights(detector, source, LoadOptions(for_evaluation=True))


@pytest.mark.parametrize("norm", ["FrozenBN", "GN"])
def test_weights_that_cannot_be_downloaded_are_an_error(make_cfg, monkeypatch, norm):
    detector = build_detector(make_cfg(NORM=norm))
    before = copy_state(detector)

    def fail(file):
        raise DownloadError("no network")

    monkeypatch.setattr(UrlFile, "download", fail)
    message = r"torchvision://resnet18: no network; to train from scratch, set MODEL.WEIGHTS to ''"
    with pytest.raises(DownloadError, match=message) as caught, naming_keys(LOADING_KEYS):
        load_weights(detector, "torchvision://resnet18")
    assert ("use BN or GN as norm" in str(caught.value)) == (norm == "FrozenBN")
    assert same(detector.state_dict(), before)


@pytest.mark.parametrize("name", ["resnet19", "", "raft_large"])
def test_an_unknown_torchvision_model_is_named(detector, name):
    with pytest.raises(UserError, match=f"torchvision://{name}: torchvision has no such"):
        load_weights(detector, f"torchvision://{name}")


@pytest.mark.parametrize("source", ["", "torchvision://resnet18"])
def test_evaluation_requires_a_complete_detector(detector, source):
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS"), naming_keys(LOADING_KEYS):
        load_weights(detector, source, LoadOptions(for_evaluation=True))


def test_evaluation_rejects_a_backbone_file(make_cfg, tmp_path):
    detector = build_detector(make_cfg())
    torch.save(detector.backbone.state_dict(), tmp_path / "resnet.pth")
    before = copy_state(detector)
    assert load_weights(detector, tmp_path / "resnet.pth").format == "resnet"
    with pytest.raises(CheckpointError, match="weights of a backbone"):
        load_weights(detector, tmp_path / "resnet.pth", LoadOptions(for_evaluation=True))
    assert same(detector.state_dict(), before)


@pytest.fixture
def make_pair(make_cfg, tmp_path):
    """Makes a file of a DETR with or without masks, its detector, and another detector with or without masks."""

    def make(masks_in_file, masks_in_model):
        detectors = []
        for masks in (masks_in_file, masks_in_model):
            changes = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8} if masks else {"HIDDEN_DIM": 128}
            detectors.append(build_detector(make_cfg("detr", DEPTH=18, **changes)))
        save_detector(tmp_path / "detr.pth", detectors[0], iteration=0, cfg_text="")
        return tmp_path / "detr.pth", *detectors

    return make


def test_weights_without_masks_initialize_a_model_with_masks(make_pair, caplog):
    path, source, target = make_pair(False, True)
    with pytest.raises(CheckpointError, match="has no mask head: set `mask_head=False`"):
        load_weights(target, path, LoadOptions(for_evaluation=True))
    before = copy_state(target.mask_head)
    with caplog.at_level(logging.WARNING):
        load_weights(target, path)
    assert "the mask head keeps its initial weights, because the file has none" in caplog.text
    assert same(target.mask_head.state_dict(), before)
    assert same(target.decoder.state_dict(), source.decoder.state_dict())


def test_masks_are_skipped_by_a_model_without_masks(make_pair, caplog):
    path, source, target = make_pair(True, False)
    with caplog.at_level(logging.INFO):
        assert load_weights(target, path, LoadOptions(for_evaluation=True)).unexpected == ()
    assert "the mask head in the file is unused" in caplog.text and caplog.records[-1].levelname == "INFO"
    assert same(target.decoder.state_dict(), source.decoder.state_dict())
