"""`rnnlm rescore`: n-best lists with a model's scores, or the best hypothesis of each."""

from __future__ import annotations

import gzip
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from rnnlm.checking import flag
from rnnlm.cli.adaptation import HELP, adaptation_options, adaptation_settings, tuned
from rnnlm.cli.options import (
    ANY_MODEL,
    Command,
    Value,
    given,
    model_option,
    option,
    refuse_inputs,
    setting,
    threads_option,
)
from rnnlm.cli.progress import bar, say, stage_bar, warn_of_unknown
from rnnlm.errors import SettingsError
from rnnlm.settings import AdaptationSettings, RescoringSettings

if TYPE_CHECKING:
    from rnnlm.adapting import Adapting
    from rnnlm.nbest import NBestFile, Weights
    from rnnlm.rescoring import AnyModel, Found, Rescored
    from rnnlm.sources import Source

LISTS, CHOICE = "Lists", "Choice of the best"
FORMATS = ("moses", "srilm", "kaldi", "mikolov", "tsv")
WEIGHTS = ("weight", "old_weight", "word_penalty", "context")


@click.command(
    cls=Command,
    short_help="Score the hypotheses of n-best lists.",
    epilog="""\b
    Example:
      rnnlm rescore dev.nbest --tune dev.ref
      rnnlm rescore test.nbest --best --weight 0.5 --word-penalty -0.2
    """,
)
@click.argument("lists", metavar="LIST...", nargs=-1, required=True, type=click.Path(allow_dash=True))
@model_option(LISTS, help=ANY_MODEL)
@option("--format", "format_", type=click.Choice(FORMATS), group=LISTS, help="Format, where the lists do not tell it.")
@option("--output", type=Value(str), metavar="PATH", group=LISTS, help="Write here: a file, or a folder for many.")
@threads_option(LISTS)
@option("--best", is_flag=True, show_default=False, group=CHOICE, help="Write the best hypothesis of each list alone.")
@setting(RescoringSettings, "weight", "Weight of the model's score.", CHOICE)
@setting(RescoringSettings, "old_weight", "Weight of the score in the list.", CHOICE, "1; srilm: 0")
@setting(RescoringSettings, "word_penalty", "Add this for each word.", CHOICE)
@setting(RescoringSettings, "context", "Read each list on from the best of the one before.", CHOICE)
@option(
    "--tune",
    type=Value(str),
    metavar="FILE",
    group=CHOICE,
    help="Find weights, by the right words: lines of ID WORDS, or for Moses in order.",
)
@adaptation_options()
@click.pass_context
def rescore(
    ctx: click.Context, /, lists: tuple[str, ...], model: str, format_: str | None, threads: int, **others: Any
) -> None:
    """Write n-best lists again, with a score of the model for each hypothesis, in their own format.

    A list is plain or gzip, or - for standard input; words stand as the model knows them, separated by blanks. What
    moses, srilm, kaldi and mikolov are is told by the lines of those programs; tsv has a header with the columns id and
    text, and perhaps score. The best hypothesis is the first with the greatest sum of weighted scores.
    """
    best, tune, output = others["best"], others["tune"], others["output"]
    options = {name: value for name, value in given(ctx).items() if name in WEIGHTS}
    settings = _checked(options, best, tune, output, [name for name in given(ctx) if name in HELP])
    adaptation = adaptation_settings(others, lists)
    places = _places(lists, output, best or tune is not None, (model, others["tune_on"], others["dynamic_rms"]))
    from rnnlm.mixture import open_scorer
    from rnnlm.nbest import NBestFile
    from rnnlm.rescoring import look, weights_for
    from rnnlm.sources import spooled

    if tune is not None:
        from rnnlm.tuning import word_errors

        word_errors()  # or say that it is missing, before anything is read
    lm = open_scorer(model, threads, stage_bar)
    with spooled(lists if tune is None else (*lists, tune)) as sources:
        files = [NBestFile.of(source, format_) for source in sources[: len(lists)]]
        _check_effects(files, options, best or tune is not None or adaptation.active)
        weights = weights_for(files[0].format, settings)
        keys: set[str] = set()
        found = [look(file, lm, keys) for file in files]
        _check_order(files, found, best or tune is not None)
        words, unknown = (sum(getattr(one, name) for one in found) for name in ("words", "unknown"))
        warn_of_unknown(unknown, words, "are the lists")
        reader = _reader(lm, adaptation, others["tune_on"], settings.context == "previous")
        hypotheses = sum(one.hypotheses for one in found)
        if tune is not None:
            _tune(files, lm, sources[-1], hypotheses)
            return
        with bar("scoring", hypotheses, " hypotheses") as progress:
            _write(files, lm, settings, reader, weights, places, best, progress.update)


def _checked(
    options: dict[str, Any], best: bool, tune: str | None, output: str | None, adapting: Sequence[str]
) -> RescoringSettings:
    """Make settings of the options; raises UsageError where some contradict each other."""
    if tune is not None and (options or best or output is not None or adapting):
        other = "--best" if best else "--output" if output is not None else flag(next(iter([*options, *adapting])))
        raise click.UsageError(f"--tune finds weights and writes no list; leave {other} out.")
    try:
        return RescoringSettings(**options)
    except SettingsError as error:
        raise click.UsageError(f"{error}.") from None


def _reader(lm: AnyModel, settings: AdaptationSettings, tune_on: str | None, carry_state: bool) -> Adapting | None:
    """Return what adapts to the best hypotheses, where that is asked for."""
    from rnnlm.api import Model

    settings = tuned(lm, settings, tune_on, pretokenized=True, carry_state=carry_state)
    return lm.adapting(settings, carry_state, stage_bar) if settings.active and isinstance(lm, Model) else None


def _check_effects(files: Sequence[NBestFile], options: dict[str, Any], chosen: bool) -> None:
    """Refuse lists of several formats, and options without effect on theirs."""
    names = dict.fromkeys(file.format.name for file in files)
    if len(names) > 1:
        raise SettingsError(f"the lists are of the formats {' and '.join(names)}; give lists of one format at a time")
    if len({file.format.old_weight is None for file in files}) > 1:
        message = "some tables have a column score and others do not"
        raise SettingsError(f"{message}; give lists of one kind at a time")
    if chosen or options.get("context") == "previous":
        return
    (name,) = names
    effective = ("weight", "old_weight", "context") if name == "srilm" else ("context",)
    for option_ in options:
        if option_ not in effective:
            raise SettingsError(f"{flag(option_)} has no effect on {name} lists without --best; add that")


def _check_order(files: Sequence[NBestFile], found: Sequence[Found], chosen: bool) -> None:
    """Refuse lists in pieces where one hypothesis of each is wanted."""
    from rnnlm.errors import TextError
    from rnnlm.sources import printable

    for file, one in zip(files, found, strict=True):
        if chosen and one.again:
            line, key = one.again
            message = f"line {line}: the ID {printable(key)!r} comes again after others"
            raise TextError(f"{file.source.name}, {message}; put the hypotheses of a list next to each other")


def _tune(files: Sequence[NBestFile], lm: AnyModel, references: Source, hypotheses: int) -> None:
    """Print the options that give the fewest word errors, and say what they give."""
    from rnnlm.tuning import tune

    with bar("scoring", hypotheses, " hypotheses") as progress:  # it is gone before anything is printed
        tuned = tune(files, lm, references, progress.update)
    for what, errors in (
        ("first of each list", tuned.first),
        ("best by these weights", tuned.tuned),
        ("best that there is", tuned.fewest),
    ):
        say(f"{what:<22} {errors:>9,} word errors of {tuned.words:,}  {tuned.rate(errors):8.2%}")
    weights = {"--weight": tuned.weights.model, "--word-penalty": tuned.weights.penalty}
    if files[0].format.old_weight is not None:
        weights["--old-weight"] = tuned.weights.old
    click.echo(" ".join(f"{name} {value:g}" for name, value in weights.items()))


def _write(
    files: Sequence[NBestFile],
    lm: AnyModel,
    settings: RescoringSettings,
    reader: Adapting | None,
    weights: Weights,
    places: Sequence[Path | None],
    best: bool,
    update: Callable[[int], Any],
) -> None:
    """Write each list to its place, or the best of all to the only one."""
    from rnnlm.rescoring import rescore

    if len(places) > 1:
        _make(places[0])
    rescored = rescore(files, lm, settings, reader)
    for number, of_place in itertools.groupby(rescored, key=lambda one: 0 if best else files.index(one.file)):
        header = None if best else files[number].format.header
        with _opened(places[number]) as out:
            out.write(b"" if header is None else f"{header}\n".encode())
            for one in of_place:
                out.writelines(_lines(one, weights, best))
                update(len(one.hypotheses))


def _lines(one: Rescored, weights: Weights, best: bool) -> Iterator[bytes]:
    """Yield the lines of a list, or of its best hypothesis."""
    format_ = one.file.format
    if best:
        yield f"{format_.best(one.hypotheses[one.best])}\n".encode()
        return
    for hypothesis, score in zip(one.hypotheses, one.scores, strict=True):
        yield f"{format_.write(hypothesis, score, weights)}\n".encode()


def _places(lists: Sequence[str], output: str | None, one: bool, read: Sequence[str | None]) -> list[Path | None]:
    """Say where each list is written, or the one place for all; None is standard output. What is `read` is kept."""
    if output in (None, "-"):
        if len(lists) > 1 and not one:
            raise click.UsageError("Several lists are written to a folder; name it with --output, or give one list.")
        return [None]
    path = Path(str(output))
    if one or (len(lists) == 1 and not path.is_dir()):
        places = [path]
    else:
        names = [Path(name).name for name in lists]
        if "-" in names or len(set(names)) < len(names):
            raise click.UsageError("In a folder each list has its own name; give files of different names.")
        places = [path / name for name in names]
    for place in places:
        if place.exists() and not place.is_file():  # /dev/null would be replaced
            raise SettingsError(f"{_named(place)}: is no plain file; name another with --output")
        refuse_inputs(place, (*lists, *read), "--output")
    return list(places)


def _make(place: Path | None) -> None:
    """Make the folder of a place, unless there is one."""
    from rnnlm.files import reason

    folder = Path() if place is None else place.parent
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        why = f"cannot be made ({reason(error)})"
        raise SettingsError(f"{_named(folder)}: {why}; name another folder with --output") from None


def _named(place: Path) -> str:
    """Return a path as a terminal can show it."""
    from rnnlm.sources import shown

    return shown(str(place))


@contextmanager
def _opened(place: Path | None) -> Iterator[BinaryIO | gzip.GzipFile]:
    """Open a place to write; a file there is replaced when all is written."""
    from rnnlm.files import replacing

    if place is None:
        yield sys.stdout.buffer
        return
    with replacing(place, SettingsError, "name another with --output") as file:
        if place.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as compressed:  # the same bytes at any time
                yield compressed
        else:
            yield file
