"""`python -m rnnlm` is the same as `rnnlm`."""

import os
import signal

INTERRUPTED = 130

for _number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(_number) != signal.SIG_IGN or _number == signal.SIGINT:  # nohup has us ignore SIGHUP
        signal.signal(_number, lambda *_: os._exit(INTERRUPTED))  # nothing is begun while modules are loading

import sys  # noqa: E402 -- after the signals
from contextlib import suppress  # noqa: E402
from typing import NoReturn  # noqa: E402


def main() -> NoReturn:
    """Run the command line, and exit as `rnnlm.cli.main` says."""
    from rnnlm.errors import UNIX_ONLY

    if sys.platform == "win32":
        sys.exit(f"Error: {UNIX_ONLY}.")
    from rnnlm.cli import is_rank, main

    try:
        main()
    except SystemExit as stop:
        if is_rank():  # MPI has to be told of the end, in a way out that it has asked the C library for
            raise
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(stop.code if isinstance(stop.code, int) else 1)  # a signal in Python's own way out changes the code


if __name__ == "__main__":
    main()
