"""COCO 2017 with DETR's augmentation (arXiv 2005.12872, appendix A.4)."""

from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from omegaconf import OmegaConf

from projects_deformable_detr.detectron2_plugin.mapper import DetrDatasetMapper, build_augmentations
from projects_deformable_detr.training.augmentation import AugmentationPolicy

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    # The official code trains on images without objects too.
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_train", filter_empty=False),
    mapper=L(DetrDatasetMapper)(
        is_train=True,
        augmentations=L(build_augmentations)(
            policy=L(AugmentationPolicy)(
                flip_prob=0.5,
                min_sizes=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
                max_size=1333,
                crop_prob=0.5,
                crop_resize=(400, 500, 600),
                crop_range=(384, 600),
                image_format="RGB",
            )
        ),
        image_format="RGB",
        instance_mask_format="bitmask",
    ),
    total_batch_size=32,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val", filter_empty=False),
    mapper=L(DetrDatasetMapper)(
        is_train=False,
        augmentations=L(build_augmentations)(
            policy=L(AugmentationPolicy)(
                flip_prob=0.0,
                min_sizes=(800,),
                max_size=1333,
                crop_prob=0.0,
                crop_resize=(),
                crop_range=(0, 0),
                image_format="RGB",
            )
        ),
        image_format="RGB",
        instance_mask_format="bitmask",
    ),
    num_workers="${..train.num_workers}",
)
dataloader.evaluator = L(COCOEvaluator)(dataset_name="${..test.dataset.names}", max_dets_per_image=100)


def resize_only(dataloader, min_sizes, max_size, test_size):
    """Shorter sides to train on and longer side, and the shorter side of tests, in pixels; no crop."""
    train, test = (dataloader[part].mapper.augmentations.policy for part in ("train", "test"))
    train.min_sizes, train.crop_prob, train.crop_resize, train.crop_range = min_sizes, 0.0, (), (0, 0)
    test.min_sizes = (test_size,)
    train.max_size = test.max_size = max_size
