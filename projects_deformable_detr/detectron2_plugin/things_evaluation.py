"""AP of the things of a panoptic data set in the standard format, whose metadata Detectron2's evaluator refuses."""

import os
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from PIL import Image

from ..data import panoptic
from .panoptic_classes import PanopticClasses


class ThingsEvaluator(COCOEvaluator):
    """COCO's metrics of the things alone, numbered by themselves.

    The truth is the data set's file of instances, where it has one, and else its segments of things.

    Args:
        name: of the data set.
        classes: its classes.
        output_dir: for results.
        options: of Detectron2's evaluator.
    """

    def __init__(self, name: str, classes: PanopticClasses, output_dir: str, **options: Any) -> None:
        self._numbers = _numbers(classes)
        super().__init__(_things_of(name, classes), output_dir=output_dir, **options)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Takes the ``instances`` of some images, which are things."""
        renumbered = []
        for output in outputs:
            instances = output["instances"].to("cpu")
            numbers = [self._numbers[label] for label in instances.pred_classes.tolist()]
            instances.pred_classes = instances.pred_classes.new_tensor(numbers)
            renumbered.append({"instances": instances})
        super().process(inputs, renumbered)


def _numbers(classes: PanopticClasses) -> dict[int, int]:
    """Things to 0, 1, … in the order of their ids in the files, by which Detectron2 names the AP of each class."""
    ordered = sorted(classes.things, key=lambda index: classes.category_ids[index])
    return {index: number for number, index in enumerate(ordered)}


def _things_of(name: str, classes: PanopticClasses) -> str:
    """The name of the things in Detectron2's catalogs."""
    things = f"{name}_things"
    if things not in DatasetCatalog:
        DatasetCatalog.register(things, lambda: _records(name, classes))
        numbers = _numbers(classes)
        whole, metadata = MetadataCatalog.get(name), MetadataCatalog.get(things)
        metadata.set(
            evaluator_type="coco",
            image_root=whole.image_root,
            thing_classes=[classes.names[index] for index in numbers],
            thing_dataset_id_to_contiguous_id={
                classes.category_ids[index]: number for index, number in numbers.items()
            },
        )
        if whole.get("json_file") and os.path.isfile(whole.json_file):
            metadata.json_file = whole.json_file
    return things


def _records(name: str, classes: PanopticClasses) -> list[dict[str, Any]]:
    numbers = _numbers(classes)
    records = []
    for record in DatasetCatalog.get(name):
        found = panoptic.as_annotations(record, crowds=True)
        kept = [
            item | {"category_id": numbers[item["category_id"]]} for item in found if item["category_id"] in numbers
        ]
        with Image.open(record["file_name"]) as image:
            size = {"width": image.width, "height": image.height}
        records.append({key: record[key] for key in ("file_name", "image_id")} | size | {"annotations": kept})
    return records
