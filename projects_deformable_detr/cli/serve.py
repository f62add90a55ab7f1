"""Serves a model over HTTP: a web page for images, and POST /detect for programs.

The server listens on the loopback interface unless --host is set. There is neither encryption nor authentication.
Once the address is printed, SIGINT and SIGTERM stop the server after the requests in progress, with exit status 0.

Examples:
  deformable-detr serve --weights output/quickstart
  curl -F image=@street.jpg -F score_threshold=0.5 http://127.0.0.1:8000/detect
"""

import argparse

from ..errors import Range
from ..serve.limits import Limits
from .arguments import add_model_arguments, load_model, number

HELP = "serve a model over HTTP, with a web page"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of the command."""
    add_model_arguments(parser.add_argument_group("model"), with_batches=False)
    server = parser.add_argument_group("server")
    server.add_argument("--host", default="127.0.0.1", help="name or address of this machine (default: %(default)s)")
    server.add_argument(
        "--port", type=number(Range(0, 65535)), default=8000, help="port; 0: any free port (default: %(default)s)"
    )
    limits = parser.add_argument_group("limits of a request")
    for name, range, text in (
        ("max-bytes", Range(1), "size in bytes"),
        ("max-pixels", Range(1), "width times height of the image"),
        ("timeout", Range(above=0), "seconds for the header, and for upload, waiting and detection"),
        ("queue", Range(1), "maximum number of requests that are uploaded, wait or run at the same time"),
    ):
        default = getattr(Limits, name.replace("-", "_"))
        kind = type(default)
        limits.add_argument(
            f"--{name}", type=number(range, kind), default=default, metavar="N", help=f"{text} (default: %(default)s)"
        )


def run(args: argparse.Namespace) -> None:
    """Serves until a signal."""
    from ..serve.server import open_socket, serve

    limits = Limits(args.max_bytes, args.max_pixels, args.timeout, args.queue)
    with open_socket(args.host, args.port) as listener:
        serve(load_model(args), listener, limits, args.host)
