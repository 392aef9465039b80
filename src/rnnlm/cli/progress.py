"""Progress bars on standard error, which stay away where that is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tqdm import tqdm


def bar(description: str, total: int | None = None, unit: str = "", delay: float = 1, **keywords: Any) -> tqdm[Any]:
    """Return a bar, shown after `delay` seconds; `update(n)` moves it."""
    from tqdm import tqdm

    # disable=None: only where standard error is a terminal
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=True,
        file=sys.stderr,
        disable=None,
        delay=delay,
        dynamic_ncols=True,
        leave=False,
        **keywords,
    )


@contextmanager
def stage_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for a stage of reading a text, `total` bytes long; yields what moves it."""
    with bar(description, total or None, "B") as progress:

        def move(done: int) -> None:
            progress.update(done)

        yield move


def say(message: str) -> None:
    """Write a line on standard error, above a bar if there is one."""
    if sys.stderr.isatty():
        from tqdm import tqdm

        tqdm.write(message, file=sys.stderr)
    else:
        click.echo(message, err=True)
