"""Builds configuration dataclasses from a ``CfgNode``, with config keys in error messages."""

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
        build: dataclass or function.
        cfg: config of either engine.
        keys: maps arguments to config keys.
        others: further arguments, which take precedence over values of config keys.

    Raises:
        UserError: if ``build`` raises `ArgumentError`; the name of the argument is replaced with its config key.
    """
    with naming_keys(keys):
        return build(**{argument: get(cfg, key) for argument, key in keys.items()} | others)


@contextmanager
def naming_keys(keys: Mapping[str, str]) -> Iterator[None]:
    """Inserts config keys into errors raised in the block, see `name_keys`; converts `ArgumentError` to `UserError`."""
    try:
        yield
    except ArgumentError as error:
        raise UserError(f"{keys.get(error.argument, error.argument)} {name_keys(error.problem, keys)}") from error
    except UserError as error:
        message = name_keys(str(error), keys)
        if message == str(error):
            raise
        raise type(error)(message) from error


def name_keys(message: str, keys: Mapping[str, str]) -> str:
    """Replaces arguments in backticks, such as `argument` or `argument=value`, with config keys."""

    def name(match: re.Match[str]) -> str:
        argument, _, value = match[1].partition("=")
        return f"{keys[argument]} {value}".rstrip() if argument in keys else match[0]

    return re.sub(r"`(\w+(?:=[^`]+)?)`", name, message)
