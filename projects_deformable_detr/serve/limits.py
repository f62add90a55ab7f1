"""Limits of requests with an image."""

from dataclasses import dataclass

from ..errors import Positive, PositiveInt, check_ranges


@dataclass(frozen=True)
class Limits:
    """Limits of a request with an image.

    Attributes:
        max_bytes: size of the body.
        max_pixels: width times height of the image, according to its header.
        timeout: seconds from the header of the request to the response, and for receiving the header.
        queue: number of requests that are uploaded, wait or run at the same time.
    """

    max_bytes: PositiveInt = 32 * 2**20
    max_pixels: PositiveInt = 25_000_000
    timeout: Positive = 60.0
    queue: PositiveInt = 16

    def __post_init__(self) -> None:
        check_ranges(Limits, vars(self))
