"""Masks (arXiv 2005.12872, section 4.4) on top of a model of this folder."""

from detectron2.config import LazyCall as L

from projects_deformable_detr.detectron2_plugin.evaluation import PanopticEvaluator
from projects_deformable_detr.modeling.mask_head import MaskHead
from projects_deformable_detr.modeling.masks import MaskLoss


def with_masks(model, dataloader, *, level, fine, freeze_detector, box_positions, mask_weight=1.0, dice_weight=1.0):
    """A mask head that attends to one level of the tokens; ``fine``: names and channels of maps, coarsest first.

    Deformable DETR's attends with positions, DETR's without.
    """
    detector = model.detector
    detector.backbone.out_features = ["res2", "res3", "res4", "res5"]
    detector.mask_head = L(MaskHead)(
        channels="${..tokenizer.channels}",
        heads="${..encoder.heads}",
        level=level,
        fine=fine,
        box_positions=box_positions,
    )
    detector.freeze_detector = freeze_detector
    model.criterion.masks = L(MaskLoss)(mask_weight=mask_weight, dice_weight=dice_weight)
    for part in (dataloader.train, dataloader.test):
        part.mapper.use_instance_mask = True
    dataloader.train.mapper.recompute_boxes = dataloader.train.mapper.augmentations.policy.crop_prob > 0


def panoptic_data(model, dataloader, *, train, test, num_things, num_classes):
    """Data sets whose classes are things, the first ones, and stuff."""
    dataloader.train.dataset.names, dataloader.test.dataset.names = train, test
    model.load_options.class_names.dataset = train
    model.detector.decoder.num_classes, model.things = num_classes, list(range(num_things))


def panoptic(model, dataloader, *, score_threshold):
    """Give a panoptic segmentation, and evaluate it."""
    model.panoptic = dict(things=model.things, score_threshold=score_threshold, min_area=4)
    dataloader.evaluator = [
        dataloader.evaluator,
        L(PanopticEvaluator)(dataset_name=dataloader.test.dataset.names, output_dir="${train.output_dir}/inference"),
    ]
    dataloader.evaluator[0].dataset_name = dataloader.test.dataset.names
