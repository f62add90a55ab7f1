"""Builds configuration dataclasses from a ``CfgNode``; error messages name the config key."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import TypeVar

from fvcore.common.config import CfgNode

from ..errors import ArgumentError, UserError

T = TypeVar("T")


def get(cfg: CfgNode, key: str) -> object:
    """Returns the value of a dotted key such as ``"MODEL.DETR.FOCAL_ALPHA"``; lists are converted to tuples."""
    value: object = reduce(lambda node, name: node[name], key.split("."), cfg)
    return tuple(value) if isinstance(value, list) else value


def read(build: Callable[..., T], cfg: CfgNode, keys: Mapping[str, str], **others: object) -> T:
    """Calls ``build`` with the values of config keys.

    Args:
        build: a dataclass or function.
        cfg: a config of either engine.
        keys: config key of each argument.
        others: further arguments; they take precedence over values of config keys.

    Raises:
        UserError: if ``build`` raises `ArgumentError`; the argument's name is replaced with its config key.
    """
    with naming_keys(keys):
        return build(**{argument: get(cfg, key) for argument, key in keys.items()} | others)


@contextmanager
def naming_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Converts an `ArgumentError` raised in the block to a `UserError` that names config keys.

    The argument, and other arguments in backquotes in the message, are replaced with their keys.
    """
    try:
        yield
    except ArgumentError as error:
        problem = re.sub(r"`(\w+)`", lambda match: keys.get(match[1], match[0]), error.problem)
        raise UserError(f"{keys.get(error.argument, error.argument)} {problem}") from error
