"""Runs the application: socket, signals and shutdown."""

import ipaddress
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from ..errors import UserError
from ..inference import Detector
from .app import LOOPBACK_HOSTS, create_app
from .limits import Limits


class Server(uvicorn.Server):
    """Server that finishes the requests in progress when it stops.

    Args:
        app: application of `create_app`.
        limits: limits of requests.
        message: printed when requests are accepted and signals stop the server.
    """

    def __init__(self, app: FastAPI, limits: Limits, message: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                log_level="warning",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=int(limits.timeout) + 1,
            )
        )
        self.app, self.message = app, message

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self.message, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.app.state.is_stopping = True
        await super().shutdown(sockets)


def open_socket(host: str, port: int) -> socket.socket:
    """Opens a listening socket; port 0 is a free port.

    Raises:
        UserError: if the host is unknown, or the port is in use or not permitted.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"cannot listen on {host}, port {port} ({reason}): change --host or --port") from error


def serve(detector: Detector, listener: socket.socket, limits: Limits | None = None) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the requests in progress. Must run in the main thread.

    Prints the address. If it is not a loopback address, prints a warning, and accepts all names in ``Host``.

    Args:
        detector: model to serve.
        listener: socket of `open_socket`.
        limits: limits of requests; None: the defaults.
    """
    limits = limits or Limits()
    address, port = listener.getsockname()[:2]
    hosts: tuple[str, ...] | None = tuple(dict.fromkeys((*LOOPBACK_HOSTS, address)))
    if not ipaddress.ip_address(address).is_loopback:
        hosts = None
        warning = "can be reached from other machines, without encryption and authentication"
        print(f"Warning: {address} {warning}", file=sys.stderr)
    shown = f"[{address}]" if ":" in address else address
    message = f"Serving {len(detector.class_names)} classes on http://{shown}:{port} (Ctrl+C stops)"
    # uvicorn raises the signals again after its shutdown; with these handlers they do not end the process.
    previous = {signum: signal.signal(signum, lambda *_: None) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        Server(create_app(detector, limits, hosts), limits, message).run(sockets=[listener])
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
