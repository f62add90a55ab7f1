"""The HTTP application and its endpoints."""

import io
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from logging import ERROR, getLogger
from typing import Annotated

from fastapi import Depends, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from ..config.reading import naming_keys
from ..errors import ArgumentError, UserError
from ..inference import Detector
from ..version import __version__
from .limits import Limits
from .middleware import Metrics, RequestLimits, RequestMetrics
from .schema import RESPONSES, DetectResponse, ExplainResponse, ModelDescription, Upload
from .worker import Worker

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")
_PAGE = {
    "/": "serve/page/index.html",
    "/page.css": "serve/page/page.css",
    "/page.js": "serve/page/page.js",
    "/attention.js": "inference/attention.js",
}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
_DESCRIPTION = """Detects objects in images with a trained model.

    curl -F image=@street.jpg -F score_threshold=0.5 -F classes=car -F classes=bus http://127.0.0.1:8000/detect

Errors have a status of 400 or more and the reason in `detail`."""


def create_app(
    detector: Detector, limits: Limits | None = None, hosts: Sequence[str] | None = LOOPBACK_HOSTS
) -> FastAPI:
    """Creates the application. Uploaded images are kept in memory, or in temporary files without a name.

    Args:
        detector: model to serve.
        limits: limits of requests; None: the defaults.
        hosts: names in the header ``Host`` that are accepted; None for all. This rejects pages of another site whose
            name is resolved to this machine (DNS rebinding).
    """
    limits, metrics = limits or Limits(), Metrics()
    worker = Worker(limits, metrics, detector.metadata)
    getLogger("python_multipart").setLevel(ERROR)  # malformed forms are rejected with status 400

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.pool.shutdown(cancel_futures=True)

    app = FastAPI(
        title="deformable-detr serve",
        version=__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages for the description load scripts from another server
        redoc_url=None,
    )
    app.state.is_stopping = False
    _add_error_handlers(app)
    _add_page(app)
    _add_status(app, ModelDescription.of(detector.metadata, limits), metrics)
    _add_inference(app, detector, worker)
    paths = {str(getattr(route, "path", "")) for route in app.routes}
    app.add_middleware(RequestLimits, limits=limits, hosts=hosts, observe=metrics.in_progress.set)
    app.add_middleware(RequestMetrics, metrics=metrics, paths=paths)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Makes all errors JSON objects with a text in ``detail``."""

    def invalid_value(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 422)

    def invalid_form(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        problems = {".".join(map(str, item["loc"][1:])): f": {item['msg']}" for item in error.errors()}
        if "image" in problems:
            problems["image"] = " must be a file (curl: image=@FILE)"
        return JSONResponse({"detail": "; ".join(map("".join, problems.items()))}, 422)

    def failure(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": f"internal error ({type(error).__name__}), see the log of the server"}, 500)

    app.add_exception_handler(UserError, invalid_value)
    app.add_exception_handler(ArgumentError, invalid_value)
    app.add_exception_handler(RequestValidationError, invalid_form)
    app.add_exception_handler(Exception, failure)


def _add_page(app: FastAPI) -> None:
    """Adds the web page, whose files are read once."""
    for path, name in _PAGE.items():
        content = (files("projects_deformable_detr") / name).read_bytes()
        response = Response(content, headers=_PAGE_HEADERS, media_type=_TYPES[name.partition(".")[2]])

        async def page(request: Request, response: Response = response) -> Response:
            return response

        app.add_route(path, page, include_in_schema=False)


def _add_status(app: FastAPI, description: ModelDescription, metrics: Metrics) -> None:
    """Adds the endpoints that describe the server."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Returns ``{"status": "ok"}`` while the server accepts requests."""
        return {"status": "ok"}

    @app.get("/model")
    async def model() -> ModelDescription:
        """Describes the classes of the model and the limits of images."""
        return description

    @app.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Returns metrics in the text format of Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_inference(app: FastAPI, detector: Detector, worker: Worker) -> None:
    """Adds the endpoints that run the model."""

    @app.post("/detect", responses=RESPONSES, response_model_exclude_none=True)
    async def detect(upload: Annotated[Upload, Depends()]) -> DetectResponse:
        """Detects objects in an image."""

        def compute(file: io.BytesIO) -> DetectResponse:
            return DetectResponse.of(detector(file, batch_size=1, **upload.options))

        return await worker.run(upload, compute)

    @app.post("/explain", responses=RESPONSES, response_model_exclude_none=True)
    async def explain(
        upload: Annotated[Upload, Depends()],
        detection: Annotated[int, Form(ge=0, description="index in the response of /detect with the same options")],
    ) -> ExplainResponse:
        """Returns the sampling points or attention maps of a detection."""

        def compute(file: io.BytesIO) -> ExplainResponse:
            with naming_keys({"detections": "detection"}):
                return ExplainResponse.of(detector.explain(file, detections=[detection], **upload.options))

        return await worker.run(upload, compute, "detection")
