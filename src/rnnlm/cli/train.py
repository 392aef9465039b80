"""`rnnlm train`: from a text to a model."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rnnlm.checking import flag
from rnnlm.cli import INTERRUPTED, speaks
from rnnlm.cli.advice import option_warnings, text_warnings
from rnnlm.cli.options import (
    RECIPES,
    Command,
    Value,
    config_option,
    given,
    model_option,
    option,
    recipes,
    save_every_option,
    setting,
    threads_option,
)
from rnnlm.cli.progress import WIDTH, Bar, bar, said_to, say, screen, stage_bar, typed, warn
from rnnlm.cli.stopping import Stop, stop_signals, tell_cut_off
from rnnlm.errors import SettingsError, counted
from rnnlm.settings import NetworkSettings, RunSettings, TextSettings, TrainingSettings, VocabularySettings

if TYPE_CHECKING:
    from rnnlm.run import Run
    from rnnlm.training import Evaluation, Progress, Record

TEXT, SHAPE, TRAINING, RUN = "Text", "Model", "Training", "Running"
MUCH_DROPOUT = 0.5  # more helps little
FALLEN = 31  # by which a learning rate has fallen with which little is learned: more than one that is chosen does
SAMPLES, SAMPLE_WORDS = 3, 40  # sentences that are shown at the end, and the most words of each
MUCH = 1.03  # a perplexity that differs much from another: by this factor


@click.command(
    cls=Command,
    short_help="Train a model on a text.",
    epilog="""\b
    Example:
      rnnlm train corpus.txt --cell lstm --hidden 200 --model big
      rnnlm train --resume --model big
    """,
)
@click.argument("corpus", nargs=-1, type=click.Path(allow_dash=True))
@setting(RunSettings, "valid", "Validate on this text; give it again for several.", TEXT, "the end of the corpus")
@setting(RunSettings, "valid_fraction", "Hold out this fraction of the corpus, from its end, for validation.", TEXT)
@setting(TextSettings, "pretokenized", "Read one sentence per line, words separated by spaces.", TEXT)
@setting(TextSettings, "lines", "Read one sentence per line, and tokenize it into words.", TEXT)
@setting(TextSettings, "lowercase", "Convert words to lower case.", TEXT)
@setting(TextSettings, "encoding", "Encoding of the texts.", TEXT)
@setting(VocabularySettings, "vocab_size", "Keep the N most frequent words, </s> and <unk> included.", TEXT)
@setting(
    VocabularySettings,
    "min_count",
    "Keep words that occur at least N times; the others are read as <unk>.",
    TEXT,
    "2; 1 if the text has <unk>",
)
@setting(VocabularySettings, "vocab", "Read the vocabulary from this file, one word per line.", TEXT)
@setting(NetworkSettings, "cell", "Kind of recurrent cell.", SHAPE)
@setting(
    NetworkSettings,
    "hidden",
    "Hidden units of each layer.",
    SHAPE,
    "100 or 200, by the text's size; --embedding, with --tied",
)
@setting(NetworkSettings, "layers", "Recurrent layers.", SHAPE)
@setting(
    NetworkSettings,
    "embedding",
    "Size of the input embeddings, and with --tied of the last of several layers.",
    SHAPE,
    "as --hidden",
)
@setting(
    NetworkSettings,
    "tied",
    "Tie the input and output embeddings.",
    SHAPE,
    "yes with gru and lstm, if sizes agree",
)
@setting(
    NetworkSettings,
    "clusters",
    "Clusters of the adaptive softmax, by word frequency; 1: full softmax.",
    SHAPE,
    "few that are nearly the fastest",
)
@setting(NetworkSettings, "bptt_truncate", "Truncate backpropagation after this many steps.", SHAPE, "the whole window")
@setting(
    NetworkSettings,
    "carry_state",
    "Carry the hidden state from sentence to sentence, in text order.",
    SHAPE,
    "yes with gru, lstm or --dropout-state",
)
@option(
    "--from",
    "from_",
    type=Value(str),
    metavar="PATH",
    group=SHAPE,
    help="Begin with this model's weights, vocabulary and network.",
)
@setting(TrainingSettings, "bptt", "Steps between updates; 0: one sentence per sequence.", TRAINING)
@setting(
    TrainingSettings,
    "batch_size",
    "Sequences trained side by side.",
    TRAINING,
    "8 to 64, by the text's size and the network",
)
@setting(TrainingSettings, "optimizer", "Optimizer.", TRAINING)
@setting(
    TrainingSettings,
    "lr",
    "Learning rate, for the gradient of the loss summed over a window.",
    TRAINING,
    "0.001 sgd, less on long texts, or 0.00075 with gru and lstm, both times 1 - momentum; 0.05 adagrad, 0.002 adam",
)
@setting(
    TrainingSettings,
    "rate_power",
    "Scale the learning rates of words by p(word) to minus this power; 0: one rate for all parameters.",
    TRAINING,
    "0.5 with sgd",
)
@setting(TrainingSettings, "momentum", "SGD momentum, below 1.", TRAINING)
@setting(
    TrainingSettings,
    "dropout",
    "Dropout probability on embeddings, between layers and on outputs.",
    TRAINING,
    "0 to 0.5, by the sizes of text and network",
)
@setting(TrainingSettings, "dropout_input", "Dropout probability on embeddings.", TRAINING, "as --dropout")
@setting(TrainingSettings, "dropout_hidden", "Dropout probability between layers.", TRAINING, "as --dropout")
@setting(TrainingSettings, "dropout_output", "Dropout probability on outputs.", TRAINING, "as --dropout")
@setting(TrainingSettings, "dropout_weights", "Dropout probability on recurrent weights.", TRAINING)
@setting(
    TrainingSettings,
    "dropout_state",
    "Probability of a zero state at the beginning of a sentence, with --carry-state.",
    TRAINING,
    "0.5 with gru and lstm",
)
@setting(
    TrainingSettings,
    "weight_decay",
    "L2 penalty on input and output embeddings.",
    TRAINING,
    "by the sizes of text and network",
)
@setting(
    TrainingSettings,
    "average",
    "Evaluate and keep a running average of the weights.",
    TRAINING,
    "yes",
)
@setting(
    TrainingSettings,
    "average_every",
    "Under mpiexec, let each process step alone and average their weights every N updates; 0: one step for all.",
    TRAINING,
)
@setting(TrainingSettings, "clip", "Clip the global norm of the gradient; 0: never.", TRAINING)
@setting(
    TrainingSettings,
    "epochs",
    "Passes over the training text, at most.",
    TRAINING,
    "5 to 40, by the text's size and the cell; more on very short texts",
)
@setting(TrainingSettings, "eval_every", "Also validate every N updates; 0: after each epoch only.", TRAINING)
@setting(
    TrainingSettings,
    "min_improvement",
    "Smallest relative improvement in validation perplexity that counts.",
    TRAINING,
    "0.003; less on very short texts",
)
@setting(
    TrainingSettings,
    "lr_decay",
    "Divide the learning rate by this after each epoch, from --decay-from on.",
    TRAINING,
    "1 with gru and lstm without --decay-from, 2 with --decay-from 0, else so that the rate falls to a thirtieth",
)
@setting(
    TrainingSettings,
    "decay_from",
    "First epoch after which the learning rate is divided; 0: the first that does not improve.",
    TRAINING,
    "0 with gru and lstm, else a sixth of the usual epochs, or of --epochs if that is more",
)
@setting(
    TrainingSettings,
    "patience",
    "Stop after this many epochs without improvement, from --decay-from on.",
    TRAINING,
    "3; more on very short texts",
)
@setting(TrainingSettings, "seed", "Random seed.", TRAINING)
@model_option(RUN, "Folder of the model.")
@option("--resume", is_flag=True, show_default=False, group=RUN, help="Resume the training in that folder.")
@option("--overwrite", is_flag=True, show_default=False, group=RUN, help="Replace the model in that folder.")
@save_every_option(RUN)
@threads_option(RUN)
@option(
    "--scratch",
    type=Value(str),
    metavar="DIR",
    group=RUN,
    help="Under mpiexec, a folder for the text on machines that do not share the model's folder.",
)
@option("--quiet", is_flag=True, show_default=False, group=RUN, help="Print warnings and errors only.")
@option("--log", type=Value(str), metavar="FILE", group=RUN, help="Add a line for each event to this file.")
@config_option(RUN)
@click.pass_context
def train(ctx: click.Context, /, corpus: tuple[str, ...], model: str, quiet: bool, log: str | None, **_: Any) -> None:
    """Train a model on CORPUS: one or more texts, plain or gzip, or - for standard input.

    Each epoch prints the perplexity on a part of the training text and in validation (* the best so far; known:
    excluding unknown words), the learning rate, the seconds of training and words per second. Within an epoch,
    running is the training perplexity of the epoch so far. Ctrl-C saves, and --resume goes on; only --epochs and
    --patience may then change.
    """
    from rnnlm.api import train
    from rnnlm.run import Listener

    options, others = given(ctx), ctx.params
    _check_files(model, log, (*corpus, *(others["valid"] or ()), others["vocab"]))
    if not corpus and not others["resume"]:
        raise click.UsageError("Name a text to train on, or - for standard input; only --resume needs none.")
    for name in ("corpus", "model", "quiet", "log", "resume", "overwrite", "save_every"):
        options.pop(name, None)
    bars = _Bars()
    with said_to(quiet, log, not speaks()), stop_signals() as stop, closing(bars):
        if (recipe := ctx.meta.get("rnnlm.config")) in recipes() and speaks():
            say(f"Recipe      {RECIPES / recipe}.toml")
        how = {name: others[name] for name in ("resume", "overwrite", "save_every")}
        listener = Listener(stage_bar, bars.evaluating if speaks() else None, lambda: stop.come)
        try:
            events = train(corpus, model, listener=listener, **how, **options)
        except SettingsError as error:
            also = f" ({ctx.meta['rnnlm.config']} gives options too)" if "rnnlm.config" in ctx.meta else ""
            raise click.UsageError(f"{error}{also}.") from None
        if speaks():
            try:
                _follow(events, bars, model, stop)
            except KeyboardInterrupt:  # the second one, or the first where nothing of this run is saved yet
                bars.close()
                if stop.armed or others["resume"]:
                    tell_cut_off(model)
                raise
        else:
            _follow_silently(events, stop)


def _check_files(model: str, log: str | None, texts: tuple[Any, ...]) -> None:
    """Refuse a log and texts that are files of the model's own, which would be written over."""
    from rnnlm.checkpoint import ModelFolder

    folder = ModelFolder(model)
    if log is not None and folder.owns(Path(log)):
        raise click.UsageError(f"{log}: is a file of the model's own; name another with --log.")
    for path in texts:
        if path not in (None, "-") and folder.owns(Path(path), hidden=False):
            raise click.UsageError(f"{path}: is a file of the model's own; name another text.")


def _follow_silently(events: Iterator[Any], stop: Stop) -> None:
    """Follow the training's events on a rank that another one speaks for."""
    from rnnlm.run import Started, Stopped

    for event in events:
        stop.armed = stop.armed or isinstance(event, Started)
        if event == Stopped(None):
            raise click.exceptions.Exit(INTERRUPTED)


def _follow(events: Iterator[Any], bars: _Bars, model: str, stop: Stop) -> None:
    """Follow the training's events, and show them."""
    from rnnlm.run import NoPicture, Started, Stopped
    from rnnlm.training import Evaluation, Progress

    for event in events:
        match event:
            case Progress():
                bars.show(event)
            case Evaluation():
                bars.report(event)
            case Started():
                bars.run, stop.armed = event.run, True
                _tell_start(event.run, event.resumed)
                if event.ranks != event.run.state.ranks:
                    before, now = (counted(number, "rank") for number in (event.ranks, event.run.state.ranks))
                    alone = event.run.settings.average_every
                    what = "steps are made over other parts of the text" if alone else "sums are rounded otherwise"
                    say(f"So far it was trained by {before}; with {now} {what}.")
            case NoPicture():
                say(f"No learning curve is drawn: {event.reason}.")
            case Stopped():
                bars.close()
                _tell_end(bars.run, event.reason, model)


def _tell_start(run: Run, resumed: bool) -> None:
    """Say what is trained on, and warn of what makes it worth little."""
    settings, text, valid, words = run.saved.origin.settings, run.saved.origin.coverage, run.valid, run.saved.vocabulary
    if resumed:
        say(f"Resuming {_place(run)}.")
        if (now := run.state.learning_rate) < (first := settings.training.lr or now) / FALLEN:
            remedy = f"for a longer training begin anew, with --epochs {settings.training.epochs}"
            warn(f"the learning rate has fallen from {first:.1e} to {now:.1e}, with which little is learned; {remedy}.")
        return
    part = valid.sentences / (valid.sentences + text.sentences)
    share = "" if settings.valid else f" (last {100 * part:.2g}% of the corpus)"
    are = "is" if text.unknown == 1 else "are"
    unknown = f"{counted(text.unknown, 'training word')} {are} unknown ({1 - text.share:.2%})"
    rows = {
        "Training": ", ".join(counted(getattr(text, f"{name}s"), name) for name in ("sentence", "word", "type")),
        "Vocabulary": f"{counted(len(words), 'word')}; {unknown}",
        "Validation": ", ".join(counted(getattr(valid, f"{name}s"), name) for name in ("sentence", "word")),
    }
    rows["Validation"] += f", {valid.unknown:,} unknown{share}"
    if chosen := _chosen(settings):
        rows["Chosen"] = f"{', '.join(chosen)}: by the size of the text and the cell; see --help"
    for name, row in rows.items():
        say(textwrap.fill(f"{name:<11} {row}", WIDTH, subsequent_indent=" " * 12, break_on_hyphens=False))
    for warning in (*text_warnings(run), *option_warnings(run)):
        warn(warning)


def _chosen(settings: RunSettings) -> list[str]:
    """Describe what was chosen, as it was not given, where it has an effect."""
    network, training = settings.network, settings.training
    described = {
        "hidden": (network.hidden, f"{network.hidden} units"),
        "tied": (network.tied, "tied embeddings"),
        "carry_state": (network.carry_state, "carried state"),
        "dropout_state": (training.dropout_state, f"state dropped with probability {training.dropout_state:g}"),
        "dropout": (training.dropout_in_force(network.layers).get("dropout"), f"dropout {training.dropout:g}"),
        "weight_decay": (training.weight_decay, f"weight decay {training.weight_decay:.2g}"),
        "batch_size": (training.batch_size, f"{training.batch_size} streams"),
        "average": (training.average, "averaged weights"),
        "epochs": (training.epochs, counted(training.epochs, "epoch")),
    }
    if network.tied and network.embedding:
        described.pop("hidden")  # --embedding decides it
    return [text for name, (value, text) in described.items() if name in settings.chosen and value]


def _place(run: Run) -> str:
    """Say where a training stands."""
    epoch, window = run.state.epoch, run.state.window
    return f"after epoch {epoch}" if run.state.epoch_done else f"in epoch {epoch} after window {window}"


def _tell_end(run: Run, reason: str | None, model: str) -> None:
    """Say why training has ended, what it has reached and what comes next."""
    if reason is None:
        say(f"Interrupted {_place(run)}; all is saved.")
        together = f"mpiexec -n {run.state.ranks} " if run.state.ranks > 1 else ""
        say(f"Go on with: {together}{typed('train --resume', model)}")
        raise click.exceptions.Exit(INTERRUPTED)
    history = run.state.history
    best = min(history, key=lambda record: record.valid_perplexity)
    speed = sum(record.words_per_second for record in history) / len(history)
    say(f"Finished: {reason}; {speed:,.0f} words/s.")
    known = f", {_known(best)} excluding unknown words" if _known(best) else ""
    say(f"Best validation perplexity {best.valid_perplexity:.2f} in epoch {best.epoch}{known}.")
    say(f"Model: {Path(model) / 'best.npz'}")
    _tell_samples(model)
    say("Next, to write more, to measure another text, and to see where the model errs:")
    for command in ("generate", "evaluate TEXT", "report"):
        say(f"  {typed(command, model)}")


def _tell_samples(model: str) -> None:
    """Show a few sentences of the best model; one that can draw no word has none."""
    import rnnlm
    from rnnlm.sources import printable

    if screen.quiet and screen.log is None:  # nobody would see them
        return
    with suppress(rnnlm.RnnlmError):
        sentences = rnnlm.load(model).generate(SAMPLES, seed=1, max_words=SAMPLE_WORDS)
        say("Sentences that it makes up:")
        for sentence in sentences:
            shown = textwrap.wrap(printable(sentence), WIDTH - 2, break_on_hyphens=False)
            say(textwrap.indent("\n".join(shown), "  "))


def _known(record: Record) -> str:
    """Return the perplexity without unknown words, where it differs much from that with them."""
    known = record.valid_perplexity_excluding_unknown
    if known is None or 1 / MUCH < record.valid_perplexity / known < MUCH:
        return ""
    return _figure(known)


def _figure(perplexity: float) -> str:
    if perplexity < 1000:
        return f"{perplexity:.1f}"
    return f"{perplexity:,.0f}" if perplexity < 1e6 else f"{perplexity:.1e}"


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


class _Bars:
    """A bar for each epoch, and a bar and a line for each evaluation."""

    run: Run

    def __init__(self) -> None:
        self.epoch = 0
        self.bar: Bar | None = None
        self.evaluation: Bar | None = None
        self.warned = False  # of overfitting, which is said once

    def close(self) -> None:
        for shown in (self.bar, self.evaluation):
            if shown is not None:
                shown.close()
        self.bar = self.evaluation = None

    def evaluating(self, predictions: int) -> None:
        if self.evaluation is None:
            self.evaluation = bar("validation", self.run.valid.predictions, " words")
        self.evaluation.update(predictions)

    def show(self, event: Progress) -> None:
        if event.epoch != self.epoch or self.bar is None:
            self.close()
            done = 0 if self.epoch else self.run.state.predictions - event.predictions  # before it was resumed
            self.epoch = event.epoch
            name = f"epoch {event.epoch}/{self.run.settings.epochs}"
            self.bar = bar(name, self.run.corpus.predictions, " words", delay=0, initial=done)
        self.bar.set_postfix_str(f"perplexity {event.perplexity:.1f}", refresh=False)
        self.bar.update(event.predictions)

    def report(self, event: Evaluation) -> None:
        record = event.record
        if self.evaluation is not None:
            self.evaluation.close()
            self.evaluation = None
        if event.epoch_done:
            self.close()
        known, training = _known(record), record.train_perplexity or record.running_perplexity
        done = record.epoch - 1 + record.window / event.windows
        epoch, name = (f"{record.epoch:>2}", "train") if event.epoch_done else (f"{done:.2f}", "running")
        line = (
            f"epoch {epoch}  {name} {_figure(training):>5}  valid {_figure(record.valid_perplexity):>5} "
            f"{'*' if event.improved else ' '}{f'  known {known}' if known else ''}  lr {record.learning_rate:.1e}"
            f"  {_duration(record.seconds)}"
        )
        speed = record.words_per_second
        speeds = (f"{speed:,} words/s", f"{speed:,}/s", f"{speed / 1000:.0f}k/s")
        say(f"{line}  {next((text for text in speeds if len(line) + 2 + len(text) <= WIDTH), speeds[-1])}")
        if (record.train_perplexity or 0) > (words := len(self.run.saved.vocabulary)):
            warn(f"the model is worse than an even guess among its {words:,} words; train again with a lower --lr.")
        if event.overfitting and not self.warned:
            self.warned = True
            rates = self.run.settings.dropout_in_force(self.run.saved.model.settings.layers)
            option, rate = max(rates.items(), key=lambda item: item[1], default=("", 0.0))
            now = f"a higher {flag(option)} than {rate:g}" if rates else "--dropout 0.3"
            now = "more text, or fewer --hidden units," if rate >= MUCH_DROPOUT else now
            warn(f"the model overfits: it improves on the training text and not in validation; {now} may help.")
