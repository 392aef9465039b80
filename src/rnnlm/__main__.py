"""`python -m rnnlm` is the same as `rnnlm`."""

import os
import signal
import sys

for _number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
    if signal.getsignal(_number) != signal.SIG_IGN or _number == signal.SIGINT:  # nohup has us ignore SIGHUP
        signal.signal(_number, lambda *_: os._exit(130))  # nothing is begun while modules are loading

if sys.platform == "win32":
    sys.exit("Error: rnnlm runs on Linux, macOS and other Unix systems; on Windows, run it in WSL.")

from rnnlm.cli import main  # noqa: E402 -- after the signals

if __name__ == "__main__":
    main()
