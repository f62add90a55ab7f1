"""Data sets by name, and the number of classes that follows from them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from projects_deformable_detr.data import catalog
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})


def config(num_classes=0, train=("tiny",), test=()):
    detr = SimpleNamespace(NUM_CLASSES=num_classes)
    return SimpleNamespace(MODEL=SimpleNamespace(DETR=detr), DATASETS=SimpleNamespace(TRAIN=train, TEST=test))


def test_builtin_data_lies_below_detectron2s_folder(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    spec = catalog.get("coco_2017_val")
    assert Path(spec.json_file) == Path("/some/where/coco/annotations/instances_val2017.json")
    assert Path(spec.image_root) == Path("/some/where/coco/val2017")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert Path(catalog.get("shapes_train").json_file) == Path("datasets/shapes/annotations/instances_train.json")


def test_coco_lies_where_detectron2_looks_for_it():
    data = pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")
    for name in ("coco_2017_train", "coco_2017_val"):
        theirs, ours = data.MetadataCatalog.get(name), catalog.get(name)
        assert (Path(theirs.json_file), Path(theirs.image_root)) == (ours.json_file, ours.image_root)


def test_registering(tmp_path):
    catalog.register("mine", tmp_path / "a.json", tmp_path)
    catalog.register("mine", str(tmp_path / "." / "a.json"), f"{tmp_path}/")  # the same files
    assert catalog.get("mine").json_file == tmp_path / "a.json"
    assert catalog.names()[-1] == "mine"
    for name in ("mine", "shapes_train"):
        with pytest.raises(DatasetError, match=f"{name}.*already stands for"):
            catalog.register(name, tmp_path / "b.json", tmp_path)
    with pytest.raises(DatasetError, match="needs a name"):
        catalog.register("", tmp_path / "b.json", tmp_path)


def test_an_unknown_name_lists_the_known(tmp_path):
    catalog.register("mine", tmp_path / "a.json", tmp_path)
    with pytest.raises(UserError, match="'yours'.*shapes_train.*coco_2017_val, .*mine; .*--register"):
        catalog.get("yours")


def test_the_number_of_classes(write, content):
    spec = write(content)
    catalog.register("tiny", spec.json_file, spec.image_root)
    assert catalog.resolve_num_classes(config()) == 3
    assert catalog.resolve_num_classes(config(3)) == 3
    assert catalog.resolve_num_classes(config(train=(), test=("tiny",))) == 3
    with pytest.raises(DatasetError, match="NUM_CLASSES is 80, but data set tiny has 3"):
        catalog.resolve_num_classes(config(80))


def test_nothing_to_take_the_number_from():
    assert catalog.resolve_num_classes(config(5, train=())) == 5
    with pytest.raises(DatasetError, match="NUM_CLASSES is 0"):
        catalog.resolve_num_classes(config(train=()))
    with pytest.raises(DatasetError, match="NUM_CLASSES is -1"):
        catalog.resolve_num_classes(config(-1))


def test_a_trained_model_needs_no_data_but_an_untrained_one_does(tmp_path):
    catalog.register("gone", tmp_path / "gone.json", tmp_path)
    assert catalog.resolve_num_classes(config(5, train=("gone",))) == 5
    with pytest.raises(DatasetError, match="gone.json does not exist"):
        catalog.resolve_num_classes(config(0, train=("gone",)))


def test_data_sets_that_disagree():
    classes = {"tiny": ("a", "b"), "same": ("a", "b"), "more": ("a", "b", "c"), "other": ("a", "x")}
    assert catalog.resolve_num_classes(config(test=("same",)), classes.__getitem__) == 2
    with pytest.raises(DatasetError, match="tiny has 2 categories, but more has 3"):
        catalog.resolve_num_classes(config(test=("more",)), classes.__getitem__)
    with pytest.raises(DatasetError, match="class 1 is 'b' in data set tiny, but 'x' in other"):
        catalog.resolve_num_classes(config(train=("tiny", "other")), classes.__getitem__)
