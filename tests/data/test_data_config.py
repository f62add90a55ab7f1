"""Configuration of data sets, and classes and things that are resolved from them."""

import pytest

from projects_deformable_detr import get_cfg
from projects_deformable_detr.config.data import (
    data_config,
    load,
    resolve_num_classes,
    resolve_thing_classes,
    sampler_config,
)
from projects_deformable_detr.data import catalog
from projects_deformable_detr.data.config import SamplerConfig
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.shapes.dataset import generate


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})


@pytest.fixture
def tiny(write, content):
    spec = write(content)
    return catalog.register("tiny", spec.json_file, spec.image_root)


def config(train=("tiny",), test=(), **keys):
    """Returns a config with data sets and keys, in which __ replaces dots."""
    cfg = get_cfg("standalone")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = train, test
    for key, value in keys.items():
        *sections, name = key.split("__")
        node = cfg
        for section in sections:
            node = node[section]
        node[name] = value
    return cfg


def classes(number=0, **keys):
    return config(MODEL__DETR__NUM_CLASSES=number, **keys)


def things(*train, number=0, enabled=True, listed=(), num_classes=133):
    panoptic = {"NUM_THING_CLASSES": number, "THING_CLASSES": list(listed), "ENABLED": enabled}
    return classes(num_classes, train=train, **{f"MODEL__DETR__PANOPTIC__{key}": panoptic[key] for key in panoptic})


def test_data_set_is_checked_for_its_use(tiny):
    cfg = config(test=("tiny",), MODEL__DETR__NUM_OBJECT_QUERIES=1)
    with pytest.raises(DatasetError, match=r"(?s)1 queries.*set MODEL.DETR.NUM_OBJECT_QUERIES to at least 2"):
        load(tiny, data_config(cfg))
    assert load(tiny, data_config(cfg, eval_only=True)).summary.max_objects_per_image == 2
    cfg.MODEL.MASK_ON = True
    with pytest.raises(DatasetError, match=r"(?s)without a segmentation \(4\).*set MODEL.MASK_ON False"):
        load(tiny, data_config(cfg))
    with pytest.raises(
        UserError, match="DATASETS.INVALID_BOXES must be one of 'error', 'drop', 'drop_many', got 'keep'"
    ):
        load(tiny, data_config(config(DATASETS__INVALID_BOXES="keep")))
    assert data_config(config(MODEL__DETR__DEC_LAYERS=0)).max_objects is None  # every token is a query


def test_messages_name_config_keys(write, content, caplog):
    for category in content["categories"]:
        category["supercategory"] = "numbers"
    content["categories"].append({"id": 0, "name": "numbers", "supercategory": "none"})
    spec = write(content)
    cfg = config(test=("tiny",), TEST__DETECTIONS_PER_IMAGE=1)
    assert len(load(spec, data_config(cfg)).summary.class_names) == 4
    assert "set DATASETS.DROP_ROOT_CATEGORY True to drop it" in caplog.text
    assert "AP cannot reach 100: set TEST.DETECTIONS_PER_IMAGE to at least 2" in caplog.text
    cfg.DATASETS.DROP_ROOT_CATEGORY = True
    assert len(load(spec, data_config(cfg)).summary.class_names) == 3
    content["annotations"] += [content["annotations"][0] | {"id": 9 + i, "bbox": [90, 90, 5, 5]} for i in range(9)]
    with pytest.raises(DatasetError, match="set DATASETS.INVALID_BOXES drop_many"):
        load(write(content), data_config(cfg))


@pytest.mark.parametrize("part", ["train", "test"])
def test_data_sets_that_are_named_twice(part):
    with pytest.raises(UserError, match=f"DATASETS.{part.upper()} must list each data set once, got tiny more"):
        data_config(config(**{part: ("tiny", "tiny")}))


def test_number_of_classes(tiny):
    assert resolve_num_classes(classes()) == resolve_num_classes(classes(3)) == 3
    assert resolve_num_classes(classes(train=(), test=("tiny",))) == 3
    assert resolve_num_classes(classes(5, train=())) == 5
    for cfg, message in (
        (classes(80), "NUM_CLASSES is 80, but data set tiny has 3"),
        (classes(train=()), "NUM_CLASSES is 0"),
        (classes(-1), "NUM_CLASSES is -1"),
    ):
        with pytest.raises(DatasetError, match=message):
            resolve_num_classes(cfg)


def test_only_trained_models_can_be_built_without_data(tmp_path):
    catalog.register("gone", tmp_path / "gone.json", tmp_path)
    assert resolve_num_classes(classes(5, train=("gone",))) == 5
    with pytest.raises(DatasetError, match="gone.json does not exist"):
        resolve_num_classes(classes(train=("gone",)))


def test_data_sets_with_different_classes():
    names = {"tiny": ("a", "b"), "same": ("a", "b"), "more": ("a", "b", "c"), "other": ("a", "x")}
    assert resolve_num_classes(classes(test=("same",)), names.__getitem__) == 2
    with pytest.raises(DatasetError, match="tiny has 2 categories, but more has 3"):
        resolve_num_classes(classes(test=("more",)), names.__getitem__)
    with pytest.raises(DatasetError, match="class 1 is 'b' in data set tiny, but 'x' in other"):
        resolve_num_classes(classes(train=("tiny", "other")), names.__getitem__)


def test_things_of_data_sets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    generate(tmp_path / "shapes", num_train=1, num_val=0, size=64)
    assert resolve_thing_classes(things("shapes_train_panoptic", "shapes_train")) == tuple(range(6))
    assert resolve_thing_classes(things("coco_2017_train_panoptic", number=80)) == tuple(
        range(80)
    )  # there is no such file
    assert resolve_thing_classes(things("coco_2017_train", enabled=False)) == ()
    with pytest.raises(DatasetError, match="has 5 thing classes, but data set shapes_train_panoptic has 6"):
        resolve_thing_classes(things("shapes_train_panoptic", number=5))
    with pytest.raises(DatasetError, match="no data set contains the number of thing classes"):
        resolve_thing_classes(things("coco_2017_train_panoptic"))


def test_listed_thing_classes():
    assert resolve_thing_classes(things(listed=[11, 12, 18])) == (11, 12, 18)
    for listed in ([11, 11], [12, 11], [132, 133], [-1, 0]):
        with pytest.raises(
            DatasetError, match=r"THING_CLASSES is \[.*each class once, in ascending order, from 0 to 132"
        ):
            resolve_thing_classes(things(listed=listed))
    with pytest.raises(DatasetError, match=r"is \[11, 12\], but NUM_THING_CLASSES is 8"):
        resolve_thing_classes(things(listed=[11, 12], number=8))
    with pytest.raises(DatasetError, match=r"has the thing classes \[1, 2\], but data set any has \[0, 1\]"):
        resolve_thing_classes(things("any", listed=[1, 2]), lambda name: (0, 1))


def test_panoptic_model_requires_stuff():
    all_things = {"shapes_train": tuple(range(6))}.__getitem__
    assert resolve_thing_classes(things("shapes_train", num_classes=6, enabled=False), all_things) == tuple(range(6))
    with pytest.raises(DatasetError, match="ENABLED is True, but all 6 classes of data set shapes_train are things"):
        resolve_thing_classes(things("shapes_train", num_classes=6), all_things)


SAMPLER, WEIGHTS = "DATALOADER__SAMPLER_TRAIN", "DATASETS__TRAIN_REPEAT_FACTOR"


@pytest.mark.parametrize("threshold", [0.0, -0.5, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["RepeatFactorTrainingSampler", "WeightedCategoryTrainingSampler"])
def test_repeat_thresholds_out_of_range(name, threshold):
    keys = {"DATALOADER__REPEAT_THRESHOLD": threshold}
    with pytest.raises(UserError, match=r"DATALOADER.REPEAT_THRESHOLD must be in [(\[]0, 1\]"):
        sampler_config(config(**{SAMPLER: name}, **keys))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("nope", 2.0)], r"TRAIN_REPEAT_FACTOR has \('nope', 2.0\): use pairs .* from cells, more"),
        ([("cells", 0.0)], "TRAIN_REPEAT_FACTOR must be above 0, got 0.0 for cells"),
        ([("cells", "much")], "TRAIN_REPEAT_FACTOR must be above 0, got 'much' for cells"),
        (["cells"], "TRAIN_REPEAT_FACTOR has 'cells': use pairs"),
    ],
)
def test_invalid_weights_of_data_sets(pairs, message):
    with pytest.raises(UserError, match=message):
        sampler_config(config(("cells", "more"), **{SAMPLER: "WeightedTrainingSampler", WEIGHTS: pairs}))


def test_weights_of_data_sets():
    found = sampler_config(config(("cells", "more"), **{SAMPLER: "WeightedTrainingSampler", WEIGHTS: [("more", 3)]}))
    assert found == SamplerConfig("WeightedTrainingSampler", dataset_weights={"more": 3})
