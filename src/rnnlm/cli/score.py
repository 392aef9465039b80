"""`rnnlm score`: the probability of each line or word, in the formats that other tools read."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli.adaptation import adaptation_options, adaptation_settings, tuned
from rnnlm.cli.options import ANY_MODEL, Command, Value, given, json_option, model_option, option, threads_option
from rnnlm.cli.progress import say, stage_bar, warn_of_unknown
from rnnlm.errors import TextError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rnnlm.api import Model
    from rnnlm.mixture import Mixture
    from rnnlm.scoring import Reader, Scored
    from rnnlm.settings import AdaptationSettings

TEXT, OUTPUT = "Text", "Output"
LEVELS = {
    "kenlm": ("0", "1", "2", "summary", "sentence", "word"),
    "srilm": ("0", "1", "2"),
    "mikolov": ("1", "2"),
    "kaldi": (),
    "fasterrnnlm": (),
}
OURS = ("words", "base", "rank", "sum_to", "as_json")  # options of our own formats


@click.command(
    cls=Command,
    short_help="Print the probability of each line or word.",
    epilog="""\b
    Example:
      rnnlm score --words sentences.txt > surprisals.tsv
      echo "This is a sentence." | rnnlm score
    """,
)
@click.argument("files", metavar="[FILE]...", nargs=-1, type=click.Path(allow_dash=True))
@model_option(TEXT, help=ANY_MODEL)
@option("--pretokenized", is_flag=True, show_default=False, group=TEXT, help="Take words as they are, between spaces.")
@option("--encoding", type=Value(str), show_default="that of the training text", group=TEXT, help="Encoding of FILE.")
@option("--keep-state", is_flag=True, show_default=False, group=TEXT, help="Read on from line to line.")
@threads_option(TEXT)
@option("--words", is_flag=True, show_default=False, group=OUTPUT, help="Print a row for each word, with a header.")
@option(
    "--base",
    type=click.Choice(["2", "e", "10"]),
    show_default="10, of words 2",
    group=OUTPUT,
    help="Base of logarithms.",
)
@option("--rank", is_flag=True, show_default=False, group=OUTPUT, help="Add each word's rank, and the entropy there.")
@option(
    "--sum-to",
    type=click.Choice(["blanks"]),
    group=OUTPUT,
    help="Add up the surprisals of what stands between two blanks.",
)
@json_option(OUTPUT)
@option(
    "--format", "as_format", type=click.Choice(list(LEVELS)), group=OUTPUT, help="Print what this other tool prints."
)
@option(
    "--level",
    type=click.Choice(LEVELS["kenlm"]),
    show_default="2",
    group=OUTPUT,
    help="How much of it: KenLM's -v, the -debug of SRILM and Mikolov.",
)
@adaptation_options("text", "sentence", "paragraph")
@click.pass_context
def score(ctx: click.Context, /, files: tuple[str, ...], model: str, threads: int, **options: Any) -> None:
    """Print the probability of each line of FILE..., or of standard input.

    A line is a sentence, and is read by itself: log10 of its probability, the number of predictions (its words and the
    end of the sentence), and how many of its words are unknown. Raw text is cut into words as the training text was. At
    a pipe, each line is answered at once.
    """
    _check(given(ctx), files)
    settings = adaptation_settings(options, files or ("-",))
    from rnnlm.formats import summed
    from rnnlm.mixture import open_scorer

    lm = open_scorer(model, threads, stage_bar)
    files = files or ("-",)
    if "-" in files and sys.stdin.isatty():
        say("Type a sentence, and Enter; Ctrl-D ends.")
    reader = _reader(lm, settings, **options)
    seen: Counter[str] = Counter()
    records = _noted(_records(lm, reader, files, **options), seen)
    if options["sum_to"]:
        records = map(summed, records)
    write = _shown if sys.stdout.isatty() else str
    for text in _format(lm, model, files, **options)(records):
        sys.stdout.write(write(text))
    warn_of_unknown(seen["unknown"], seen["words"], "is the text")


def _reader(
    lm: Model | Mixture,
    settings: AdaptationSettings,
    *,
    keep_state: bool,
    rank: bool,
    pretokenized: bool,
    encoding: str | None,
    tune_on: str | None,
    **_: Any,
) -> Reader:
    """Return what reads sentences, and adapts to them where that is asked for."""
    from rnnlm.mixture import Mixture

    own = lm.line_tokenizer(pretokenized).settings  # as the lines that are scored
    cut = {"pretokenized": own.pretokenized, "lines": own.lines, "encoding": encoding}
    settings = tuned(lm, settings, tune_on, carry_state=keep_state, **cut)
    if settings.active and not isinstance(lm, Mixture):
        return lm.reader(keep_state=keep_state, ranks=rank, adaptation=settings, stage=stage_bar)
    return lm.reader(keep_state=keep_state, ranks=rank)


def _shown(text: str) -> str:
    """Put U+FFFD for what would act on a terminal, which tabs and ends of lines may."""
    from rnnlm.sources import printable

    return re.sub(r"[^\t\n]+", lambda found: printable(found.group()), text)


def _check(options: dict[str, Any], files: tuple[str, ...]) -> None:
    """Refuse options that contradict each other or have no effect; `options` are those that are given."""
    if files.count("-") > 1:
        raise click.UsageError("Standard input can be read only once; give - once.")
    names = [f"--{name.removeprefix('as_').replace('_', '-')}" for name in OURS if options.get(name)]
    as_format, level = options.get("as_format"), options.get("level")
    if as_format and names:
        raise click.UsageError(f"{names[0]} has no effect beside --format; leave one of them out.")
    levels = LEVELS.get(as_format or "", ())
    if level and level not in levels:
        where = f"--format {as_format}" if as_format else "formats of our own"
        remedy = f"it takes {', '.join(levels)}" if levels else "leave it out"
        raise click.UsageError(f"--level {level} has no meaning for {where}; {remedy}.")
    if as_format in ("srilm", "mikolov") and len(files) > 1:
        raise click.UsageError(f"--format {as_format} is of one text; give one FILE.")
    for name in ("rank", "sum_to"):
        if options.get(name) and not options.get("words"):
            raise click.UsageError(f"--{name.replace('_', '-')} is of words; give --words too.")
    if options.get("rank") and options.get("sum_to"):
        raise click.UsageError("--rank is of single predictions, which --sum-to adds up; leave one of them out.")


def _records(
    lm: Model | Mixture,
    reader: Reader,
    files: tuple[str, ...],
    *,
    pretokenized: bool,
    encoding: str | None,
    as_format: str | None,
    adapt_over: str,
    **_: Any,
) -> Iterator[Scored]:
    """Score the lines as they come; what is printed of some is sent before more are waited for."""
    from rnnlm.formats import keyed
    from rnnlm.scoring import scored
    from rnnlm.sources import arriving

    tokenizer = lm.line_tokenizer(pretokenized)
    skipping = as_format in ("srilm", "fasterrnnlm") and adapt_over != "paragraph"  # blank lines, as these tools do
    for file in files:
        for block in arriving(file, tokenizer.settings.encoding if encoding is None else encoding):
            if as_format != "kaldi":
                cut = [line for line in tokenizer.lines(block) if line.words or not skipping]
                yield from scored(cut, reader, lm.unknown)
            else:
                keys, lines = keyed(block.lines)
                if "" in keys:
                    message = "a blank line has no key; begin each line with the key of its utterance"
                    raise TextError(f"{block.name}, line {block.first + keys.index('')}: {message}")
                records = scored(tokenizer.lines(block._replace(lines=lines)), reader, lm.unknown)
                yield from (record._replace(key=key) for key, record in zip(keys, records, strict=True))
            sys.stdout.flush()


def _noted(records: Iterable[Scored], seen: Counter[str]) -> Iterator[Scored]:
    """Pass records on, and count their words."""
    for record in records:
        seen["words"] += len(record.words)
        seen["unknown"] += sum(record.unknown)
        yield record


def _format(
    lm: Model | Mixture,
    model: str,
    files: tuple[str, ...],
    *,
    as_format: str | None,
    words: bool,
    base: str | None,
    as_json: bool,
    rank: bool,
    pretokenized: bool,
    keep_state: bool,
    level: str | None,
    **_: Any,
) -> Callable[[Iterable[Scored]], Iterator[str]]:
    """Return the function that writes records in the format that is asked for."""
    from rnnlm import formats
    from rnnlm.sources import shown

    name, level = shown(files[0]), level or "2"
    match as_format:
        case "kenlm":
            return partial(formats.kenlm, numbers=lm.numbers, lengths=lm.lengths, level=level)
        case "srilm":
            return partial(formats.srilm, name=name, lengths=lm.lengths, level=level)
        case "mikolov":
            return partial(
                formats.mikolov, ids=lm.ids, text=name, model=shown(model), independent=not keep_state, level=level
            )
        case "kaldi":
            return formats.kaldi
        case "fasterrnnlm":
            return partial(formats.faster_rnnlm, tell=say)
    if words:
        spans = not lm.line_tokenizer(pretokenized).settings.pretokenized
        return partial(formats.word_rows, base=base or "2", as_json=as_json, spans=spans, ranks=rank)
    return partial(formats.sentence_rows, base=base or "10", as_json=as_json)
