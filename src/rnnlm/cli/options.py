"""Options that commands share: groups in the help, a file of settings, sizes of machines."""

import difflib
import math
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Option(click.Option):
    """An option that the help lists under the heading `group`."""

    def __init__(self, *arguments: Any, group: str = "Options", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group


class Command(click.Command):
    """A command whose help lists its options by group."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section of the help for each group, in the order of their first options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):  # arguments stand in the usage line
                groups.setdefault(getattr(parameter, "group", "Options"), []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def option(*names: str, group: str = "Options", **keywords: Any) -> Callable[[Any], Any]:
    """Declare an option of a group; defaults are shown."""
    keywords.setdefault("show_default", True)
    return click.option(*names, cls=Option, group=group, **keywords)


def cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --threads."""
    return option(
        "--threads",
        type=click.IntRange(1, 1024),
        default=cores,
        show_default="the cores that this process may use",
        group=group,
        help="Threads, and processes that tokenize. They change the speed and no result.",
    )


def model_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --model of a command that reads one."""
    return option(
        "--model",
        type=click.Path(path_type=Path),
        default="model",
        group=group,
        help="The model: its folder, or an .npz file in it.",
    )


def json_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --json."""
    return option("--json", "as_json", is_flag=True, group=group, show_default=False, help="Print the figures as JSON.")


def config_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --config, a TOML file of defaults for the command's other options."""
    return option(
        "--config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        group=group,
        help="A TOML file of defaults, `hidden = 200` for --hidden 200; what the command line says wins.",
    )


def _read_config(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        values = tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(
            f"{path}: is not a TOML file ({error}); each line sets an option, as in hidden = 200."
        ) from None
    names = {
        name.removeprefix("--"): parameter
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("config", "resume", "overwrite")
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        if key not in names:
            near = difflib.get_close_matches(key.replace("_", "-"), names, n=1, cutoff=0.0)[0]
            raise click.UsageError(f"{path}: there is no setting {key!r}; the nearest is {near!r}.")
        defaults[str(names[key].name)] = _config_value(ctx, path, key, names[key], value)
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _config_value(ctx: click.Context, path: Path, key: str, parameter: click.Option, value: Any) -> Any:
    """Convert a value now, so that a wrong one is blamed on the file and not on the command line."""
    several = parameter.multiple and isinstance(value, list)
    for item in value if several else [value]:
        if isinstance(item, bool) != parameter.is_flag or not isinstance(item, bool | int | float | str):
            wanted = "true or false" if parameter.is_flag else "a number or a quoted text"
            raise click.UsageError(f"{path}: {key} wants {wanted}.")
        if isinstance(item, float) and isinstance(parameter.type, click.IntRange):
            raise click.UsageError(f"{path}: {key} wants a whole number.")
    value = [value] if parameter.multiple and not several else value
    try:
        converted = parameter.type_cast_value(ctx, value)
        if parameter.callback is not None:
            parameter.callback(ctx, parameter, converted)
    except click.BadParameter as error:
        raise click.UsageError(f"{path}: {key} = {value!r}: {error.message}") from None
    return value


class Number(click.FloatRange):
    """A number of a range; not-a-number and infinity lie in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        return number


def save_every_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --save-every; the command gets windows and seconds, of which the one not asked for is 0."""
    return option(
        "--save-every",
        metavar="N|Nm",
        default="10m",
        callback=_read_interval,
        group=group,
        help="Windows, or minutes as in 10m, between savings that --resume can go on from.",
    )


def _read_interval(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, float]:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(m?)", value)
    if match is None or float(match[1]) == 0 or (not match[2] and "." in match[1]):
        raise click.BadParameter(f"{value!r} is neither a number of windows, as in 500, nor of minutes, as in 10m.")
    return (0, float(match[1]) * 60) if match[2] else (int(match[1]), 0.0)
