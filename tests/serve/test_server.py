"""Running servers: queue, time limits, clients that disconnect, shutdown, and the command."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from projects_deformable_detr.checkpoint import save_detector
from projects_deformable_detr.cli.main import main

httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

ROOT = Path(__file__).resolve().parents[2]
START = b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
PART = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'


def post(url, content):
    return httpx.post(f"{url}/detect", files={"image": ("a.png", content)}, timeout=60)


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_progress(url):
    return int(float(re.search(r"^\w+_in_progress (\S+)", httpx.get(f"{url}/metrics").text, re.M)[1]))


def test_a_full_queue_is_503_and_recovers(start, gate, picture):
    _, url = start(gate, queue=3)
    with ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, url, picture) for _ in range(3)]
        wait_for(lambda: in_progress(url) == 3)
        rejected = post(url, picture)
        assert httpx.get(f"{url}/health").status_code == 200
        assert gate.calls == 1
        gate.open.set()
        answers = [item.result() for item in accepted]
    assert rejected.status_code == 503 and rejected.headers["retry-after"] == "1"
    assert "3 requests are in progress" in rejected.json()["detail"]
    assert [answer.status_code for answer in answers] == [200] * 3
    assert len({answer.text for answer in answers}) == 1 and in_progress(url) == 0
    assert post(url, picture).status_code == 200


def test_the_time_limit_includes_waiting(start, gate, picture):
    _, url = start(gate, timeout=1)
    with ThreadPoolExecutor(2) as pool:
        started = pool.submit(post, url, picture)
        assert gate.entered.wait(30)
        waited = pool.submit(post, url, picture).result()
    assert started.result().status_code == 504
    assert "took more than 1 s: send a smaller image" in started.result().json()["detail"]
    assert waited.status_code == 503 and waited.headers["retry-after"] == "1"
    assert "busy, detection did not start within 1 s" in waited.json()["detail"]
    gate.open.set()
    wait_for(lambda: "_inference_seconds_count 1.0" in httpx.get(f"{url}/metrics").text)
    assert post(url, picture).status_code == 200
    assert gate.calls == 2  # the request that waited was dropped


def test_slow_uploads_end(start, detector):
    _, url = start(detector, timeout=0.3)
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
        client.sendall(START + b"Content-Length: 1000\r\n\r\n" + PART)
        assert client.recv(10000).startswith(b"HTTP/1.1 408")


def test_connections_without_a_complete_request_are_closed(start, detector):
    _, url = start(detector, timeout=0.5)
    address = "127.0.0.1", int(url.rpartition(":")[2])
    get = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for first in (b"", START, get + b"\r\n", get + b"Content-Length: 1000\r\n\r\n"):
        with socket.create_connection(address, timeout=30) as client:
            client.sendall(first)
            if first.startswith(get):
                assert client.recv(10_000).startswith(b"HTTP/1.1 200")
            begin = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begin < 20:
                    client.sendall(b"G")  # the start of another header, or a part of the body
                    time.sleep(0.1)
            assert 0.2 < time.monotonic() - begin < 10


def test_requests_of_disconnected_clients_are_dropped(start, gate, picture):
    _, url = start(gate, queue=2)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post, url, picture)
        assert gate.entered.wait(30)
        body = PART + picture + bytes(2**22) + b"\r\n--x--\r\n"
        tracemalloc.start()
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as client:
                client.sendall(START + f"Content-Length: {len(body)}\r\n\r\n".encode())
                client.sendall(body)
                wait_for(lambda: in_progress(url) == 2)
            wait_for(lambda: in_progress(url) == 1)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        gate.open.set()
        assert first.result().status_code == 200
    assert post(url, picture).status_code == 200 and gate.calls == 2
    assert kept < 2 * len(body)  # images of dropped requests are not kept


def test_large_bodies_are_rejected_while_they_are_sent(start, detector, picture):
    _, url = start(detector, max_bytes=100_000)
    chunks = (bytes(10_000) for _ in range(1000))
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (bytes(10_000_000), iter([PART, *chunks])):
        assert httpx.post(f"{url}/detect", content=content, headers=headers).status_code == 413
    assert post(url, picture).status_code == 200 and in_progress(url) == 0


def test_shutdown_finishes_the_requests_in_progress(start, gate, picture):
    server, url = start(gate)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, url, picture) for _ in range(2)]
        wait_for(lambda: in_progress(url) == 2)
        server.should_exit = True
        wait_for(lambda: server.app.state.is_stopping)
        with pytest.raises(httpx.TransportError):
            post(url, picture)
        gate.open.set()
        assert [item.result().status_code for item in answers] == [200, 200]
    server.thread.join(30)
    assert not server.thread.is_alive()


@pytest.fixture
def weights(make_cfg, detector, tmp_path):
    cfg = make_cfg(NORM="GN")
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 64, 96
    path = tmp_path / "model_final.pth"
    save_detector(path, detector.model, iteration=0, cfg_text=cfg.dump(), class_names=detector.class_names)
    return path


def launch(weights, *words):
    """Starts the command and returns the process and the URL that it prints."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "ops"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "projects_deformable_detr", "serve", "--weights", str(weights), "--port", "0"]
    process = subprocess.Popen(
        [*command, *words], env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    line = process.stdout.readline()
    match = re.search(r"Serving 5 classes on (http://\S+:\d+) ", line)
    assert match, line + process.communicate()[1]
    return process, match[1]


def test_command(weights, picture):
    process, url = launch(weights, "--host", "0.0.0.0")
    url = url.replace("0.0.0.0", "127.0.0.1")
    try:
        expected = post(url, picture)
        assert expected.status_code == 200 and expected.json()["boxes"]
        with ThreadPoolExecutor(8) as pool:
            answers = [pool.submit(post, url, picture) for _ in range(8)]
            wait_for(lambda: all(item.done() for item in answers) or in_progress(url) > 0)
            process.send_signal(signal.SIGTERM)
            results = []
            for item in answers:
                try:
                    results.append(item.result())
                except httpx.TransportError:  # the server had stopped listening
                    continue
        assert {answer.status_code for answer in results} <= {200, 503}
        assert {answer.text for answer in results if answer.status_code == 200} == {expected.text}
        _, error = process.communicate(timeout=30)
        assert process.returncode == 0, error
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in error
    assert "Warning: 0.0.0.0 can be reached from other machines" in error


def test_the_name_of_the_host_is_accepted(weights, monkeypatch):
    testing = pytest.importorskip("fastapi.testclient")
    resolve, statuses = socket.getaddrinfo, {}

    def getaddrinfo(host, *args, **options):
        return resolve("127.0.0.1" if host == "Detector.test" else host, *args, **options)

    def run(server, sockets):
        with testing.TestClient(server.app) as client:
            for name in ("detector.test:8000", "127.0.0.1", "other.test"):
                statuses[name] = client.get("/health", headers={"Host": name}).status_code

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("projects_deformable_detr.serve.server.Server.run", run)
    assert main(["serve", "--weights", str(weights), "--host", "Detector.test", "--port", "0"]) == 0
    assert statuses == {"detector.test:8000": 200, "127.0.0.1": 200, "other.test": 400}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "{port}"], "port {port} (Address already in use"),
        (["--port", "70000"], "--port: must be in [0, 65535], got 70000"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1, port 8000"),  # an address for documentation
        (["--timeout", "0"], "--timeout: must be above 0, got 0"),
    ],
)
def test_invalid_arguments(words, message, capsys):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        words = [word.replace("{port}", port) for word in words]
        try:
            status = main(["serve", "--weights", "none.pth", *words])
        except SystemExit as exit:
            status = exit.code
    assert status == 2 and message.replace("{port}", port) in capsys.readouterr().err


def test_missing_packages_are_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("projects_deformable_detr.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--weights", "none.pth"]) == 2
    assert "uvicorn, which is not installed: pip install 'projects-deformable-detr[serve]'" in capsys.readouterr().err
