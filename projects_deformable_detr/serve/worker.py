"""Inference for requests: checks of images before they are decoded, and one thread that runs the model."""

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from fastapi import HTTPException, Request
from PIL import Image

from ..config.inference import ModelMetadata
from ..data.images import ImageFileError, open_image
from ..errors import ArgumentError
from .limits import Limits
from .middleware import Metrics
from .schema import Upload

T = TypeVar("T")
# Formats that Pillow decodes itself. EPS, for example, starts Ghostscript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
MAX_MASK_BYTES = 2**31  # memory for the masks of one response, one byte per pixel and mask


class Worker:
    """Runs functions of uploaded images in one thread, one after another.

    Args:
        limits: limits of requests.
        metrics: metrics to update.
        metadata: metadata of the model.
    """

    def __init__(self, limits: Limits, metrics: Metrics, metadata: ModelMetadata) -> None:
        self.limits = limits
        self.metrics = metrics
        self.metadata = metadata
        self.pool = ThreadPoolExecutor(1, "inference")
        self._lock = asyncio.Lock()

    async def run(self, upload: Upload, compute: Callable[[io.BytesIO], T], *fields: str) -> T:
        """Returns the result of a function of the image.

        The function is not started if the client has disconnected or the deadline has passed.

        Args:
            upload: image and options.
            compute: the function; the name of its argument, a file, is for messages only.
            fields: names of fields of the form in addition to those of `Upload`.

        Raises:
            ArgumentError: if ``top_k`` exceeds the number of detections of the model.
            HTTPException: for fields that `Upload.check_fields` and images that `check_image` reject; 413 for masks of
                more than `MAX_MASK_BYTES`; 499 if the client closes the connection; after ``scope["deadline"]``, 503 if
                the function has not started, else 504.
        """
        await upload.check_fields(fields)
        highest = self.metadata.evaluation.max_detections
        top_k = highest if upload.top_k is None else upload.top_k
        if top_k > highest:
            raise ArgumentError("top_k", f"must be at most {highest}, got {top_k}")
        content, name = await upload.image.read(), upload.image.filename or "image"
        is_started = False

        def job() -> T:
            nonlocal is_started
            is_started = True
            pixels = check_image(_named(content, name), self.limits.max_pixels)
            if self.metadata.has_masks and pixels * top_k > MAX_MASK_BYTES:
                size = f"{pixels:,} pixels, too many for {top_k} masks"
                raise HTTPException(413, f"{name} has {size}: reduce its size, or top_k to {MAX_MASK_BYTES // pixels}")
            with self.metrics.inference.time():
                return compute(_named(content, name))

        loop = asyncio.get_running_loop()
        result = asyncio.ensure_future(self._run_alone(job))
        disconnected = asyncio.ensure_future(_disconnection(upload.request))
        try:
            seconds = max(0.0, upload.request.scope["deadline"] - loop.time())
            await asyncio.wait((result, disconnected), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return await result
            if disconnected.done():
                raise HTTPException(499, "the client closed the connection")
            if not is_started:
                detail = (
                    f"the server was busy, detection did not start within {self.limits.timeout:g} s: try again later"
                )
                raise HTTPException(503, detail, {"Retry-After": "1"})
            raise HTTPException(504, f"the response took more than {self.limits.timeout:g} s: send a smaller image")
        finally:
            disconnected.cancel()
            result.cancel()

    async def _run_alone(self, job: Callable[[], T]) -> T:
        """Runs a function in the thread when it is free. The pool would keep canceled functions, with their images."""
        await self._lock.acquire()
        running = asyncio.get_running_loop().run_in_executor(self.pool, job)
        running.add_done_callback(lambda _: self._lock.release())
        return await asyncio.shield(running)


async def _disconnection(request: Request) -> None:
    """Returns when the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if request.app.state.is_stopping:  # uvicorn reports all connections as closed, but responses can still be sent
        await asyncio.Event().wait()


def _named(content: bytes, name: str) -> io.BytesIO:
    file = io.BytesIO(content)
    file.name = name
    return file


def check_image(file: io.BytesIO, max_pixels: int) -> int:
    """Returns the number of pixels of an image from its header, whose format and size it checks before decoding.

    Raises:
        HTTPException: 413 for more than ``max_pixels``, 415 for a format that is not in `FORMATS`, 422 for other files.
    """
    accepted = f"send one of {', '.join(FORMATS)}"
    try:
        with open_image(file) as image:
            format, width, height = image.format, image.width, image.height
    except ImageFileError as error:
        status = 413 if isinstance(error.__cause__, Image.DecompressionBombError) else 422
        remedy = "reduce its size, or cut it into tiles" if status == 413 else accepted
        raise HTTPException(status, f"{error.problem}: {remedy}") from error
    if format not in FORMATS:
        raise HTTPException(415, f"{file.name} has the format {format}: {accepted}")
    if width * height > max_pixels:
        size = f"{width} x {height} pixels, more than the limit of {max_pixels:,}"
        raise HTTPException(413, f"{file.name} has {size}: reduce its size, or cut it into tiles")
    return width * height
