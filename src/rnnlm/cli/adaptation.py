"""Options of the commands whose model may adapt to what it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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


def adaptation(
    lm: Model | Mixture, options: dict[str, Any], files: tuple[str, ...] = (), **cut: Any
) -> AdaptationSettings:
    """Return the settings that the options of a command make, and find what shall be tuned.

    `cut` says how the text to tune on is read, as `Model.tune_cache` takes it. Raises UsageError where options
    contradict each other, and what `tune_cache` raises.
    """
    given = {name: options[name] for name in HELP if name in options}
    tune_on = given.pop("tune_on")
    try:
        settings = AdaptationSettings(**given)
        if tune_on is not None:
            settings.check_tuning()
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None
    asked = [text for text in (*files, tune_on, settings.dynamic_rms) if text == "-"]
    if len(asked) > 1:
        raise click.UsageError("Standard input can be read only once; give '-' once.")
    if not hasattr(lm, "tune_cache"):
        if settings != AdaptationSettings():
            name = "--cache" if settings.cache else "--dynamic"
            raise SettingsError(f"{name} is for a model of ours alone; leave it out")
    elif tune_on is not None:
        found = lm.tune_cache(tune_on, stage=stage_bar, **cut, **given)
        say("Found: " + " ".join(f"{flag(name)} {value:g}" for name, value in found.items()))
        settings = replace(settings, **found)
    return settings
