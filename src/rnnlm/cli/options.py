"""Options that commands share: types made of the settings' own, groups in the help, a file of settings."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from rnnlm.checking import Unfit, brief, fit, flag, kinds
from rnnlm.errors import SettingsError
from rnnlm.settings import SaveEvery, Threads, cores

CONFIG_LIMIT = 2**20  # bytes of a file of options

# What other programs call it, and what we do: named when it is asked for, never guessed.
OTHER_NAMES = {
    "learning-rate": "lr",
    "debug": "level",
    "alpha": "lr",
    "window": "bptt",
    "seq-len": "bptt",
    "sequence-length": "bptt",
    "bptt-steps": "bptt-truncate",
    "truncate": "bptt-truncate",
    "streams": "batch-size",
    "batch": "batch-size",
    "batchsize": "batch-size",
    "hidden-size": "hidden",
    "nhid": "hidden",
    "num-layers": "layers",
    "nlayers": "layers",
    "emsize": "embedding",
    "embedding-size": "embedding",
    "embedding-dim": "embedding",
    "tie-weights": "tied",
    "rnn-type": "cell",
    "dropouti": "dropout-input",
    "dropouth": "dropout-hidden",
    "wdrop": "dropout-weights",
    "max-epochs": "epochs",
    "num-epochs": "epochs",
    "n-epochs": "epochs",
    "max-iter": "epochs",
    "gradient-clip": "clip",
    "gradient-cutoff": "clip",
    "clip-norm": "clip",
    "max-grad-norm": "clip",
    "l2": "weight-decay",
    "beta": "weight-decay",
    "min-freq": "min-count",
    "max-vocab": "vocab-size",
    "vocabulary": "vocab",
    "lower": "lowercase",
    "random-seed": "seed",
    "rand-seed": "seed",
    "classes": "clusters",
    "class": "clusters",
    "cutoffs": "clusters",
    "validation": "valid",
    "dev": "valid",
    "output": "model",
    "save": "model",
    "rnnlm": "model",
}


RECIPES = Path(__file__).parent.parent / "configs"


class Option(click.Option):
    """An option that the help lists under the heading `group`."""

    def __init__(self, *arguments: Any, group: str = "Options", **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.group = group

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the line of the help; a switch and its opposite are one name."""
        record = super().get_help_record(ctx)
        if record is None or not self.secondary_opts:
            return record
        return f"--[no-]{self.opts[0].removeprefix('--')}", record[1]


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


class Value(click.ParamType):  # type: ignore[type-arg]  # generic in some versions of click only
    """A value of the type and range of an annotation, such as `Annotated[int, Range(1)]`."""

    name = "value"

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Offer paths where a path is wanted."""
        is_path = self.plain is Path or param.metavar in ("PATH", "FILE")
        return [CompletionItem(incomplete, type="file")] if is_path else []

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        """Return what stands for the value in the help."""
        return {int: "N", float: "X", Path: "FILE"}.get(self.plain, "NAME")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or fail."""
        try:
            given = value
            if isinstance(value, str) and self.plain in (int, float):
                given = self.plain(value) if len(value) < 50 and value.isascii() else value
        except ValueError:
            pass
        try:
            if self.plain in (str, Path) and given == "":
                raise Unfit("", given, "a name")
            return fit(self.kind, given, "")
        except Unfit as error:
            self.fail(f"{brief(value)} is not {error.wanted}.", param, ctx)


def option(*names: str, group: str = "Options", **keywords: Any) -> Callable[[Any], Any]:
    """Declare an option of a group; defaults are shown."""
    keywords.setdefault("show_default", True)
    return click.option(*names, cls=Option, group=group, **keywords)


def setting(owner: Any, name: str, help: str, group: str, default: str | None = None) -> Callable[[Any], Any]:
    """Declare the option of a field of settings, which says its type, its range and its default.

    `default` describes a default that is chosen when the command runs.
    """
    kind = kinds(owner)[name]
    (item,) = (item for item in fields(owner) if item.name == name)
    if kind is bool:
        names = f"{flag(name)}/--no-{flag(name)[2:]}"
        return option(names, name, default=False, group=group, show_default=default or False, help=help)
    several = get_origin(kind) is tuple
    while type(None) in get_args(kind) or (several and get_origin(kind) is tuple):
        kind = get_args(kind)[0]
    kind_of_value = click.Choice(get_args(kind)) if get_origin(kind) is Literal else Value(kind)
    chosen = None if item.default in (MISSING, ()) else item.default
    return option(
        flag(name),
        name,
        type=kind_of_value,
        default=chosen,
        multiple=several,
        metavar="FILE" if several else None,
        show_default=default if default else chosen is not None,
        group=group,
        help=help,
    )


def threads_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --threads."""
    return option(
        "--threads",
        type=Value(Threads),
        default=cores,
        show_default="one for each core",
        group=group,
        help="Number of threads; the results do not depend on it.",
    )


ANY_MODEL = "Use this model: its folder, an .npz, an ARPA file or a mixture."


def model_option(group: str = "Options", help: str = "Use this model: its folder, or an .npz.") -> Callable[[Any], Any]:
    """Declare --model."""
    return option("--model", type=Value(str), metavar="PATH", default="model", group=group, help=help)


def json_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --json."""
    return option("--json", "as_json", is_flag=True, group=group, show_default=False, help="Print JSON.")


def picture_option(what: str) -> Callable[[Any], Any]:
    """Declare --picture."""
    text = f"Draw {what} into this SVG, PNG or PDF file."
    return option("--picture", type=Value(Path), callback=check_picture, help=text)


def check_picture(_ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    """Return the path of a picture; raises UsageError where it has another suffix than .svg, .png or .pdf."""
    if path is not None and path.suffix.lower() not in (".svg", ".png", ".pdf"):
        raise click.UsageError(
            f"{parameter.opts[0]} is {brief(str(path))}; it takes a file that ends in .svg, .png or .pdf."
        )
    return path


def refuse_inputs(output: Path, inputs: Iterable[str | None], flag_: str) -> None:
    """Raise UsageError where a file that is to be written is one that is read, or a file of a model."""
    from rnnlm.checkpoint import ModelFolder
    from rnnlm.sources import shown

    around = (ModelFolder(output.parent), ModelFolder(output.parent.parent))  # an encoded text is a folder in one
    what = "a file of a model" if any(folder.owns(output) and folder.holds_model() for folder in around) else ""
    for path in inputs:
        with suppress(OSError, ValueError):  # it is none, or not there
            what = "a file that is read" if path and output.samefile(path) else what
    if what:
        raise click.UsageError(f"{shown(str(output))}: is {what}; name another with {flag_}.")


def given(ctx: click.Context) -> dict[str, Any]:
    """Return the options that the command line or a file of settings gives, by name."""
    said = (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
    return {name: value for name, value in ctx.params.items() if ctx.get_parameter_source(name) in said}


def config_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --config, a TOML file of defaults for the command's other options."""
    return option(
        "--config",
        type=Value(str),
        metavar="NAME|FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        group=group,
        help=f"Read options from a recipe ({', '.join(recipes())}) or a TOML file, as in hidden = 200; the command "
        "line wins.",
    )


def recipes() -> list[str]:
    """List the names of the recipes that come with rnnlm."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def _read_config(ctx: click.Context, _parameter: click.Parameter, path: str | None) -> None:
    if path is None:
        return
    file = RECIPES / f"{path}.toml" if path in recipes() else Path(path)
    names = {
        name.removeprefix("--"): parameter
        for parameter in ctx.command.params
        if isinstance(parameter, click.Option) and parameter.name not in ("config", "resume", "overwrite")
        for name in parameter.opts
        if name.startswith("--")
    }
    defaults: dict[str, Any] = {}
    for key, value in _toml(path, file).items():
        name = key.replace("_", "-")
        if name in ("config", "resume", "overwrite"):
            raise click.UsageError(f"{path}: {name} stands on the command line only.")
        if name not in names:
            hint = _nearest(name, list(names), ctx.command_path)
            raise click.UsageError(f"{path}: there is no setting {brief(key)}{hint}")
        if str(names[name].name) in defaults:
            raise click.UsageError(f"{path}: {name} stands there twice; remove one.")
        defaults[str(names[name].name)] = _config_value(ctx, path, key, names[name], value)
    ctx.meta["rnnlm.config"] = path
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _toml(path: str, place: Path) -> dict[str, Any]:
    """Read a TOML file, which messages call `path`; raises UsageError, in a sentence."""
    import tomllib

    from rnnlm.files import open_plain, reason

    try:
        with open_plain(place) as file:
            content = file.read(CONFIG_LIMIT + 1)
        if len(content) > CONFIG_LIMIT:
            raise click.UsageError(f"{path}: is too large; a file of options has at most {CONFIG_LIMIT:,} bytes.")
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        import difflib

        near = difflib.get_close_matches(path, recipes(), n=1)
        remedy = f"name a TOML file with --config, or a recipe: {', '.join(near or recipes())}"
        raise click.UsageError(f"{path}: cannot be read ({reason(error)}); {remedy}.") from None
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, a number of thousands of digits, very deep
        detail = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "its values are too long or too deep"
        detail = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else detail
        raise click.UsageError(f"{path}: is not a TOML file ({detail}); each line is like hidden = 200.") from None


def _nearest(name: str, names: list[str], command: str) -> str:
    """Return what to say of a name that there is not: its name here, or one that is like it."""
    dashes = "--" * name.startswith("--")
    here = dashes + OTHER_NAMES.get(name.removeprefix("--"), "")
    if here != dashes and here in names:
        return f"; it is called {here} here"
    import difflib

    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else f"; {command} --help lists them"


def _config_value(ctx: click.Context, path: str, key: str, parameter: click.Option, value: Any) -> Any:
    """Convert a value now, so that a wrong one is blamed on the file and not on the command line."""
    several = parameter.multiple and isinstance(value, list)
    for item in value if several else [value]:
        if isinstance(item, bool) != parameter.is_flag or not isinstance(item, bool | int | float | str):
            wanted = "true or false" if parameter.is_flag else "a number or a quoted text"
            raise click.UsageError(f"{path}: {key} is {brief(item)}, and takes {wanted}.")
    value = [value] if parameter.multiple and not several else value
    try:
        converted = parameter.type_cast_value(ctx, value)
        if parameter.callback is not None:
            parameter.callback(ctx, parameter, converted)
    except click.UsageError as error:
        raise click.UsageError(f"{path}: {key}: {error.message}") from None
    return value


def save_every_option(group: str = "Options") -> Callable[[Any], Any]:
    """Declare --save-every."""
    return option(
        "--save-every",
        metavar="N|Nm",
        default="10m",
        callback=_read_interval,
        group=group,
        help="Save for --resume every N windows, or every N minutes, as in 10m.",
    )


def _read_interval(_ctx: click.Context, _parameter: click.Parameter, value: str) -> str:
    try:
        SaveEvery.of(value)
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    return value


def usage_sentence(error: click.ClickException) -> str:
    """Return what is wrong with a command line, as a sentence that ends."""
    message = error.format_message()
    if isinstance(error, click.UsageError) and error.ctx:
        if isinstance(error, click.NoSuchOption):
            message = _no_option(error.option_name, error.ctx)
        elif message.startswith("Got unexpected extra argument"):
            message = f"{message.rstrip('.')}{_surplus(error.ctx.command)}"
    return message if message.endswith((".", "?")) else f"{message}."


def _names(command: click.Command) -> list[str]:
    """Return the options of a command."""
    options = [item for item in command.params if isinstance(item, click.Option)]
    return [name for item in options for name in (*item.opts, *item.secondary_opts)]


def _no_option(name: str, ctx: click.Context) -> str:
    """Say that there is no such option, and which one may be meant: -hidden is --hidden."""
    typed, names = _typed(name), _names(ctx.command)
    longer = typed if typed[:2] == "--" or len(typed) < 3 else f"-{typed}"
    hint = f"; it is {longer}, with two dashes" if longer in names else _nearest(longer, names, ctx.command_path)
    return f"There is no option {brief(typed)[1:-1]}{hint}"


def _typed(name: str) -> str:
    """Return the option that was typed: of -hidden, click complains of -i, as it reads -h -i -d and so on."""
    if name[:2] == "--":
        return name
    typed = [part for part in sys.argv[1:] if part[:1] == "-" and part[1:2] not in ("-", "") and name[1:] in part[1:]]
    return name if name in typed or not typed else typed[0]


def _surplus(command: click.Command) -> str:
    """Return what to do with an argument too many, where that is clear."""
    arguments = [item.name for item in command.params if isinstance(item, click.Argument)]
    if "prompt" in arguments or "sentence" in arguments:
        return "; put a text of several words in quotes"
    return "; name a model with --model" if "--model" in _names(command) and not arguments else ""
