"""Options of the commands whose model may adapt to what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from rnnlm.checking import flag
from rnnlm.cli.options import Value, option, setting
from rnnlm.cli.progress import say, stage_bar
from rnnlm.errors import SettingsError
from rnnlm.settings import CACHE_FLATNESS, CACHE_WEIGHT, DYNAMIC_DECAY, AdaptationSettings

if TYPE_CHECKING:
    from rnnlm.api import Model
    from rnnlm.mixture import Mixture

GROUP = "Adaptation to what is read"
DEFAULTS = {"cache_weight": CACHE_WEIGHT, "cache_flatness": CACHE_FLATNESS, "dynamic_decay": DYNAMIC_DECAY}
HELP = {
    "cache": "Expect words again that followed a similar state at the last N positions; 0: no cache.",
    "cache_weight": "Weight of what the cache expects.",
    "cache_flatness": "How much more similar states count.",
    "tune_on": "Find weight and flatness on this text.",
    "dynamic": "After each segment of words take a step of SGD with this rate; 0: no step.",
    "dynamic_rms": "Divide steps by the mean size of gradients over this text, that of the training.",
    "dynamic_decay": "Go back to the model by about this share at each such step.",
    "adapt_over": "Forget what was learned at the end of each.",
}


def adaptation_options(*scopes: str) -> Callable[[Any], Any]:
    """Declare the options that are fields of AdaptationSettings, and --tune-on.

    `scopes` are those of --adapt-over that the command knows; without any there is no such option.
    """
    names = [name for name in HELP if name not in ("tune_on", "dynamic_rms", "adapt_over")]
    declared = {name: setting(AdaptationSettings, name, HELP[name], GROUP, _default(name)) for name in names}
    for name in ("tune_on", "dynamic_rms"):
        declared[name] = option(flag(name), type=Value(str), metavar="FILE", group=GROUP, help=HELP[name])
    if scopes:
        choice = click.Choice(scopes)
        declared["adapt_over"] = option(
            "--adapt-over", type=choice, default=scopes[0], group=GROUP, help=HELP["adapt_over"]
        )

    def declare(function: Any) -> Any:
        for name in reversed([name for name in HELP if name in declared]):
            function = declared[name](function)
        return function

    return declare


def _default(name: str) -> str | None:
    return f"{DEFAULTS[name]:g}" if name in DEFAULTS else None


def adaptation_settings(options: dict[str, Any], files: tuple[str, ...]) -> AdaptationSettings:
    """Make settings of the options of a command that reads files; raises UsageError where they contradict."""
    given = {name: options[name] for name in HELP if name in options and name != "tune_on"}
    try:
        settings = AdaptationSettings(**given)
        if options["tune_on"] is not None:
            settings.check_tuning()
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    if [*files, options["tune_on"], settings.dynamic_rms].count("-") > 1:
        raise click.UsageError("Standard input can be read only once; give '-' once.")
    return settings


def tuned(lm: Model | Mixture, settings: AdaptationSettings, tune_on: str | None, **cut: Any) -> AdaptationSettings:
    """Find what shall be found on a text, which `cut` says how to read, as `Model.tune_cache` takes it; and tell it.

    Raises what that raises, and SettingsError where the model cannot adapt.
    """
    from rnnlm.api import Model

    if not isinstance(lm, Model):
        if settings.cache or settings.dynamic:
            raise SettingsError(
                f"--{'cache' if settings.cache else 'dynamic'} is for a model of ours alone; leave it out"
            )
    elif tune_on is not None:
        found = lm.tune_cache(tune_on, stage=stage_bar, **cut, **asdict(settings))
        say("Found: " + " ".join(f"{flag(name)} {value:g}" for name, value in found.items()))
        return AdaptationSettings(**{**asdict(settings), **found})
    return settings
