"""`rnnlm train`: from a text to a model."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from rnnlm.cli import INTERRUPTED
from rnnlm.cli.options import Command, Number, config_option, option, save_every_option, threads_option
from rnnlm.cli.progress import bar, say, stage_bar
from rnnlm.errors import DivergenceError, ModelError, SettingsError

if TYPE_CHECKING:
    from types import FrameType

    from tqdm import tqdm

    from rnnlm.checkpoint import ModelFolder, SavedModel
    from rnnlm.corpus import Corpus, TrainingText
    from rnnlm.model import Workspace
    from rnnlm.training import Evaluation, Progress, TrainingSettings, TrainingState

TEXT, SHAPE, TRAINING, RUN = "Text", "Model", "Training", "Running"
# What may change when a run is resumed: none of it decides what an epoch's steps compute.
CHANGEABLE = {"epochs", "patience", "save_every", "threads", "model", "resume", "overwrite", "corpus", "valid"}


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
    help="Share of the last step that the next one repeats.",
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
    help="Greatest joint norm of the gradients; 0: none.",
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
    import threadpoolctl

    from rnnlm.checkpoint import ModelFolder
    from rnnlm.model import Workspace

    if options["resume"] and options["overwrite"]:
        raise click.UsageError("--resume goes on with a model and --overwrite replaces it; give one of them.")
    if not options["corpus"] and not options["resume"]:
        raise click.UsageError("Name a text to train on, or - for standard input; only --resume needs none.")
    folder = ModelFolder(options["model"])
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),  # the workspace's threads share the work instead
        contextlib.closing(Workspace(options["threads"])) as work,
        folder.held(),
    ):
        run = _resume(ctx, folder, options) if options["resume"] else _begin(folder, options)
        _follow(run, folder, work, options["save_every"])


class Run(NamedTuple):
    """What a training works on."""

    state: TrainingState
    settings: TrainingSettings
    saved: SavedModel
    corpus: Corpus
    valid: Corpus


def _follow(run: Run, folder: ModelFolder, work: Workspace, save_every: tuple[int, float]) -> None:
    """Follow the training's events: show them, and save the model as they go."""
    from rnnlm.checkpoint import save_training
    from rnnlm.training import Progress, finished, train

    state, settings, saved, corpus, valid = run
    windows, seconds = save_every
    with _stop_signals() as stop, contextlib.closing(_Bars(run)) as progress:
        save_training(folder.last, state, settings, saved)
        if not state.steps:  # only now may an older model go that this one overwrites
            folder.remove_results()
        saved_at = time.monotonic()
        try:
            for event in train(state, settings, corpus, valid, work, progress.evaluating):
                if isinstance(event, Progress):
                    progress.show(event)
                    due = event.window % windows == 0 if windows else time.monotonic() - saved_at >= seconds
                else:
                    progress.report(event)
                    _save_evaluation(event, state, saved, folder)
                    due = True
                if due or stop:
                    save_training(folder.last, state, settings, saved)
                    saved_at = time.monotonic()
                if stop:
                    break
        except DivergenceError as error:
            kept = f"The best model so far is kept in {folder.best}." if folder.best.exists() else "No model was kept."
            if not folder.best.exists():  # it has learned nothing: an untrained model would only mislead
                folder.last.unlink()
            raise DivergenceError(f"{error} {kept}") from None
    name = shlex.quote(str(folder.path))
    resume = f"rnnlm train --resume --model {name}"
    if stop:
        say(f"Interrupted; epoch {state.epoch}, window {state.window} is saved. Go on with: {resume}")
        raise click.exceptions.Exit(INTERRUPTED)
    best = min(state.history, key=lambda record: record["valid_perplexity"])
    say(f"Finished: {finished(state, settings)}.")
    say(
        f"Best validation perplexity {best['valid_perplexity']:.2f} (epoch {best['epoch']}), "
        f"{_mean_speed(state):,.0f} words/s, model in {folder.best}."
    )
    say(f"Next: rnnlm generate --model {name}")


def _mean_speed(state: TrainingState) -> float:
    speeds = [float(record["words_per_second"]) for record in state.history]
    return sum(speeds) / len(speeds)


def _save_evaluation(event: Evaluation, state: TrainingState, saved: SavedModel, folder: ModelFolder) -> None:
    from rnnlm.checkpoint import save_model
    from rnnlm.curve import can_draw, draw_curve

    folder.write_history(state.history)
    if event.improved:
        about = {**saved.information, "epoch": state.epoch, "window": state.window}
        about |= {"valid_perplexity": event.record["valid_perplexity"], "history": state.history}
        save_model(folder.best, state.model, saved.vocabulary, saved.tokenizer, about)
    if can_draw():
        draw_curve(state.history, folder.curve)
    elif len(state.history) == 1:
        say("No learning curve is drawn, for want of matplotlib: pip install 'rnnlm[plot]'.")


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


def _begin(folder: ModelFolder, options: dict[str, Any]) -> Run:
    """Read the texts, and make a new model."""
    import numpy as np

    from rnnlm.checkpoint import SavedModel
    from rnnlm.clusters import choose_cutoffs
    from rnnlm.model import RULES, ModelSettings, initialize
    from rnnlm.training import TrainingSettings, TrainingState, default_streams, make_optimizer

    if folder.holds_model() and not options["overwrite"]:
        raise ModelError(
            f"{folder.path}: holds a model already; go on training it with --resume, replace it with --overwrite, "
            "or name another folder with --model"
        )
    text, valid = _read_texts(folder, options)
    _tell_texts(text, valid, options)
    options = {**options, "streams": options["streams"] or default_streams(text.train.predictions, options["window"])}
    settings = TrainingSettings(**{item.name: options[item.name] for item in dataclasses.fields(TrainingSettings)})
    counts = text.vocabulary.counts
    positions = settings.streams * (settings.window or text.train.predictions // text.train.sentences)
    model_settings = ModelSettings(
        words=len(text.vocabulary),
        hidden=options["hidden"],
        truncate=options["truncate"],
        carry_state=options["carry_state"],
        cutoffs=choose_cutoffs(counts, options["hidden"], positions, options["clusters"]),
    )
    model = initialize(model_settings, counts, np.random.default_rng(settings.seed))
    optimizer = make_optimizer(settings, model, counts)
    rate = settings.learning_rate or RULES[settings.optimizer].learning_rate
    about = {
        "corpus": _absolute(options["corpus"]),
        "valid": _absolute(options["valid"]),
        "options": {name: _plain(value) for name, value in options.items() if name not in CHANGEABLE},
        "learning_rate": rate,
        "keys": [text.train.key, valid.key],
        "coverage": dataclasses.asdict(text.train.coverage(text.vocabulary)),
    }
    saved = SavedModel(model, text.vocabulary, text.tokenizer, about)
    return Run(TrainingState(model, optimizer, rate), settings, saved, text.train, valid)


def _plain(value: Any) -> Any:
    return str(value.absolute()) if isinstance(value, Path) else value


def _absolute(paths: tuple[str, ...]) -> list[str]:
    return [path if path == "-" else str(Path(path).absolute()) for path in paths]


def _read_texts(
    folder: ModelFolder, options: dict[str, Any], expected: tuple[str | None, str | None] = (None, None)
) -> tuple[TrainingText, Corpus]:
    """Tokenize and encode the training and the validation text, or find them encoded beside the model.

    Where keys are expected, a text of another key is refused before anything is done.
    """
    from rnnlm.corpus import encode, prepare
    from rnnlm.sources import spooled
    from rnnlm.text import TextSettings
    from rnnlm.vocabulary import VocabularySettings

    if "-" in options["corpus"] and "-" in options["valid"]:
        raise SettingsError("standard input is one text; name a file for the other of CORPUS and --valid")
    text_settings = TextSettings(options["pretokenized"], options["lowercase"], options["encoding"])
    vocabulary_settings = VocabularySettings(options["vocab_size"], options["min_count"], options["vocabulary_file"])
    fraction = 0.0 if options["valid"] else options["valid_fraction"]
    how: dict[str, Any] = {"processes": options["threads"], "stage": stage_bar}
    with spooled(options["corpus"]) as files, spooled(options["valid"]) as valid_files:
        text = prepare(
            files,
            folder.path,
            text_settings,
            vocabulary_settings,
            valid_fraction=fraction,
            expected=expected[0],
            **how,
        )
        valid = text.valid or encode(
            valid_files, folder.path, text.tokenizer, text.vocabulary, expected=expected[1], **how
        )
    return text, valid


def _tell_texts(text: TrainingText, valid: Corpus, options: dict[str, Any]) -> None:
    held_out = "" if options["valid"] else f", held out from the end (--valid-fraction {options['valid_fraction']:g})"
    coverage = text.train.coverage(text.vocabulary)
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


def _resume(ctx: click.Context, folder: ModelFolder, options: dict[str, Any]) -> Run:
    """Read where training stopped, and the text that it was training on."""
    from rnnlm.checkpoint import load_training
    from rnnlm.corpus import reopen
    from rnnlm.training import finished

    state, settings, saved = load_training(folder)
    _refuse_changes(ctx, saved)
    given = {name: options[name] for name in ("epochs", "patience") if _given(ctx, name)}
    settings = dataclasses.replace(settings, **given)
    about = saved.information
    corpora = None if options["corpus"] or options["valid"] else reopen(folder.path, *about["keys"])
    if corpora is None:
        again = {**options, **about["options"], "threads": options["threads"]}
        again["vocabulary_file"] = about["options"]["vocabulary_file"] and Path(about["options"]["vocabulary_file"])
        for name in ("corpus", "valid"):
            again[name] = options[name] or about[name]
            if not options[name] and not all(Path(path).is_file() for path in about[name]):
                raise SettingsError(
                    f"{', '.join(about[name])}: the text is not there any more, nor encoded in {folder.path}; give it "
                    f"again, as in rnnlm train TEXT --resume --model {shlex.quote(str(folder.path))}"
                )
        text, valid = _read_texts(folder, again, (about["keys"][0], about["keys"][1]))
        corpora = text.train, valid
    folder.write_history(state.history)  # a kill may have come between a line of it and the state
    over = finished(state, settings)
    if over:
        raise SettingsError(f"{folder.path}: training is finished, {over}; give --epochs or --patience a higher number")
    say(f"Resuming in epoch {state.epoch} at window {state.window}.")
    return Run(state, settings, saved, *corpora)


def _given(ctx: click.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name in ("COMMANDLINE", "DEFAULT_MAP")


def _refuse_changes(ctx: click.Context, saved: SavedModel) -> None:
    """Refuse an option that would make it another run than the one that is resumed."""
    for parameter in ctx.command.params:
        name = str(parameter.name)
        before = saved.information["options"].get(name)
        now = _plain(ctx.params.get(name))
        if name not in CHANGEABLE and _given(ctx, name) and now != before:
            raise SettingsError(
                f"{parameter.opts[0]} is {now} here and was {before} when this training began; leave it out to resume, "
                "or train anew with --overwrite"
            )
