"""`python -m rnnlm` is the same as `rnnlm`."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are loading ends us without a traceback

from rnnlm.cli import main  # noqa: E402 -- for that reason

if __name__ == "__main__":
    main()
