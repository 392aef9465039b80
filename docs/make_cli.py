"""Print docs/cli.md: the help of every command, as the command line prints it in a terminal of 80 columns."""

import os
import subprocess
import sys

from rnnlm.cli import COMMANDS

print("# The command line\n")
print("Made by `make docs` from the commands themselves; a test holds this page to them.\n")
print("Exit codes: 0 done, 1 a failed check or run, 2 wrong usage, 130 interrupted. Text goes to standard output,")
print("everything else to standard error. A defect of rnnlm shows its traceback only where RNNLM_TRACEBACK is set.")
for name in ("", *COMMANDS):
    command, environment = (
        [sys.executable, "-m", "rnnlm", *filter(None, [name]), "--help"],
        {**os.environ, "COLUMNS": "80"},
    )
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    print(f"\n## `{f'rnnlm {name}'.rstrip()}`\n\n```\n{text}```")
