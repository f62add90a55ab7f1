"""Parameters and responses of the HTTP endpoints, from which the OpenAPI description is made."""

from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import python_multipart  # noqa: F401, required by forms of FastAPI
from fastapi import File, Form, HTTPException, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field

from ..config.inference import ModelMetadata
from ..data.masks import encode
from ..errors import did_you_mean
from ..explain import DenseAttention
from ..inference import Detections, Explanation
from ..inference.drawing import PALETTE
from ..inference.options import DEFAULT_THRESHOLD
from .limits import Limits

Box = tuple[float, float, float, float]
_EXAMPLE: dict[str, Any] = {
    "source": "street.jpg",
    "size": [480, 640],
    "boxes": [[12.5, 40.25, 210.0, 300.75]],
    "scores": [0.93],
    "labels": [2],
    "names": ["car"],
}


class Error(BaseModel):
    """Response to a request that fails."""

    detail: str = Field(examples=["classes must contain only known class names, got 'cra'; did you mean car?"])


class Rle(BaseModel):
    """Mask in COCO's compressed run-length encoding."""

    size: tuple[int, int] = Field(description="height and width")
    counts: str


class Segment(BaseModel):
    """Segment of a panoptic segmentation."""

    id: int
    category_id: int = Field(description="class id")
    isthing: bool
    score: float
    area: int = Field(description="pixels")
    name: str
    mask: Rle


class DetectResponse(BaseModel):
    """Detections in one image, best score first."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    source: str = Field(description="name of the file")
    size: tuple[int, int] = Field(description="height and width of the image after its EXIF orientation is applied")
    boxes: list[Box] = Field(description="x1, y1, x2, y2 in pixels of the image")
    scores: list[float] = Field(description="in [0, 1]")
    labels: list[int] = Field(description="class ids")
    names: list[str] = Field(description="class names")
    masks: list[Rle] | None = Field(default=None, description="masks of models with a mask head")
    segments: list[Segment] | None = Field(default=None, description="segments of panoptic models")

    @classmethod
    def of(cls, found: Detections) -> "DetectResponse":
        """Converts detections; panoptic segments get masks."""
        fields = found.to_dict()
        if found.segmentation is not None:
            ids = found.segmentation.ids.numpy()
            for segment in fields["segments"]:
                segment["mask"] = encode(ids == segment["id"])
        return cls(**fields)


class Point(BaseModel):
    """Sampling point of deformable attention."""

    x: float = Field(description="pixels of the image; points may be outside of it")
    y: float
    weight: float = Field(description="attention weight; the sum over a layer and head is 1")
    layer: int
    head: int
    level: int


class ExplainResponse(BaseModel):
    """Cross-attention of the decoder for one detection; self-attention of the encoder in encoder-only models."""

    layer_boxes: list[Box] = Field(description="box after each decoder layer, not clipped")
    points: list[Point] | None = Field(default=None, description="sampling points of Deformable DETR")
    maps: list[list[list[float]]] | None = Field(
        default=None,
        description="attention weights of DETR, means over the heads: (layers, h, w), each map covers the image",
    )

    @classmethod
    def of(cls, found: Explanation) -> "ExplainResponse":
        """Converts the explanation of one detection."""
        boxes = [tuple(box) for box in found.boxes[:, 0].tolist()]
        if isinstance(found.attention, DenseAttention):
            return cls(layer_boxes=boxes, maps=found.attention.weights[:, 0].mean(1).tolist())
        rows = zip(*(part.tolist() for part in found.sampling_points(0, layer=None)), strict=True)
        points = [
            Point(x=x, y=y, weight=weight, layer=layer, head=head, level=level)
            for (x, y), weight, layer, head, level in rows
        ]
        return cls(layer_boxes=boxes, points=points)


class ModelDescription(BaseModel):
    """Model and limits of the server."""

    classes: list[str] = Field(description="class names, things and stuff, indexed by class id")
    colors: list[str] = Field(description="class k has color k modulo the number of colors")
    exif_orientation: bool = Field(description="whether the EXIF orientation of images is applied")
    max_bytes: int
    max_pixels: int

    @classmethod
    def of(cls, metadata: ModelMetadata, limits: Limits) -> "ModelDescription":
        """Describes a model."""
        return cls(
            classes=list(metadata.class_names),
            colors=list(PALETTE),
            exif_orientation=metadata.reader.exif_orientation,
            max_bytes=limits.max_bytes,
            max_pixels=limits.max_pixels,
        )


_ERRORS = {
    400: "the body is not a form",
    403: "the request comes from a page of another site",
    408: "the upload took too long",
    413: "too many bytes or pixels",
    415: "image format that is not accepted",
    422: "invalid field, or a file that is not an image",
    503: "the server is busy; Retry-After is the number of seconds to wait",
    504: "detection took too long",
}
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Error, "description": text} for status, text in _ERRORS.items()
}


class Options(TypedDict):
    """Keyword arguments of `Detector` and `Detector.explain`."""

    score_threshold: float
    top_k: int | None
    classes: list[str] | None


@dataclass
class Upload:
    """Image and options of a request, fields of a form of the type ``multipart/form-data``."""

    request: Request
    image: Annotated[UploadFile, File(description="image file")]
    score_threshold: Annotated[float, Form(ge=0, le=1, description="minimum score")] = DEFAULT_THRESHOLD
    top_k: Annotated[int | None, Form(ge=1, description="maximum number of detections; default: the model's")] = None
    classes: Annotated[
        list[str] | None, Form(description="names of the classes to detect, things only; default: all")
    ] = None

    @property
    def options(self) -> Options:
        """Options of the detector."""
        return {"score_threshold": self.score_threshold, "top_k": self.top_k, "classes": self.classes}

    async def check_fields(self, others: tuple[str, ...]) -> None:
        """Raises `HTTPException` for a field of the form that is neither an option nor in ``others``, or repeated."""
        known = ("image", *self.options, *others)
        form = await self.request.form()
        for name in form:
            if name not in known:
                raise HTTPException(422, f"unknown field {name!r}{did_you_mean(name, known)}")
            if name != "classes" and len(form.getlist(name)) > 1:
                raise HTTPException(422, f"{name} must be sent once, got {len(form.getlist(name))} values")
