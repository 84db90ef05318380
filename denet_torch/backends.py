"""Names of backends, and which of them the environment variable DENET_BACKENDS asks for; without PyTorch.

A module of its own, as `denet_program` calls it before a command imports anything else.
"""

import os
from collections.abc import Iterable
from pathlib import Path

VARIABLE = "DENET_BACKENDS"


def installed() -> list[str]:
    """The folders of `fast`."""
    return [path.parent.name for path in Path(__file__).with_name("fast").glob("*/__init__.py")]


def known(names: tuple[str, ...], there: Iterable[str]) -> tuple[str, ...]:
    """`names`; ValueError for one that is neither `there` nor "plain"."""
    there = [*sorted(there), "plain"]
    if odd := [name for name in names if name not in there]:
        raise ValueError(f"{odd[0]!r} is no backend: there are {', '.join(there)}")
    return names


def asked(there: Iterable[str]) -> tuple[str, ...] | None:
    """The names in DENET_BACKENDS, which has commas between them; None if it is empty. ValueError as `known`."""
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    try:
        return known(tuple(name.strip() for name in text.split(",")), there)
    except ValueError as error:
        raise ValueError(f"{VARIABLE} in the environment: {error}") from None
