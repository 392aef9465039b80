"""`rnnlm train`: from a text to a model."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnlm.cli import INTERRUPTED
from rnnlm.cli.options import Command, Number, config_option, option, save_every_option, threads_option
from rnnlm.cli.progress import bar, say, stage_bar
from rnnlm.errors import SettingsError

if TYPE_CHECKING:
    from types import FrameType

    from tqdm import tqdm

    from rnnlm.checkpoint import ModelFolder, RunSettings
    from rnnlm.model import Workspace
    from rnnlm.run import Run
    from rnnlm.training import Evaluation, Progress

TEXT, SHAPE, TRAINING, RUN = "Text", "Model", "Training", "Running"


@click.command(
    cls=Command,
    epilog="""\b
    Example:
      rnnlm train corpus.txt --hidden 200 --model big
      rnnlm train --resume --model big
    """,
)
@click.argument("corpus", nargs=-1, type=click.Path(allow_dash=True))
@option(
    "--valid",
    multiple=True,
    type=click.Path(),
    group=TEXT,
    show_default=False,
    help="A text to validate on; may be given several times. [default: the end of the corpus]",
)
@option(
    "--valid-fraction",
    type=Number(0, 0.5, min_open=True),
    default=0.05,
    group=TEXT,
    help="Share of the corpus, from its end, that is held out for validation when no --valid is given.",
)
@option("--pretokenized", is_flag=True, group=TEXT, help="One sentence a line, words separated by blanks.")
@option("--lowercase", is_flag=True, group=TEXT, help="Fold all words to lower case.")
@option("--encoding", default="utf-8", group=TEXT, help="Encoding of the texts.")
@option(
    "--vocab-size",
    type=click.IntRange(3),
    default=8000,
    group=TEXT,
    help="Words to know, </s> and <unk> included; the most frequent are kept.",
)
@option("--min-count", type=click.IntRange(1), default=1, group=TEXT, help="Occurrences that a word needs to be known.")
@option(
    "--vocab",
    "vocabulary_file",
    type=click.Path(path_type=Path),
    group=TEXT,
    help="A file of the words to know, one a line, instead of choosing them by count.",
)
@option("--hidden", type=click.IntRange(1, 100_000), default=100, group=SHAPE, help="Hidden units.")
@option(
    "--clusters",
    type=click.IntRange(1, 1000),
    group=SHAPE,
    show_default="as many as are quickest",
    help="Clusters of words, by frequency, in which the softmax is computed; 1: one softmax over all words.",
)
@option(
    "--truncate",
    type=click.IntRange(0),
    group=SHAPE,
    show_default="to the window's first step",
    help="Steps that the error of an output reaches back.",
)
@option(
    "--carry-state",
    is_flag=True,
    group=SHAPE,
    help="Carry the state from sentence to sentence, in text order, instead of starting each from zero.",
)
@option(
    "--window",
    type=click.IntRange(0),
    default=35,
    group=TRAINING,
    help="Steps between updates; 0: a sentence of each stream.",
)
@option(
    "--streams",
    type=click.IntRange(1),
    group=TRAINING,
    show_default="8 to 64, by the size of the text",
    help="Sequences that advance side by side.",
)
@option(
    "--optimizer",
    type=click.Choice(["sgd", "adagrad", "adam"]),
    default="sgd",
    group=TRAINING,
    help="How gradients become steps.",
)
@option(
    "--lr",
    "learning_rate",
    type=Number(0, min_open=True),
    group=TRAINING,
    show_default="0.00075 for sgd, 0.05 for adagrad, 0.002 for adam",
    help="Learning rate; of sgd, for the gradient summed over a window's positions.",
)
@option(
    "--rate-power",
    type=Number(0, 1),
    default=0.5,
    group=TRAINING,
    help="Rows of the tables of words learn at p(word) to minus this power; 0: all at the same rate.",
)
@option(
    "--momentum",
    type=Number(0, 1, max_open=True),
    default=0.0,
    group=TRAINING,
    help="Momentum of sgd; 0: none.",
)
@option(
    "--dropout",
    type=Number(0, 1, max_open=True),
    default=0.0,
    group=TRAINING,
    help="Share of the inputs' and the outputs' numbers that are zeroed at each step of training.",
)
@option(
    "--weight-decay",
    type=Number(0),
    default=0.0,
    group=TRAINING,
    help="Weight of half the squared norm of U and V, the tables of words, beside the mean loss.",
)
@option(
    "--clip",
    type=Number(0),
    default=5.0,
    group=TRAINING,
    help="Clip gradients to this global norm; 0: never.",
)
@option("--epochs", type=click.IntRange(1), default=20, group=TRAINING, help="Passes over the text, at most.")
@option(
    "--eval-every",
    type=click.IntRange(0),
    default=0,
    group=TRAINING,
    help="Windows between validations, beside the one after each epoch; 0: none.",
)
@option(
    "--min-improvement",
    type=Number(0, 1),
    default=0.003,
    group=TRAINING,
    help="Share by which an epoch must lower the validation perplexity, or the learning rate begins to fall.",
)
@option(
    "--lr-decay",
    type=Number(1),
    default=2.0,
    group=TRAINING,
    help="What the learning rate is divided by after each epoch from then on.",
)
@option(
    "--patience",
    type=click.IntRange(1),
    default=3,
    group=TRAINING,
    help="Epochs in a row without that improvement, after which training stops.",
)
@option("--seed", type=click.IntRange(0), default=1, group=TRAINING, help="Seed of all that is random.")
@option(
    "--model", type=click.Path(path_type=Path, file_okay=False), default="model", group=RUN, help="Folder of the model."
)
@option("--resume", is_flag=True, group=RUN, help="Go on with the training in that folder, as if it had never stopped.")
@option("--overwrite", is_flag=True, group=RUN, help="Replace the model in that folder.")
@save_every_option(RUN)
@threads_option(RUN)
@config_option(RUN)
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
    """Train a model on CORPUS: one or more texts, plain or gzip, or - for standard input."""
    from rnnlm.checkpoint import ModelFolder
    from rnnlm.run import working

    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume goes on with a model and --overwrite replaces it; give one of them.")
    if not options["corpus"] and not options["resume"]:
        raise click.UsageError("Name a text to train on, or - for standard input; only --resume needs none.")
    folder = ModelFolder(options["model"])
    with working(options["threads"]) as work, folder.held():
        run = _resume(ctx, folder, options) if options["resume"] else _begin(folder, options)
        _follow(run, folder, work, options["save_every"])


def _begin(folder: ModelFolder, options: dict[str, Any]) -> Run:
    from rnnlm.run import begin

    run = begin(
        folder,
        _settings(options),
        overwrite=options["overwrite"],
        processes=options["threads"],
        stage=stage_bar,
    )
    _tell_texts(run)
    return run


def _resume(ctx: click.Context, folder: ModelFolder, options: dict[str, Any]) -> Run:
    from rnnlm.run import Changes, resume

    changeable = [item.name for item in dataclasses.fields(Changes)]
    run = resume(
        folder,
        corpus=options["corpus"],
        valid=options["valid"],
        changes=Changes(**{name: options[name] for name in changeable if _given(ctx, name)}),
        check=lambda stored: _refuse_changes(ctx, stored, changeable),
        processes=options["threads"],
        stage=stage_bar,
    )
    say(f"Resuming in epoch {run.state.epoch} at window {run.state.window}.")
    return run


def _settings(options: dict[str, Any]) -> RunSettings:
    """Make settings of the command line's options."""
    from rnnlm.checkpoint import NetworkSettings, RunSettings
    from rnnlm.text import TextSettings
    from rnnlm.training import TrainingSettings
    from rnnlm.vocabulary import VocabularySettings

    chosen = {**options, "streams": options["streams"] or 0}
    return RunSettings(
        corpus=options["corpus"],
        valid=options["valid"],
        valid_fraction=options["valid_fraction"],
        text=TextSettings(options["pretokenized"], options["lowercase"], options["encoding"]),
        vocabulary=VocabularySettings(options["vocab_size"], options["min_count"], options["vocabulary_file"]),
        network=NetworkSettings(**{item.name: chosen[item.name] for item in dataclasses.fields(NetworkSettings)}),
        training=TrainingSettings(**{item.name: chosen[item.name] for item in dataclasses.fields(TrainingSettings)}),
    )


def _refuse_changes(ctx: click.Context, stored: RunSettings, changeable: list[str]) -> None:
    """Refuse an option that would make it another run than the one that is resumed."""
    words = {"vocab_size": stored.vocabulary.size, "min_count": stored.vocabulary.min_count}
    before = {**words, "vocabulary_file": stored.vocabulary.file, "valid_fraction": stored.valid_fraction}
    for settings in (stored.text, stored.network, stored.training):
        before |= vars(settings)
    for parameter in ctx.command.params:
        name = str(parameter.name)
        now = ctx.params.get(name)
        now = now.absolute() if name == "vocabulary_file" and now else now
        if name in before and name not in changeable and _given(ctx, name) and now != before[name]:
            raise SettingsError(
                f"{parameter.opts[0]} is {now} here and was {before[name]} when this training began; leave it out to "
                "resume, or train anew with --overwrite"
            )


def _given(ctx: click.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def _tell_texts(run: Run) -> None:
    settings, coverage, valid = run.saved.origin.settings, run.saved.origin.coverage, run.valid
    held_out = "" if settings.valid else f", held out from the end (--valid-fraction {settings.valid_fraction:g})"
    say(
        f"Training text: {coverage.sentences:,} sentences, {coverage.words:,} words, {coverage.types:,} types; the "
        f"vocabulary of {coverage.vocabulary:,} covers {coverage.share:.2%}, {coverage.unknown:,} words are unknown."
    )
    say(
        f"Validation text: {valid.sentences:,} sentences, {valid.words:,} words, {valid.unknown:,} unknown{held_out}; "
        f"{valid.predictions:,} predictions."
    )
    if coverage.unknown_never_occurs:
        say(
            "Warning: <unk> never occurs in the training text, so its probability is not learned; "
            "--vocab-size or --min-count would leave rare words to it."
        )


def _follow(run: Run, folder: ModelFolder, work: Workspace, save_every: tuple[int, float]) -> None:
    """Follow the training's events, and show them."""
    from rnnlm.run import NoPicture, SaveEvery, Stopped, follow
    from rnnlm.training import Evaluation, Progress

    reason = None
    with _stop_signals() as stop, contextlib.closing(_Bars(run)) as bars:
        events = follow(run, folder, work, SaveEvery(*save_every), stopping=lambda: stop, evaluating=bars.evaluating)
        for event in events:
            match event:
                case Progress():
                    bars.show(event)
                case Evaluation():
                    bars.report(event)
                case NoPicture():
                    say("No learning curve is drawn, for want of matplotlib: pip install 'rnnlm[plot]'.")
                case Stopped():
                    reason = event.reason
    name = shlex.quote(str(folder.path))
    if reason is None:
        say(
            f"Interrupted; epoch {run.state.epoch}, window {run.state.window} is saved. "
            f"Go on with: rnnlm train --resume --model {name}"
        )
        raise click.exceptions.Exit(INTERRUPTED)
    history = run.state.history
    best = min(history, key=lambda record: record["valid_perplexity"])
    speed = sum(record["words_per_second"] for record in history) / len(history)
    say(f"Finished: {reason}.")
    say(
        f"Best validation perplexity {best['valid_perplexity']:.2f} (epoch {best['epoch']}), "
        f"{speed:,.0f} words/s, model in {folder.best}."
    )
    say(f"Next: rnnlm generate --model {name}")


class _Bars:
    """A bar for each epoch, and a bar and a line for each evaluation."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.epoch = 0
        self.done = run.state.predictions
        self.bar = bar("")
        self.evaluation: tqdm[Any] | None = None

    def close(self) -> None:
        self.bar.close()
        self._end_evaluation()

    def _end_evaluation(self) -> None:
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None

    def evaluating(self, predictions: int) -> None:
        if self.evaluation is None:
            self.evaluation = bar("validation", self.run.valid.predictions, " words")
        self.evaluation.update(predictions)

    def show(self, event: Progress) -> None:
        if event.epoch != self.epoch:
            self.close()
            self.epoch = event.epoch
            name = f"epoch {event.epoch}/{self.run.settings.epochs}"
            self.bar = bar(name, self.run.corpus.predictions, " words", delay=0, initial=self.done)
        self.done = 0
        self.bar.set_postfix_str(f"perplexity {event.perplexity:.1f}", refresh=False)
        self.bar.update(event.predictions)

    def report(self, event: Evaluation) -> None:
        record = event.record
        self._end_evaluation()
        if event.epoch_done:
            self.close()
        say(
            f"epoch {record['epoch']:>2}, {record['seconds']:.0f} s: "
            f"perplexity {record['train_perplexity']:.2f} in training, "
            f"{record['valid_perplexity']:.2f} in validation{' (best)' if event.improved else ''}, "
            f"rate {record['learning_rate']:.3g}, {record['words_per_second']:,} words/s"
        )


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list, so that training ends between two steps; the second one ends it at once."""
    received: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
