#!/usr/bin/env python3
"""Sends requests from several clients to `deformable-detr serve`: latency, memory, and lost or wrong responses.

benchmarks/serve.py output/quickstart photos/ [--requests 1000] [--clients 8] [--queue 4]

Starts the command in a process of its own; its options, such as ``--queue``, are passed to it. Each client sends one
request at a time on a new connection, and repeats requests that are rejected with status 503 after the time in
Retry-After. Latency is the time of the successful attempt. The responses for equal images must be equal. Memory is the
resident memory of the server from its metrics.
"""

import argparse
import contextlib
import http.client
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def encode(path: Path) -> bytes:
    """Returns the body of a request, a form with the boundary "x"."""
    head = f'--x\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n\r\n'
    return head.encode() + path.read_bytes() + b"\r\n--x--\r\n"


def send(host: str, body: bytes | None = None, path: str = "/detect") -> tuple[int, float, bytes]:
    """Returns status, seconds to wait before the next attempt, and body of the response."""
    connection = http.client.HTTPConnection(host, timeout=120)
    headers = {"Content-Type": "multipart/form-data; boundary=x"} if body else {}
    with contextlib.closing(connection):
        connection.request("POST" if body else "GET", path, body, headers)
        response = connection.getresponse()
        return response.status, float(response.headers.get("Retry-After", 0)), response.read()


def run(host: str, bodies: list[bytes], requests: int, clients: int) -> None:
    """Sends the requests and prints a table in Markdown."""
    statuses: Counter[int] = Counter()
    responses: dict[int, set[bytes]] = {index: set() for index in range(len(bodies))}
    latencies: list[float] = []
    memory: list[float] = []

    def resident() -> float:
        text = send(host, path="/metrics")[2].decode()
        found = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert found is not None
        return float(found[1]) / 1e6

    def detect(number: int) -> None:
        index = number % len(bodies)
        while True:
            start = time.perf_counter()
            status, wait, content = send(host, bodies[index])
            seconds = time.perf_counter() - start
            statuses[status] += 1
            if status != 503:
                break
            time.sleep(wait)
        if status == 200:
            latencies.append(seconds)
            responses[index].add(content)
        if number % max(1, requests // 10) == 0:
            memory.append(resident())

    for number in range(len(bodies)):  # warm-up
        detect(number)
    statuses.clear(), latencies.clear(), memory.clear()
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(detect, range(requests)))
    total = time.perf_counter() - start
    memory.append(resident())
    differing = sum(len(found) > 1 for found in responses.values())
    cuts = statistics.quantiles(latencies, n=100)
    print("| requests | clients | responses | images/s | p50 | p90 | p99 | max | memory of the server, MB |")
    print("|" + "---|" * 9)
    times = " | ".join(f"{1000 * value:.0f} ms" for value in (cuts[49], cuts[89], cuts[98], max(latencies)))
    counts = ", ".join(f"{count} × {status}" for status, count in sorted(statuses.items()))
    series = ", ".join(f"{value:.0f}" for value in memory)
    print(f"| {requests} | {clients} | {counts} | {len(latencies) / total:.1f} | {times} | {series} |")
    print(f"{requests - len(latencies)} requests lost; {differing} of {len(bodies)} images with different responses")


def main() -> None:
    """Starts the server, runs the benchmark and stops the server."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="see deformable-detr serve")
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--requests", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="(default: %(default)s)")
    parser.add_argument("--distinct", type=int, default=50, help="number of different images (default: %(default)s)")
    args, options = parser.parse_known_args()
    paths = sorted(path for path in args.images.iterdir() if path.is_file())[: args.distinct]
    command = [sys.executable, "-m", "projects_deformable_detr", "serve", "--weights", args.weights, "--port", "0"]
    server = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r"http://(\S+)", server.stdout.readline())
        assert found is not None, "the server did not start"
        run(found[1], [encode(path) for path in paths], args.requests, args.clients)
    finally:
        server.send_signal(signal.SIGTERM)
        print(f"exit status of the server: {server.wait(60)}")


if __name__ == "__main__":
    main()
