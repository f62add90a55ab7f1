"""Loads the weights of the corpus with Detectron2's DefaultPredictor, and predicts its images."""

import re

import numpy as np
import pytest
import yaml
from corpus_checkpoints import WEIGHTS, saved, weights
from corpus_images import IMAGES
from corpus_inputs import CONFIG, HEIGHT, WIDTH, Inputs

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultPredictor
from fvcore.common.config import CfgNode

from projects_deformable_detr import get_cfg
from projects_deformable_detr.data.images import read_image
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError

NAME = "corpus_prediction"
IMAGE = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)


@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """Returns a function that builds a predictor from weights and config options."""
    monkeypatch.chdir(tmp_path)
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(thing_classes=["red", "blue"])

    def build(*options):
        cfg = get_cfg("detectron2")
        cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(CONFIG)))
        cfg.merge_from_list(["MODEL.DETR.NUM_CLASSES", 2, *map(str, options)])
        cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (NAME,)
        return DefaultPredictor(cfg)

    yield build
    DatasetCatalog.pop(NAME)
    MetadataCatalog.pop(NAME)


def check(found, size):
    instances = found["instances"]
    assert instances.image_size == size and len(instances) > 0
    assert instances.pred_boxes.tensor.isfinite().all() and instances.scores.isfinite().all()


# Without weights, DefaultPredictor predicts with an untrained model.
ROWS = [case for case in WEIGHTS if case.name not in ("no weights to evaluate", "weights evaluated without objects")]


@pytest.mark.parametrize("case", ROWS, ids=[case.name for case in ROWS])
def test_weights(case, predictor, tmp_path):
    inputs = Inputs(tmp_path)
    case.make(inputs)
    inputs.write()
    if case.policy == "error":
        with pytest.raises(UserError) as caught:
            predictor(*inputs.options)(IMAGE)
        assert re.search(case.message, str(caught.value))
    else:
        check(predictor(*inputs.options)(IMAGE), (HEIGHT, WIDTH))
    assert not (tmp_path / "executed").exists()


def test_images(predictor, tmp_path):
    (tmp_path / "weights.pth").write_bytes(saved(weights()))
    predict = predictor("MODEL.WEIGHTS", tmp_path / "weights.pth")
    for index, case in enumerate(IMAGES):
        inputs = Inputs(tmp_path / str(index))
        case.make(inputs)
        inputs.write()
        for path in sorted(inputs.image_root.iterdir())[:2]:  # the other images are the same
            try:
                image = read_image(path, "BGR")
            except DatasetError:
                assert case.policy != "accept", case.name
                continue
            check(predict(image), image.shape[:2])
