"""Stopping a training by a signal, between two steps."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from rnnlm.cli import INTERRUPTED, STOP_SIGNALS, handle_signals, leave
from rnnlm.cli.progress import say, typed

if TYPE_CHECKING:
    from types import FrameType


def tell_cut_off(model: str) -> None:
    """Say how to go on with a training that was ended at once, and exit; return where nothing is saved."""
    from rnnlm.checkpoint import ModelFolder

    folder = ModelFolder(model)
    if folder.new.exists() or folder.last.exists():
        say("Interrupted at once; what was saved last is kept.")
        say(f"Go on with: {typed('train --resume', model)}")
        raise click.exceptions.Exit(INTERRUPTED)


class Stop:
    """Whether a signal to stop has come."""

    come = False
    armed = False  # whether training then ends between two steps; if not, what goes on ends at once


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Collect signals to stop, so that training ends between two steps; the second one ends it at once."""
    received = Stop()

    def note(number: int, _frame: FrameType | None) -> None:
        if received.come or not received.armed:
            handle_signals(leave)  # one more ends us at once
            raise KeyboardInterrupt
        received.come = True

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
