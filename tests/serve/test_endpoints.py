"""Endpoints: responses equal the results of `Detector`; errors name the invalid value; nothing else can be reached."""

import io
import json
import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as rle_format

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
from fastapi.testclient import TestClient

from projects_deformable_detr.inference import Detector
from projects_deformable_detr.serve import worker
from projects_deformable_detr.serve.app import create_app
from projects_deformable_detr.serve.limits import Limits
from projects_deformable_detr.serve.schema import DetectResponse

FORM = {"content-type": "multipart/form-data; boundary=x"}
MASKS = {"MASK_ON": True, "HIDDEN_DIM": 128, "NHEADS": 8}
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"


@pytest.fixture
def client(detector):
    with connect(detector) as client:
        yield client


def connect(detector, **limits):
    app = create_app(detector, Limits(**limits))
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False)


def post(client, content, path="/detect", name="a.png", headers=None, **fields):
    return client.post(path, files={"image": (name, content)}, data=fields, headers=headers)


def bomb(width, height):
    """Returns a PNG file that has this size in its header."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(bytes(100))
    return start + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))


@pytest.mark.parametrize(
    ("variant", "is_panoptic", "changes"),
    [("two_stage", False, {}), ("detr", False, MASKS), ("detr", True, MASKS)],
    ids=["boxes", "masks", "panoptic"],
)
def test_detections_equal_those_of_the_detector(make_detector, picture, variant, is_panoptic, changes):
    detector = make_detector(variant, is_panoptic, **changes)
    expected = detector(io.BytesIO(picture), score_threshold=0.1)
    with connect(detector) as client:
        response = post(client, picture, score_threshold=0.1)
    answer = response.json()
    assert response.status_code == 200, answer
    DetectResponse.model_validate(answer, strict=False)
    assert answer["source"] == "a.png" and answer["size"] == [40, 56] and len(answer["boxes"]) == len(expected) > 0
    for name in ("boxes", "scores", "labels"):
        torch.testing.assert_close(torch.tensor(answer[name]), getattr(expected, name), rtol=0, atol=1e-6)
    assert answer["names"] == expected.names
    assert ("masks" in answer) == ("MASK_ON" in changes) and ("segments" in answer) == is_panoptic
    if "masks" in answer:
        masks = np.stack([rle_format.decode(item) for item in answer["masks"]])
        assert (masks == expected.masks.numpy()).all()
    for segment in answer.get("segments", ()):
        ids = expected.segmentation.ids.numpy()
        assert (rle_format.decode(segment["mask"]) == (ids == segment["id"])).all() and segment["area"]


def test_options(client, detector, picture):
    answer = post(client, picture, score_threshold=0.2, top_k=3, classes=["bee", "cat"]).json()
    expected = detector(io.BytesIO(picture), score_threshold=0.2, top_k=3, classes=["bee", "cat"])
    assert answer["names"] == expected.names and len(answer["names"]) == 3
    assert post(client, picture, score_threshold=1).json()["boxes"] == []


def test_exif_orientation(client, picture):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).save(file, "JPEG", exif=exif)
    assert post(client, file.getvalue(), name="a.jpg").json()["size"] == [56, 40]


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ({"classes": "bea"}, "classes must contain only known class names, got 'bea'; did you mean bee?"),
        ({"score_threshold": 2}, "score_threshold: Input should be less than or equal to 1"),
        ({"score_threshold": "nan"}, "score_threshold"),
        ({"top_k": 0}, "top_k: Input should be greater than or equal to 1"),
        ({"top_k": 101}, "top_k must be at most 100, got 101"),
        ({"treshold": 0.5, "score_treshold": 0.5}, "unknown field 'treshold'"),
        ({"detection": 0}, "unknown field 'detection'"),
        ({"top_k": [1, 2]}, "top_k must be sent once, got 2 values"),
    ],
)
def test_invalid_fields(client, picture, fields, detail):
    response = post(client, picture, **fields)
    assert response.status_code == 422 and detail in response.json()["detail"]


@pytest.mark.parametrize(
    ("content", "status", "detail"),
    [
        (b"no image", 422, "a.png is not an image in a format that Pillow supports: send one of AVIF"),
        (b"", 422, "a.png is not an image"),
        (EPS, 415, "a.png has the format EPS: send one"),
        (bomb(30_000, 5_000), 413, "30000 x 5000 pixels, more than the limit of 1,000,000"),
        (bomb(60_000, 60_000), 413, "too many pixels"),  # Pillow's own limit
        (bomb(50, 50), 422, "a.png cannot be decoded as an image"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_invalid_images(detector, content, status, detail):
    with connect(detector, max_pixels=1_000_000) as client:
        response = post(client, content)
        assert response.status_code == status and detail in response.json()["detail"]


def test_images_with_too_many_pixels_are_not_decoded(detector, picture, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with connect(detector, max_pixels=40 * 56 - 1) as client:
        assert post(client, picture).status_code == 413


def test_too_many_mask_pixels(make_detector, picture, monkeypatch):
    monkeypatch.setattr(worker, "MAX_MASK_BYTES", 2 * 40 * 56)
    with connect(make_detector("detr", **MASKS)) as client:
        rejected = post(client, picture)
        answer = post(client, picture, top_k=2, score_threshold=0).json()
    assert rejected.status_code == 413
    assert rejected.json()["detail"] == "a.png has 2,240 pixels, too many for 100 masks: reduce its size, or top_k to 2"
    assert len(answer["masks"]) == 2


@pytest.mark.parametrize("arguments", [{"json": {}}, {"data": {"image": "a.png"}}, {"files": {"picture": b"a"}}, {}])
def test_requests_without_an_image(client, arguments):
    response = client.post("/detect", **arguments)
    assert response.status_code == 422 and "image must be a file (curl: image=@FILE)" in response.json()["detail"]


def test_requests_with_two_images(client, picture):
    response = client.post("/detect", files=[("image", (name, picture)) for name in ("a.png", "b.png")])
    assert response.status_code == 422 and response.json()["detail"] == "image must be sent once, got 2 values"


def test_damaged_forms(client, caplog):
    response = client.post("/detect", content=b"--x\r\nbad", headers=FORM)
    assert response.status_code in (400, 422) and response.json()["detail"]
    assert not caplog.records


@pytest.mark.parametrize("kind", ["length", "chunked"])
def test_too_many_bytes(detector, picture, kind):
    body = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n' + bytes(5000)
    parts = (body[start : start + 500] for start in range(0, len(body), 500))
    with connect(detector, max_bytes=4000) as client:
        response = client.post("/detect", content=body if kind == "length" else parts, headers=FORM)
        assert response.status_code == 413 and "at most 4,000 bytes" in response.json()["detail"]
        assert post(client, picture).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "["}, 400),
        ({"Host": "[x]"}, 400),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
    ],
)
def test_other_sites_are_rejected(client, picture, headers, status):
    response = post(client, picture, headers=headers)
    assert response.status_code == status
    assert not any(name.startswith("access-control") for name in response.headers)


def test_other_hosts_are_accepted_on_request(detector):
    with TestClient(create_app(detector, hosts=None), base_url="http://server.example") as client:
        assert client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    ["/docs", "/redoc", "/page/index.html", "/index.html", "/page.js/../app.py", "/%2e%2e/app.py", "/..%2f..%2fetc"],
)
def test_no_other_path_exists(client, path):
    response = client.get(path)
    assert response.status_code == 404 and response.json() == {"detail": "Not Found"}


def test_page_needs_no_other_server(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    sources = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert set(sources) == {"data:,", "/page.css", "/attention.js", "/page.js", "/openapi.json"}
    for path in set(sources) - {"data:,"}:
        response = client.get(path)
        assert response.status_code == 200 and not re.search(r"https?://(?!127\.0\.0\.1)", response.text)


def test_description(client):
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {"/health", "/model", "/metrics", "/detect", "/explain"}
    detect = description["paths"]["/detect"]["post"]
    assert set(detect["responses"]) >= {"200", "413", "415", "422", "503", "504"}
    form = detect["requestBody"]["content"]["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    schemas = description["components"]["schemas"]
    assert set(schemas[form]["properties"]) == {"image", "score_threshold", "top_k", "classes"}
    DetectResponse.model_validate(schemas["DetectResponse"]["examples"][0])
    assert detect["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    model = client.get("/model").json()
    assert model["classes"] == ["ant", "bee", "cat", "dog", "elk"]


def test_metrics(client, picture):
    post(client, picture)
    post(client, b"no image")
    client.get("/some/path")
    text = client.get("/metrics").text
    for line in (
        'deformable_detr_requests_total{path="/detect",status="200"} 1.0',
        'deformable_detr_requests_total{path="/detect",status="422"} 1.0',
        'deformable_detr_requests_total{path="other",status="404"} 1.0',
        'deformable_detr_request_seconds_count{path="/detect"} 2.0',
        "deformable_detr_inference_seconds_count 1.0",
        "deformable_detr_requests_in_progress 0.0",
    ):
        assert line in text
    assert json.loads(re.search(r"^process_resident_memory_bytes (.*)$", text, re.M)[1]) > 1e7


@pytest.mark.parametrize("variant", ["two_stage", "encoder_only", "detr"])
def test_explanations_equal_those_of_the_detector(make_detector, picture, variant):
    detector = make_detector(variant)
    options = {"score_threshold": 0.05, "top_k": 4}
    expected = detector.explain(io.BytesIO(picture), detections=[1], **options)
    with connect(detector) as client:
        response = post(client, picture, "/explain", detection=1, **options)
        missing = post(client, picture, "/explain", detection=4, **options)
    answer = response.json()
    assert response.status_code == 200, answer
    torch.testing.assert_close(torch.tensor(answer["layer_boxes"]), expected.boxes[:, 0])
    if variant == "detr":
        torch.testing.assert_close(torch.tensor(answer["maps"]).sum((1, 2)), torch.ones(3))
    else:
        points = expected.sampling_points(0, layer=None)
        found = torch.tensor([(point["x"], point["y"]) for point in answer["points"]])
        torch.testing.assert_close(found, points.locations)
        assert [point["level"] for point in answer["points"]] == points.levels.tolist()
    assert missing.status_code == 422 and missing.json()["detail"].startswith("detection must be ")


def test_exported_models_have_no_explanations(detector, picture):
    with connect(Detector(lambda images, mask: None, detector.metadata)) as client:
        response = post(client, picture, "/explain", detection=0)
    assert response.status_code == 422 and "exported models do not have attention" in response.json()["detail"]


def test_internal_errors_are_json(detector, picture, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("out of memory at 0x1234")

    monkeypatch.setattr(type(detector), "__call__", fail)
    with connect(detector) as client:
        response = post(client, picture)
    assert response.status_code == 500
    assert response.json() == {"detail": "internal error (RuntimeError), see the log of the server"}
