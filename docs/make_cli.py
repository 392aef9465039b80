"""Print docs/cli.md: the help of every command, as the command line prints it."""

import click

from rnnlm.cli import COMMANDS, commands

print("# The command line\n")
print("Made by `make docs` from the commands themselves; a test holds this page to them.\n")
print("Exit codes: 0 done, 1 a failed check or run, 2 wrong usage, 130 interrupted. Text goes to standard output,")
print("everything else to standard error. A defect of rnnlm shows its traceback only where RNNLM_TRACEBACK is set.")
for name in (None, *COMMANDS):
    command = commands if name is None else commands.get_command(click.Context(commands), name)
    assert command is not None
    title = "rnnlm" if name is None else f"rnnlm {name}"
    with click.Context(command, info_name=title, terminal_width=100, max_content_width=100) as context:
        print(f"\n## `{title}`\n\n```\n{command.get_help(context)}\n```")
