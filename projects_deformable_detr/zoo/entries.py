"""Published checkpoints by name: sources, hashes, recipes, licenses and published results.

Hashes are taken from file names or as published by other projects; they have not been verified.
"""

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError, did_you_mean
from .coco_classes import THINGS, THINGS_AND_STUFF
from .files import HubFile, UrlFile

ZOO = "zoo://"
TORCHVISION = "torchvision://"


@dataclass(frozen=True)
class Entry:
    """A published checkpoint.

    Attributes:
        config: name of the recipe in `model_zoo`; empty for a backbone.
        source: file on the Hugging Face hub or a web server.
        license: SPDX identifier of the license of the weights.
        class_names: class names of the loaded detector, without those of unused logits; () for a backbone.
        ap, mask_ap, pq: published box AP, mask AP and panoptic quality on COCO val2017, in percent.
    """

    config: str
    source: HubFile | UrlFile
    license: str = "Apache-2.0"
    class_names: tuple[str, ...] = THINGS
    ap: float | None = None
    mask_ap: float | None = None
    pq: float | None = None

    @property
    def is_backbone(self) -> bool:
        """Whether the file contains an ImageNet backbone and no detector."""
        return not self.config


def _hub(config: str, repository: str, revision: str, sha256: str, ap: float) -> Entry:
    return Entry(config, HubFile(f"SenseTime/{repository}", revision, sha256), ap=ap)


def _detr(config: str, name: str, ap: float, sha256: str = "") -> Entry:
    """Returns the entry of an official DETR model; the hash defaults to the prefix in the file name."""
    source = UrlFile(f"https://dl.fbaipublicfiles.com/detr/{name}.pth", sha256 or name.rpartition("-")[2])
    return Entry(config, source, ap=ap)


def _panoptic(config: str, name: str, ap: float, mask_ap: float, pq: float) -> Entry:
    source = _detr(config, name, ap).source
    return Entry(config, source, class_names=THINGS_AND_STUFF, ap=ap, mask_ap=mask_ap, pq=pq)


def _backbone(file: str) -> Entry:
    source = UrlFile(f"https://download.pytorch.org/models/{file}.pth", file.rpartition("-")[2])
    return Entry("", source, license="BSD-3-Clause", class_names=())


ENTRIES: dict[str, Entry] = {
    "deformable_detr_r50_single_scale": _hub(
        "deformable_detr_r50_single_scale_50ep",
        "deformable-detr-single-scale",
        "e880a4ca7bbe47b33d37ed90e2948efbbdad0d44",
        "82eeb57bbcdd02408afc53d5f5c874e3a7f27b5034194ae2c4475d06fceaa59b",
        39.4,
    ),
    "deformable_detr_r50_single_scale_dc5": _hub(
        "deformable_detr_r50_single_scale_dc5_50ep",
        "deformable-detr-single-scale-dc5",
        "c23332913d0ae1a8c98725e308eccba65a5933cc",
        "e71afa5f5900e2e769275156494195508efcadaab4275b0cd4c80f10369dc090",
        41.5,
    ),
    "deformable_detr_r50": _hub(
        "deformable_detr_r50_50ep",
        "deformable-detr",
        "83ecd26945199939cb82806f988debdb71e6f43e",
        "caf1e3e61283c6ce35cd2d9adaa7033cf40997d4dfe434003bcdb9085cc8cf9b",
        44.5,
    ),
    "deformable_detr_r50_box_refine": _hub(
        "deformable_detr_r50_box_refine_50ep",
        "deformable-detr-with-box-refine",
        "2e9e461623a8fdc296e19666c46c8a4389a3a6fe",
        "4113700fe8aade398808424b7c5c1304cfbf886adc6450a6ca5d50a702be3373",
        46.2,
    ),
    "deformable_detr_r50_two_stage": _hub(
        "deformable_detr_r50_two_stage_50ep",
        "deformable-detr-with-box-refine-two-stage",
        "e74bff70d69f3e825f6cefaf179bfba707f92054",
        "411bb4238a834d40fff651b1b5b7d6dd80c2dd28be1747eec7b6918674e85de6",
        46.9,
    ),
    "detr_r50": _detr(
        "detr_r50_500ep",
        "detr-r50-e632da11",
        42.0,
        "e632da11ec76ae67bac2f8579fbed3724e08dead7d200ca13e019b197784eadc",
    ),
    "detr_r50_dc5": _detr("detr_r50_dc5_500ep", "detr-r50-dc5-f0fb7ef5", 43.3),
    "detr_r101": _detr(
        "detr_r101_500ep",
        "detr-r101-2c7b67e5",
        43.5,
        "2c7b67e52d2e687cefa3c4a5e701a148664159c96725c62984600d2d9d5c4104",
    ),
    "detr_r101_dc5": _detr("detr_r101_dc5_500ep", "detr-r101-dc5-a2e86def", 44.9),
    "detr_r50_panoptic": _panoptic("detr_r50_panoptic", "detr-r50-panoptic-00ce5173", 38.8, 31.1, 43.4),
    "detr_r50_dc5_panoptic": _panoptic("detr_r50_dc5_panoptic", "detr-r50-dc5-panoptic-da08f1b1", 40.2, 31.9, 44.6),
    "detr_r101_panoptic": _panoptic("detr_r101_panoptic", "detr-r101-panoptic-40021d53", 40.1, 33.0, 45.1),
    "resnet18": _backbone("resnet18-f37072fd"),
    "resnet34": _backbone("resnet34-b627a593"),
    "resnet50": _backbone("resnet50-0676ba61"),
    "resnet101": _backbone("resnet101-63fe2227"),
    "resnext50_32x4d": _backbone("resnext50_32x4d-7cdf4587"),
    "resnext101_32x8d": _backbone("resnext101_32x8d-8ba56ff5"),
    "swin_t": _backbone("swin_t-704ceda3"),
    "swin_s": _backbone("swin_s-5e29d889"),
    "swin_b": _backbone("swin_b-68c6b09e"),
}


def download(name: str) -> Path:
    """Returns the path of a published checkpoint, which is downloaded if it is not in the cache.

    Args:
        name: key of `ENTRIES`.

    Raises:
        UserError: for an unknown name.
        DownloadError: if the file cannot be downloaded or is corrupt.
    """
    return get(name).source.download()


def get(name: str) -> Entry:
    """Returns a published checkpoint; raises `UserError` with the closest names for an unknown name."""
    if name not in ENTRIES:
        hint = did_you_mean(name, ENTRIES, 3) or f"; choose one of {', '.join(ENTRIES)}"
        raise UserError(f"there are no published weights {name!r}{hint}")
    return ENTRIES[name]


def locate(source: str | Path) -> Path:
    """Returns the path of the file for ``zoo://NAME`` or ``torchvision://NAME``, or any other source as a path.

    Raises:
        UserError: for an unknown name.
        DownloadError: if the file cannot be downloaded or is corrupt.
    """
    text = str(source)
    if text.startswith(ZOO):
        return download(text.removeprefix(ZOO))
    if not text.startswith(TORCHVISION):
        return Path(source)
    import torchvision

    try:
        url = torchvision.models.get_model_weights(text.removeprefix(TORCHVISION)).IMAGENET1K_V1.url
    except (ValueError, AttributeError) as error:
        raise UserError(f"{text}: torchvision has no such ImageNet weights; try {TORCHVISION}resnet50") from error
    return UrlFile(url, Path(url).stem.rpartition("-")[2]).download()
