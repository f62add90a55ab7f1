"""Published weights by name, downloaded from a local server with files of the same layout."""

import dataclasses
import hashlib
import logging
import os
import re
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import torchvision
from huggingface_hub import constants

from projects_deformable_detr import build_detector, model_zoo, zoo
from projects_deformable_detr.checkpoint import LoadOptions, load_weights, write_official
from projects_deformable_detr.cli.main import console
from projects_deformable_detr.config.model import export_hugging_face
from projects_deformable_detr.errors import UserError
from projects_deformable_detr.zoo.coco_classes import THINGS
from projects_deformable_detr.zoo.files import DownloadError, HubFile, UrlFile, sha256_of

ROOT = Path(__file__).resolve().parents[2]
REVISION = "0123456789abcdef0123456789abcdef01234567"
CONTENT = bytes(range(256)) * 40_000  # several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer(with_body=False)

    def do_GET(self):
        self._answer(with_body=True)

    def _answer(self, with_body):
        server, path = self.server, re.sub(r"^https?://[^/]+", "", self.path)  # the address in requests to a proxy
        server.requests.append((self.command, self.path, self.headers.get("Range")))
        hub = re.fullmatch(r"/(?P<file>[^/]+/[^/]+/)resolve/(?P<revision>\w+)/(?P<name>.+)", path)
        name = f"/{hub['file']}{hub['name']}" if hub else path
        if server.status or name not in server.files:
            return self._send(server.status or 404, {"X-Error-Message": "no such file"})
        content = server.files[name]
        if hub:
            digest = hashlib.sha256(content).hexdigest()
            headers = {"X-Repo-Commit": hub["revision"], "X-Linked-ETag": f'"{digest}"', "X-Linked-Size": len(content)}
            # The files are on another host than the hub.
            return self._send(302, headers | {"Location": f"http://localhost:{server.server_port}{name}"})
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if start is None or not server.has_ranges:
            self._send(200, {"ETag": '"1"'}, content, with_body)
        elif int(start[1]) >= len(content):
            self._send(416, {})
        else:
            place = {"Content-Range": f"bytes {start[1]}-{len(content) - 1}/{len(content)}"}
            self._send(206, place, content[int(start[1]) :], with_body)

    def _send(self, status, headers, content=b"", with_body=False):
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if with_body and self.server.cuts:  # the connection breaks
            self.wfile.write(content[: self.server.cuts.pop(0)])
            self.close_connection = True
        elif with_body:
            self.wfile.write(content)


@pytest.fixture
def server():
    """A server of ``files``, contents by path, at ``address``.

    ``status``: status of all answers. ``cuts``: numbers of bytes after which the next answers break. ``requests``:
    method, path and range of each request.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.status, server.has_ranges, server.cuts, server.requests = {}, 0, True, [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def caches(server, tmp_path, monkeypatch):
    """Empty caches, and the server in place of the hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 20)
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(
        "https://huggingface.co", server.address
    ))  # fmt: skip
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # huggingface_hub waits before it retries
    monkeypatch.setattr(urllib.request, "_opener", None)  # keeps the proxies of the first request


@pytest.fixture(params=["hub", "url"])
def published(request, server):
    """A file on the server, as `HubFile` or `UrlFile`."""
    server.files["/org/repo/model.safetensors"] = server.files["/models/net-01234567.pth"] = CONTENT
    if request.param == "hub":
        return HubFile("org/repo", REVISION, DIGEST)
    return UrlFile(f"{server.address}/models/net-01234567.pth", DIGEST[:8])


def files_in(folder):
    """Returns the names of the files below a folder that contain weights or parts of them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path.name for path in files if path.stat().st_size > 1000]


def test_a_file_is_downloaded_once(published, server, caplog):
    caplog.set_level("INFO")
    path = published.download()
    assert re.search(r"Downloading .*(model.safetensors|net-01234567.pth) from ", caplog.text)
    caplog.clear()
    assert path.read_bytes() == CONTENT and path.name in ("model.safetensors", "net-01234567.pth")
    number = len(server.requests)
    assert published.download() == path and len(server.requests) == number
    server.status = 500  # neither does it need the network later
    assert published.download() == path
    assert "Downloading" not in caplog.text


def test_only_rank_0_logs_a_download(published, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setenv("RANK", "1")
    published.download()
    assert "Downloading" not in caplog.text


def test_command_line_prints_a_download_once(server, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        for name in ("", "projects_deformable_detr", "projects_deformable_detr.zoo"):
            patch.setattr(logging.getLogger(name), "handlers", [])
        patch.setattr(sys, "argv", ["deformable-detr", "info", "deformable_detr_r50"])
        assert console() != 0  # the server does not have the file
    logging.getLogger("projects_deformable_detr.zoo").setLevel(logging.NOTSET)
    assert capsys.readouterr().err.count("Downloading SenseTime/deformable-detr/model.safetensors from ") == 1


def test_another_hash_is_an_error_and_the_file_is_removed(published, server, tmp_path):
    wrong = dataclasses.replace(published, sha256="0" * len(published.sha256))
    message = rf"its SHA-256 is {published.sha256}, not {wrong.sha256}; it was removed, try again"
    with pytest.raises(DownloadError, match=message):
        wrong.download()
    assert files_in(tmp_path) == []
    path = published.download()
    with pytest.raises(DownloadError, match="delete it to download it again"):  # it may belong to another program
        wrong.download()
    assert path.is_file()


@pytest.mark.parametrize("has_ranges", [True, False])
def test_an_interrupted_download_is_continued(published, server, tmp_path, has_ranges):
    server.has_ranges, server.cuts = has_ranges, [3_000_000]
    if isinstance(published, UrlFile):
        with pytest.raises(DownloadError, match=r"ended after 3000000 of 10240000 bytes.*next download continues it"):
            published.download()
        assert files_in(tmp_path) == ["net-01234567.pth.partial"]
    assert published.download().read_bytes() == CONTENT
    assert server.requests[-1][0] == "GET" and server.requests[-1][2].startswith("bytes=")
    assert len(files_in(tmp_path)) == 1


def test_a_complete_part_is_downloaded_again(published, server, tmp_path):
    if isinstance(published, HubFile):
        pytest.skip("huggingface_hub has no part after a process has ended")
    part = tmp_path / "torch/hub/checkpoints/net-01234567.pth.partial"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert published.download().read_bytes() == CONTENT and not part.exists()


@pytest.mark.parametrize("status", [401, 404, 500])
def test_errors_of_the_server_are_named(published, server, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError, match=rf"could not be downloaded \(.*{status}.*check the network.*elsewhere"):
        published.download()
    assert files_in(tmp_path) == []


def test_no_network_is_an_error_with_a_remedy(published, server, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)  # for caplog
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"Connection refused.*check the network.*elsewhere") as caught:
        published.download()
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(str(caught.value).splitlines()) == 1 and not warnings and files_in(tmp_path) == []


def test_a_full_disk_is_an_error(published, tmp_path, monkeypatch):
    target = "huggingface_hub.file_download.http_get" if isinstance(published, HubFile) else "tqdm.tqdm.update"

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target, full)
    with pytest.raises(DownloadError, match=r"No space left on device.*the disk"):
        published.download()
    assert not [name for name in files_in(tmp_path) if not name.endswith(".partial")]


def test_the_offline_mode_of_the_hub_is_respected(published, server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if isinstance(published, UrlFile):
        pytest.skip("not on the hub")
    with pytest.raises(DownloadError, match="check the network, HF_HUB_OFFLINE"):
        published.download()
    assert server.requests == []


def test_a_proxy_is_used(server, monkeypatch):
    server.files["/net-01234567.pth"] = CONTENT
    monkeypatch.setenv("http_proxy", server.address)
    monkeypatch.delenv("no_proxy", raising=False)
    file = UrlFile("http://weights.invalid/net-01234567.pth", DIGEST)
    assert file.download().read_bytes() == CONTENT
    assert server.requests == [("GET", file.url, None)]


def test_processes_download_once(server):
    server.files["/net-01234567.pth"] = CONTENT
    file = UrlFile(f"{server.address}/net-01234567.pth", DIGEST)
    threads = [threading.Thread(target=file.download) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1


@pytest.fixture
def publish(server, make_cfg, shake, tmp_path, monkeypatch):
    """Publishes a tiny detector with 91 logits as ``zoo://tiny``; returns it and its config for COCO's 80 classes."""

    def make(variant, place):
        cfg = make_cfg(variant, NUM_CLASSES=91)
        detector = shake(build_detector(cfg))
        if place == "hub":
            export_hugging_face(cfg, tmp_path / "folder", detector)
            content = (tmp_path / "folder/model.safetensors").read_bytes()
            source = HubFile("SenseTime/tiny", REVISION, hashlib.sha256(content).hexdigest())
            server.files["/SenseTime/tiny/model.safetensors"] = content
        else:
            write_official(tmp_path / "official.pth", detector)
            content = (tmp_path / "official.pth").read_bytes()
            source = UrlFile(f"{server.address}/detr/tiny.pth", hashlib.sha256(content).hexdigest())
            server.files["/detr/tiny.pth"] = content
        monkeypatch.setitem(zoo.ENTRIES, "tiny", zoo.Entry("quickstart", source))
        return detector, make_cfg(variant, NUM_CLASSES=80)

    return make


@pytest.mark.parametrize("variant", ["single_scale", "two_stage", "detr"])
@pytest.mark.parametrize("place", ["hub", "url"])
def test_published_detectors_load_with_the_classes_of_coco(publish, variant, place):
    published, cfg = publish(variant, place)
    detector = build_detector(cfg, weights="")
    options = LoadOptions(class_names=THINGS, for_evaluation=True)
    report = load_weights(detector, "zoo://tiny", options)
    assert report.format == ("hugging-face" if place == "hub" else "official")
    assert (report.missing, report.unexpected, report.mismatched, report.classes.new) == ((), (), (), ())
    person, toothbrush = detector.decoder.class_heads[0].bias[[0, 79]]
    assert [person, toothbrush] == published.decoder.class_heads[0].bias[[1, 90]].tolist()
    assert torch.equal(detector.backbone.conv1.weight, published.backbone.conv1.weight)


def test_build_detector_loads_weights_on_request(publish, caplog):
    published, cfg = publish("two_stage", "hub")
    cfg.MODEL.WEIGHTS = "zoo://tiny"
    with caplog.at_level(logging.WARNING):
        build_detector(cfg, weights="")
        assert caplog.text == ""
        assert not torch.equal(build_detector(cfg).backbone.conv1.weight, published.backbone.conv1.weight)
    assert "MODEL.WEIGHTS zoo://tiny is not loaded" in caplog.text
    detector = build_detector(cfg, weights=cfg.MODEL.WEIGHTS)
    assert torch.equal(detector.backbone.conv1.weight, published.backbone.conv1.weight)
    cfg.MODEL.DETR.DEC_LAYERS = 2
    with pytest.raises(UserError, match="set MODEL.DETR.ALLOW_PARTIAL_WEIGHTS True"):
        build_detector(cfg, weights="zoo://tiny")


def test_environment_variables_of_the_hub_select_endpoint_and_cache(publish, server, tmp_path):
    publish("detr", "hub")
    source = zoo.ENTRIES["tiny"].source
    code = "import sys; from projects_deformable_detr.zoo.files import HubFile; "
    code += "print(HubFile(*sys.argv[1:]).download())"
    command = [sys.executable, "-c", code, source.repository, source.revision, source.sha256]
    env = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.address}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    path = Path(result.stdout.strip())
    assert path.is_relative_to(tmp_path / "home/hub") and sha256_of(path) == source.sha256


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(UserError, match="no published weights 'detr_r50_dc'; did you mean detr_r50_dc5 or detr_r50"):
        zoo.download("detr_r50_dc")
    with pytest.raises(UserError, match="'yolo'; choose one of deformable_detr_r50_single_scale, "):
        zoo.locate("zoo://yolo")


@pytest.mark.parametrize("name", zoo.ENTRIES)
def test_entries_fit_their_recipes_and_torchvision(name):
    entry = model_zoo.published_weights()[name]
    assert re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", entry.source.sha256)
    if entry.is_backbone:
        assert entry.source.url == torchvision.models.get_model_weights(name).IMAGENET1K_V1.url
        return
    cfg = model_zoo.get_config(entry.config, engine="standalone")
    assert len(entry.class_names) == (cfg.MODEL.DETR.NUM_CLASSES or 80) == (133 if entry.pq else 80)
    assert ("dc5" in name, "r101" in name) == (cfg.MODEL.RESNETS.RES5_DILATION == 2, cfg.MODEL.RESNETS.DEPTH == 101)
    if isinstance(entry.source, UrlFile):
        assert entry.source.sha256.startswith(Path(entry.source.url).stem.rpartition("-")[2])


def test_the_documentation_has_the_table_and_the_class_names():
    text = (ROOT / "docs/models.md").read_text()
    assert _table() in text
    words = " ".join(text.split())
    assert all(f"{', '.join(entry.class_names)}." in words for entry in zoo.ENTRIES.values() if entry.class_names)


def _table():
    header = ("name", "config", "source", "license", "classes", "box AP", "mask AP", "PQ")
    rows = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for name, entry in zoo.ENTRIES.items():
        results = (f"{value:.1f}" if value else "–" for value in (entry.ap, entry.mask_ap, entry.pq))
        file = Path(entry.source.url).name if isinstance(entry.source, UrlFile) else entry.source.repository
        classes = "ImageNet" if entry.is_backbone else f"COCO, {len(entry.class_names)}"
        cells = [f"`{name}`", f"`{entry.config}`" if entry.config else "backbone", f"[{file}]({entry.source.page})"]
        rows.append(f"| {' | '.join([*cells, entry.license, classes, *results])} |")
    return "\n".join(rows)
