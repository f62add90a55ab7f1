"""Loading of files of both engines and of backbones, and errors for files that do not match the model."""

import copy

import pytest
import torch

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.modeling import build_model
from detectron2.utils.file_io import PathHandler, PathManager

from projects_deformable_detr.checkpoint import CheckpointError, save_detector
from projects_deformable_detr.detectron2_plugin import Trainer
from projects_deformable_detr.detectron2_plugin.checkpoint import DetectorCheckpointer
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.zoo.files import DownloadError, UrlFile

FULL_WIDTH = {
    "MODEL__RESNETS__NORM": "FrozenBN",
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 64,
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
}


def weights(model):
    return torch.cat([value.float().flatten() for value in model.state_dict().values()])


@pytest.fixture
def model(make_cfg):
    torch.manual_seed(0)
    return build_model(make_cfg())


@pytest.fixture
def other(make_cfg):
    torch.manual_seed(1)
    return build_model(make_cfg())


def load(model, cfg, path):
    Trainer.build_checkpointer(cfg, model).resume_or_load(str(path), resume=False)


@pytest.mark.parametrize("name", ["model_final.pth", "last.ckpt"])
def test_files_of_the_other_engine_load(model, other, make_cfg, tmp_path, name):
    save_detector(tmp_path / "model_final.pth", model.detector, iteration=3, cfg_text="")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    load(other, make_cfg(), tmp_path / name)
    assert torch.equal(weights(model), weights(other))


def test_a_saved_file_loads_into_the_bare_detector(model, other, make_cfg, tmp_path):
    from projects_deformable_detr.checkpoint import load_weights

    Trainer.build_checkpointer(make_cfg(OUTPUT_DIR=tmp_path), model).save("model_final", iteration=1)
    load_weights(other.detector, tmp_path / "model_final.pth")
    assert torch.equal(weights(model), weights(other))
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("resume", [False, True])
def test_another_architecture_is_rejected_with_the_keys(model, make_cfg, tmp_path, resume):
    cfg = make_cfg(OUTPUT_DIR=tmp_path)
    Trainer.build_checkpointer(cfg, model).save("model_final")
    deeper = build_model(make_cfg(MODEL__DETR__ENC_LAYERS=2, MODEL__DETR__NUM_OBJECT_QUERIES=5))
    before = weights(deeper)
    with pytest.raises(CheckpointError, match=r"(?s)missing.*encoder\.layers\.1.*queries\.\w+.*10.*5"):
        Trainer.build_checkpointer(cfg, deeper).resume_or_load(str(tmp_path / "model_final.pth"), resume=resume)
    if not resume:
        assert torch.equal(before, weights(deeper))


def test_a_partial_load_is_allowed_on_request(model, make_cfg, tmp_path):
    Trainer.build_checkpointer(make_cfg(OUTPUT_DIR=tmp_path), model).save("model_final")
    cfg = make_cfg(MODEL__DETR__ENC_LAYERS=2, MODEL__DETR__ALLOW_PARTIAL_WEIGHTS=True)
    deeper = build_model(cfg)
    load(deeper, cfg, tmp_path / "model_final.pth")
    found, expected = deeper.detector.encoder.layers[0], model.detector.encoder.layers[0]
    assert torch.equal(weights(found), weights(expected))


def test_weights_that_cannot_be_downloaded_are_an_error(model, make_cfg, monkeypatch):
    def fail(file):
        raise DownloadError("no network")

    monkeypatch.setattr(UrlFile, "download", fail)
    for source in ("torchvision://resnet18", "zoo://detr_r50"):
        with pytest.raises(DownloadError, match="no network"):
            load(model, make_cfg(), source)


def test_published_weights_by_name(model, make_cfg, monkeypatch, tmp_path):
    torch.save(model.state_dict(), tmp_path / "model.pth")
    monkeypatch.setattr(UrlFile, "download", lambda file: tmp_path / "model.pth")
    other = build_model(make_cfg())
    load(other, make_cfg(), "zoo://detr_r50")
    assert torch.equal(weights(other), weights(model))


def detectron2_backbone_file(model, folder, missing=None):
    """Writes a backbone like Detectron2's model zoo: NumPy arrays with the backbone's names, and a classifier."""
    import pickle

    arrays = {
        key.removeprefix("detector.backbone."): value.numpy() + 1
        for key, value in model.state_dict().items()
        if key.startswith("detector.backbone.")
    }
    arrays["stem.fc.weight"] = arrays["stem.conv1.weight"][:1]
    arrays.pop(missing, None)
    file = folder / "R-18.pkl"
    content = {"model": arrays, "__author__": "a test", "matching_heuristics": True}
    with PathManager.open(str(file), "wb") as stream:
        pickle.dump(content, stream)
    return file


def test_backbone_files_of_detectron2_load(make_cfg, tmp_path):
    cfg = make_cfg(MODEL__BACKBONE__NAME="build_resnet_backbone", **FULL_WIDTH)
    model = build_model(cfg)
    before = copy.deepcopy(model)
    load(model, cfg, detectron2_backbone_file(model, tmp_path))
    assert torch.equal(weights(model.detector.backbone), weights(before.detector.backbone) + 1)
    assert torch.equal(weights(model.detector.encoder), weights(before.detector.encoder))


def test_a_backbone_file_without_a_key_is_rejected(make_cfg, tmp_path):
    cfg = make_cfg(MODEL__BACKBONE__NAME="build_resnet_backbone", **FULL_WIDTH)
    model = build_model(cfg)
    with pytest.raises(CheckpointError, match=r"missing in the file \(1\): backbone\.res3\.0\.conv1\.weight"):
        load(model, cfg, detectron2_backbone_file(model, tmp_path, missing="res3.0.conv1.weight"))


@pytest.mark.parametrize("source", ["", "torchvision://resnet18", "file"])
def test_evaluation_needs_a_detector(make_cfg, tmp_path, source):
    cfg = make_cfg(MODEL__BACKBONE__NAME="build_resnet_backbone", MODEL__DETR__ALLOW_PARTIAL_WEIGHTS=True, **FULL_WIDTH)
    model = build_model(cfg)
    source = str(detectron2_backbone_file(model, tmp_path)) if source == "file" else source
    with pytest.raises(CheckpointError, match="MODEL.WEIGHTS|backbone"):
        Trainer.build_checkpointer(cfg, model, for_evaluation=True).resume_or_load(source, resume=False)


def test_a_long_list_of_keys_is_cut_short(model, make_cfg, tmp_path):
    cfg = make_cfg(OUTPUT_DIR=tmp_path)
    Trainer.build_checkpointer(cfg, model).save("model_final")
    deeper = build_model(make_cfg(MODEL__DETR__ENC_LAYERS=3))
    with pytest.raises(CheckpointError, match=r"and \d+ more") as caught:
        Trainer.build_checkpointer(cfg, deeper).resume_or_load("", resume=True)
    assert str(caught.value).count("encoder.layers.") == 8


def test_last_checkpoint_is_written_atomically(model, tmp_path, monkeypatch):
    checkpointer = DetectorCheckpointer(model, str(tmp_path))
    checkpointer.tag_last_checkpoint("model_0000001.pth")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.tag_last_checkpoint("model_0000002.pth")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_failed_save_leaves_the_last_file(model, tmp_path, monkeypatch):
    checkpointer = DetectorCheckpointer(model, str(tmp_path))
    checkpointer.save("model_final")
    before = (tmp_path / "model_final.pth").read_bytes()

    def full_disk(content, stream):
        stream.write(b"half")
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="could not be written.*no space"):
        checkpointer.save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before


class _Remote(PathHandler):
    """Stores ``remote://…`` in a folder."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def _get_supported_prefixes(self):
        return ["remote://"]

    def _path(self, path):
        return self.folder / path.removeprefix("remote://")

    def _get_local_path(self, path, force=False, **_):
        return str(self._path(path))

    def _open(self, path, mode="r", buffering=-1, **_):
        return open(self._path(path), mode)

    def _exists(self, path, **_):
        return self._path(path).exists()

    def _isfile(self, path, **_):
        return self._path(path).is_file()


def test_urls_of_detectron2s_path_manager(model, other, make_cfg, tmp_path):
    (tmp_path / "bucket").mkdir()
    PathManager.register_handler(_Remote(tmp_path), allow_override=True)
    DetectorCheckpointer(model, "remote://bucket", keep=1).save("model_0000003", iteration=3)
    assert {path.name for path in (tmp_path / "bucket").iterdir()} == {"model_0000003.pth", "last_checkpoint"}
    DetectorCheckpointer(other, "remote://bucket").resume_or_load("", resume=True)
    assert torch.equal(weights(other), weights(model))
    with pytest.raises(UserError, match="OUTPUT_DIR must be a local folder, got 'remote://bucket'"):
        Trainer(make_cfg(OUTPUT_DIR="remote://bucket"))
