"""ASGI middleware that enforces the limits of requests, and metrics in the text format of Prometheus."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from .limits import Limits

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60)  # seconds


class Metrics:
    """Metrics of one server, including memory and CPU time of the process.

    Attributes:
        registry: all metrics.
        requests: number of responses, by path and status.
        seconds: time from the header of a request to the end of its response, by path.
        inference: time of reading an image, detection and postprocessing.
        in_progress: number of requests with an image that are uploaded, wait or run.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        labels = ["path", "status"]
        self.requests = Counter("deformable_detr_requests", "Responses by path and status", labels, registry=registry)
        self.seconds = Histogram(
            "deformable_detr_request_seconds", "Time of requests", ["path"], buckets=_BUCKETS, registry=registry
        )
        self.inference = Histogram(
            "deformable_detr_inference_seconds", "Time of inference", buckets=_BUCKETS, registry=registry
        )
        self.in_progress = Gauge(
            "deformable_detr_requests_in_progress", "Requests that are uploaded, wait or run", registry=registry
        )


class RequestMetrics:
    """Counts and times requests.

    Args:
        app: application.
        metrics: metrics to update.
        paths: paths with their own label; all others are "other".
    """

    def __init__(self, app: App, metrics: Metrics, paths: Collection[str]) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def send_and_record(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, send_and_record)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)


class RequestLimits:
    """Limits requests, and sets ``scope["deadline"]`` in seconds of the event loop's clock.

    Args:
        app: application.
        limits: limits of each ``POST`` request.
        hosts: names in the header ``Host`` that are accepted; None for all.
        observe: called with the number of requests in progress when it changes.
    """

    def __init__(
        self, app: App, limits: Limits, hosts: Collection[str] | None, observe: Callable[[float], None]
    ) -> None:
        self.app = app
        self.limits = limits
        self.hosts = hosts
        self.observe = observe
        self.in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        rejection = self._reject(Request(scope)) if scope["type"] == "http" else None
        if rejection is not None:
            await rejection(scope, receive, send)
            return
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["deadline"] = asyncio.get_running_loop().time() + self.limits.timeout
        self._count(1)
        try:
            await self.app(scope, self._limit(receive, scope["deadline"]), send)
        finally:
            self._count(-1)

    def _count(self, change: int) -> None:
        self.in_progress += change
        self.observe(self.in_progress)

    def _reject(self, request: Request) -> JSONResponse | None:
        """Returns an error response for a rejected request, else None."""
        headers = request.headers
        host = _split(f"//{headers.get('host', '')}")
        if self.hosts is not None and (host is None or host.hostname not in self.hosts):
            return _error(400, f"the name of the server must be one of {', '.join(self.hosts)}")
        if request.method != "POST":
            return None
        # Without this check, a page of another site could make a browser on this machine send images.
        if "origin" in headers:
            origin = _split(headers["origin"])
            if origin is None or origin.netloc != headers.get("host"):
                return _error(403, f"requests from pages of {headers['origin']} are not allowed")
        size = headers.get("content-length", "")
        if size.isdecimal() and int(size) > self.limits.max_bytes:
            return _error(413, self._too_large)
        if self.in_progress >= self.limits.queue:
            return _error(503, f"{self.in_progress} requests are in progress: try again later", {"Retry-After": "1"})
        return None

    @property
    def _too_large(self) -> str:
        return f"the request must have at most {self.limits.max_bytes:,} bytes: send a smaller file"

    def _limit(self, receive: Receive, deadline: float) -> Receive:
        """Returns a function that receives the body, and raises `HTTPException` when it exceeds a limit."""
        received, is_complete = 0, False

        async def limited() -> Message:
            nonlocal received, is_complete
            if is_complete:  # the next message is that the client disconnects
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), deadline - asyncio.get_running_loop().time())
            except asyncio.TimeoutError as error:
                raise HTTPException(408, f"the upload took more than {self.limits.timeout:g} s") from error
            if message["type"] == "http.disconnect":  # also reported to all clients when the server stops
                raise HTTPException(503, "the connection was closed during the upload", {"Retry-After": "1"})
            received += len(message.get("body", b""))
            if received > self.limits.max_bytes:
                raise HTTPException(413, self._too_large)
            is_complete = not message.get("more_body", False)
            return message

        return limited


def _split(url: str) -> SplitResult | None:
    """Returns the parts of a URL, None if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _error(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)
