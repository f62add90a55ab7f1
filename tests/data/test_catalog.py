"""Catalog of data sets by name."""

from pathlib import Path

import pytest

from projects_deformable_detr.data import catalog
from projects_deformable_detr.data.problems import DatasetError
from projects_deformable_detr.errors import UserError


@pytest.fixture(autouse=True)
def _clean(monkeypatch):
    monkeypatch.setattr(catalog, "_registered", {})


def test_builtin_data_sets_are_in_the_folder_of_detectron2(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/some/where")
    spec = catalog.get("coco_2017_val")
    assert Path(spec.json_file) == Path("/some/where/coco/annotations/instances_val2017.json")
    assert Path(spec.image_root) == Path("/some/where/coco/val2017")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert Path(catalog.get("shapes_train").json_file) == Path("datasets/shapes/annotations/instances_train.json")


def test_paths_of_coco_match_detectron2():
    data = pytest.importorskip("detectron2.data", reason="Detectron2 is not installed")
    for name in ("coco_2017_train", "coco_2017_val"):
        metadata, spec = data.MetadataCatalog.get(name), catalog.get(name)
        assert (Path(metadata.json_file), Path(metadata.image_root)) == (spec.json_file, spec.image_root)


def test_register(tmp_path):
    catalog.register("cells", tmp_path / "a.json", tmp_path)
    catalog.register("cells", str(tmp_path / "." / "a.json"), f"{tmp_path}/")  # the same files
    assert catalog.get("cells").json_file == tmp_path / "a.json"
    assert catalog.names()[-1] == "cells"
    for name in ("cells", "shapes_train"):
        with pytest.raises(DatasetError, match=f"{name}.*already registered"):
            catalog.register(name, tmp_path / "b.json", tmp_path)
    with pytest.raises(DatasetError, match="is empty"):
        catalog.register("", tmp_path / "b.json", tmp_path)


def test_unknown_name(tmp_path):
    catalog.register("cells", tmp_path / "a.json", tmp_path)
    with pytest.raises(UserError, match="'other'.*shapes_train.*coco_2017_val, .*cells; .*--register"):
        catalog.get("other")
