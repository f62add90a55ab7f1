"""Runs the application: socket, signals and shutdown."""

import asyncio
import ipaddress
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import UserError
from ..inference import Detector
from .app import LOOPBACK_HOSTS, create_app
from .limits import Limits


def _with_header_timeout(timeout: float) -> type[H11Protocol]:
    """Returns a protocol that closes connections on which no request is in progress for ``timeout`` seconds.

    uvicorn's own timeout starts after a response and is canceled by the first byte of the next request.
    """

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._start_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self.timer.cancel()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None and not self.cycle.response_complete:
                self.timer.cancel()

        def on_response_complete(self) -> None:
            self._start_timer()  # first, because the base class may start the next request
            super().on_response_complete()

        def _start_timer(self) -> None:
            self.timer = self.loop.call_later(timeout, self.timeout_keep_alive_handler)

    return Protocol


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
                http=_with_header_timeout(limits.timeout),
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


def serve(detector: Detector, listener: socket.socket, limits: Limits | None = None, host: str | None = None) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the requests in progress. Must run in the main thread.

    Prints the address. If it is not a loopback address, prints a warning, and accepts all names in ``Host``.

    Args:
        detector: model to serve.
        listener: socket of `open_socket`.
        limits: limits of requests; None: the defaults.
        host: name of this machine that is accepted in ``Host``, in addition to the address and the loopback names.
    """
    limits = limits or Limits()
    address, port = listener.getsockname()[:2]
    hosts: tuple[str, ...] | None = tuple(dict.fromkeys((*LOOPBACK_HOSTS, address, (host or address).lower())))
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
