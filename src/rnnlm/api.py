"""What `import rnnlm` offers: a model to ask, and a training to follow.

Every error is an RnnlmError, whose message is one sentence.
"""

from __future__ import annotations

import atexit
import itertools
import math
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from rnnlm.adapting import Adapting, tune
from rnnlm.adapting import perplexity as adapted_perplexity
from rnnlm.checking import brief, fit_option
from rnnlm.checkpoint import ModelFolder, SavedModel, load_model
from rnnlm.corpus import Corpus, Stage, encode_once, silent
from rnnlm.detokenize import detokenize
from rnnlm.dynamic import root_mean_square
from rnnlm.errors import ModelError, SettingsError, TextError, no_numbers
from rnnlm.generation import generate, read
from rnnlm.model import Array, LanguageModel, Workspace
from rnnlm.ranks import Ranks, world
from rnnlm.run import Event, Listener, Run, begin, computing, stepped, working
from rnnlm.run import resume as resume_run
from rnnlm.scoring import (
    Reader,
    Score,
    Scored,
    each_sentence,
    perplexity,
    scored,
    sentence_figures,
    text_figures,
    word_losses,
)
from rnnlm.settings import AdaptationSettings, Count, GenerationSettings, RunSettings, SaveEvery, Threads
from rnnlm.shading import Surprisals
from rnnlm.sharing import train_to_end
from rnnlm.sources import plain_lines, spooled
from rnnlm.text import Prompt, Tokenizer
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN

Path = str | os.PathLike[str]


class Model:
    """A trained language model, as `rnnlm.load` gives it.

    Arguments:
        saved: the model with its vocabulary, its tokenizer and where it comes from.
        threads: how many compute; they change no result.
    """

    def __init__(self, saved: SavedModel, threads: int = 1) -> None:
        self.saved = saved
        self.threads = threads

    def __repr__(self) -> str:
        settings, reached = self.saved.model.settings, self.saved.origin.valid_perplexity
        figure = "not evaluated" if reached is None else f"validation perplexity {reached:.2f}"
        *lower, last = settings.units
        several = f"{settings.layers} x " if lower else ""
        units = f"{several}{last}" if last == settings.hidden else " + ".join(map(str, settings.units))
        network = f"{settings.cell}, {units} hidden units"
        return f"<rnnlm.Model: {network}, {settings.words:,} words, {figure}>"

    def prompt(self, text: str, pretokenized: bool = False) -> Prompt:
        """Cut the beginning of a text into sentences and words, as the training text was, or at its blanks.

        Raises TextError where a word of it is a mark of the model's own.
        """
        tokenizer = self.line_tokenizer(True) if pretokenized else self.saved.tokenizer
        *before, words = tokenizer.prompt(fit_option(str, text, "prompt")) or [[]]
        before = before if self.saved.model.settings.carry_state else []
        known = self.saved.vocabulary.ids
        unknown = [word for sentence in (*before, words) for word in sentence if word not in known]
        return Prompt(before, words, list(dict.fromkeys(unknown)))

    def generate(self, count: int = 10, prompt: str = "", **options: Any) -> list[str]:
        """Return sentences, each drawn word by word from what the model expects; `sentences` yields them one by one.

        Arguments:
            count: how many.
            prompt: words that each begins with; of several sentences, the last is continued.
            options: those of `rnnlm generate`: `seed`, `tokens` (words separated by blanks, as the model knows them)
                and the fields of `GenerationSettings`.

        Raises TextError where the prompt has a mark of the model's own, SettingsError where an option is not in its
        range or has no effect.
        """
        return list(self.sentences(count, prompt, **options))

    def sentences(
        self, count: int = 10, prompt: str = "", *, seed: int | None = None, tokens: bool = False, **options: Any
    ) -> Iterator[str]:
        """Yield sentences as soon as they are made; the arguments and errors are those of `generate`."""
        settings = GenerationSettings.of(count, seed, options)
        vocabulary, start = self.saved.vocabulary, self.prompt(prompt)
        words, before = vocabulary.encode(start.words), self._ids(start.before)
        generator = np.random.default_rng(seed)  # None: the system's own numbers
        write = " ".join if fit_option(bool, tokens, "tokens") else detokenize

        def drawn() -> Generator[str]:
            with closing(Workspace(self.threads)) as work:
                model, unknown = self.saved.model, vocabulary.unknown_id
                for ids in generate(model, unknown, count, generator, work, words.tolist(), settings, before.tolist()):
                    yield write([*start.words, *vocabulary.decode(ids)])

        return stepped(drawn())

    def next_words(self, text: str, count: int = 10, pretokenized: bool = False) -> list[tuple[str, float]]:
        """Return the likeliest words after the beginning of a text, each with its probability, the likeliest first.

        `</s>` is the end of the sentence, `<unk>` stands for all words that the model does not know. If `pretokenized`,
        the text is cut at its blanks.
        """
        start, count = self.prompt(text, pretokenized), fit_option(Count, count, "count")
        log_p = self._next([*self._ids(start.before).tolist(), *self.saved.vocabulary.encode(start.words).tolist()])
        likeliest = np.argsort(-log_p, kind="stable")[:count]
        return [(self.saved.vocabulary.words[word], math.exp(log_p[word])) for word in likeliest]

    def score(
        self,
        lines: str | Iterable[str],
        *,
        pretokenized: bool = False,
        keep_state: bool = False,
        ranks: bool = False,
        **adaptation: Any,
    ) -> list[Scored]:
        """Return the probabilities of the words of each line, a sentence, as `rnnlm score` does.

        Arguments:
            lines: a text or its lines, such as a file gives; a blank one is a sentence of `</s>` alone.
            pretokenized: words are separated by blanks, whatever the training text was.
            keep_state: read on from line to line, whether or not the model was trained so.
            ranks: find each word's rank too, and the entropy of what the model expected.
            adaptation: the fields of `AdaptationSettings`, as in `cache=500`.

        Raises TextError where a line has a mark of the model's own.
        """
        settings = AdaptationSettings.of(adaptation)
        given: object = list(lines) if isinstance(lines, Iterable) and not isinstance(lines, str) else lines
        if isinstance(given, str):
            given = given.removesuffix("\n").split("\n") if given else []
        block = plain_lines(fit_option(tuple[str, ...], given, "prompt"))
        cut = self.line_tokenizer(pretokenized).lines(block)
        return scored(cut, self.reader(keep_state=keep_state, ranks=ranks, adaptation=settings), self.unknown)

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[NDArray[np.float64]]:
        """Return log p (n + 1,), in nats, of each of a sentence's n words and of its end; see `scoring.Scorer`."""
        return [figures[0] for figures in self.reader()(sentences)]

    def next_log_probs(self, words: Sequence[str]) -> dict[str, float]:
        """Return log p, in nats, of each word and of `<unk>` and `</s>` after the words that begin a sentence."""
        log_p = self._next(self.saved.vocabulary.encode(words).tolist())
        return dict(zip(self.saved.vocabulary.words, log_p.tolist(), strict=True))

    def _next(self, ids: list[int]) -> Array:
        """Return log p (V,), in nats, of the words that may follow the ids of others."""
        with working(self.threads) as work:
            log_p: Array = read(self.saved.model, ids, work)[0][0]
        if not np.isfinite(log_p).all():
            raise no_numbers()
        return log_p

    @property
    def lowercase(self) -> bool:
        """Whether texts are read in lower case."""
        return self.saved.tokenizer.settings.lowercase

    @property
    def ids(self) -> Mapping[str, int]:
        """The id of each word."""
        return self.saved.vocabulary.ids

    @cached_property
    def words(self) -> frozenset[str]:
        """What is predicted under its own name: `</s>`, but not `<unk>`."""
        return frozenset(self.saved.vocabulary.words) - {UNKNOWN}

    @property
    def knows_unknown(self) -> bool:
        """Whether there were unknown words in training, so that it has learned when they come."""
        return bool(self.saved.vocabulary.counts[self.saved.vocabulary.unknown_id])

    @property
    def carries_state(self) -> bool:
        """Whether it reads a text on from sentence to sentence."""
        return self.saved.model.settings.carry_state

    @property
    def tokenizer(self) -> Tokenizer:
        """How a text becomes words."""
        return self.saved.tokenizer

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Say which words are read as `<unk>`, the literal `<unk>` among them."""
        known = self.words
        return [word not in known for word in words]

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return by how many words each word of a sentence, and its end, is predicted: all before it, and `<s>`."""
        return list(range(2, len(words) + 3))

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of each word where KenLM prints one: 0 is `<unk>`, and 1 would be `<s>`."""
        return {word: 0 if word == UNKNOWN else number + 2 for word, number in self.ids.items()}

    def line_tokenizer(self, pretokenized: bool = False) -> Tokenizer:
        """Return what cuts a line as the training text was, or at its blanks."""
        own = self.saved.tokenizer.settings
        pretokenized = fit_option(bool, pretokenized, "pretokenized") or own.pretokenized
        return Tokenizer(replace(own, pretokenized=pretokenized, lines=not pretokenized))

    def reader(
        self,
        *,
        keep_state: bool = False,
        ranks: bool = False,
        adaptation: AdaptationSettings | None = None,
        stage: Stage = silent,
    ) -> Reader:
        """Return what reads sentences of words, for `scoring.scored`; the arguments and errors are those of `score`."""
        model, ranks = self._carrying(keep_state or None, "keep_state"), fit_option(bool, ranks, "ranks")
        if adaptation and adaptation.active:
            if ranks:
                raise SettingsError(
                    "--rank is of what the model expects by itself; leave it out, or --cache, --dynamic"
                )
            return self._adapted(self.adapting(adaptation, keep_state, stage))
        states = model.start(1)

        def read(sentences: Sequence[Sequence[str]]) -> list[Array]:
            nonlocal states
            if not sentences:
                return []
            ids = self._ids(sentences)
            with working(self.threads) as work:
                if keep_state:
                    found, states = text_figures(model, ids, states, work, ranks)
                else:
                    found = sentence_figures(model, ids, work, ranks)
            if not np.isfinite(found).all():
                raise no_numbers()
            figures = found.astype(np.float64)
            np.minimum(-figures[0], 0, out=figures[0])  # -log p of a sure word may round to less than 0
            return each_sentence(figures, sentences)

        return read

    def _adapted(self, adapting: Adapting) -> Reader:
        """Return a reader of sentences that adapts to them."""

        def read(sentences: Sequence[Sequence[str]]) -> list[Array]:
            ids = self._ids(sentences)
            with working(self.threads) as work:
                losses = adapting.losses(ids, work)
            if not np.isfinite(losses).all():
                raise _no_numbers(adapting.settings.dynamic)
            return each_sentence(np.minimum(-losses, 0)[None], sentences)

        return read

    def adapting(
        self, settings: AdaptationSettings, carry_state: bool | None = None, stage: Stage = silent
    ) -> Adapting:
        """Return what reads texts and adapts to them, with statistics of gradients where they are asked for.

        `carry_state` is that of `perplexity`. Raises TextError where the text of `dynamic_rms` cannot be read.
        """
        model, rms = self._carrying(carry_state), None
        if settings.dynamic and settings.dynamic_rms is not None:
            corpus = self._corpus((settings.dynamic_rms,), self.saved.tokenizer, stage)
            with stage("squaring gradients", corpus.predictions) as progress, working(self.threads) as work:
                rms = root_mean_square(model, corpus, work, progress)
        return Adapting(model, settings, self.saved.vocabulary.counts, rms)

    def tune_cache(
        self,
        file: Path,
        *,
        pretokenized: bool = False,
        lines: bool = False,
        carry_state: bool | None = None,
        encoding: str | None = None,
        stage: Stage = silent,
        **adaptation: Any,
    ) -> dict[str, float]:
        """Return the `cache_weight` and `cache_flatness` with which a text is predicted best.

        The arguments are those of `perplexity`, `cache` among them. Of a long text the beginning is read. Raises what
        `perplexity` raises, and SettingsError where there is no cache or what is to be found is given.
        """
        settings = AdaptationSettings.of(adaptation)
        settings.check_encoded()
        settings.check_tuning()
        names: tuple[str, ...] = fit_option(tuple[str, ...], file, "file")
        corpus = self._corpus(names, self._cut(pretokenized, lines, encoding), stage)
        reader = self.adapting(settings, carry_state, stage)
        with working(self.threads) as work:
            weight, flatness = tune(reader, corpus, work)
        return {"cache_weight": weight, "cache_flatness": flatness}

    def surprisals(self, text: str) -> Surprisals:
        """Return each word of a text with its surprisal, -log2 p in bits; `</s>` ends each sentence.

        It is a list of pairs, which a notebook shows as shaded words. A word that the model does not know is read as
        `<unk>`, and has the surprisal of that. Raises TextError where the text has no words, or a mark of the model's
        own.
        """
        sentences = self._sentences(text)
        words = [word for sentence in sentences for word in (*sentence, SENTENCE_END)]
        return Surprisals(zip(words, (self._losses(sentences) / math.log(2)).tolist(), strict=True))

    def log_prob(self, text: str) -> float:
        """Return the natural logarithm of a text's probability, the end of each sentence included.

        Raises TextError as `surprisals` does.
        """
        return -math.fsum(self._losses(self._sentences(text)).tolist())

    def perplexity(  # noqa: D417 -- some are described together
        self,
        *files: Path,
        pretokenized: bool = False,
        lines: bool = False,
        carry_state: bool | None = None,
        encoding: str | None = None,
        stage: Stage = silent,
        scoring: Callable[[int], Callable[[int], object]] | None = None,
        **adaptation: Any,
    ) -> Score:
        """Score texts, plain or gzip, or `-` for standard input: what `rnnlm evaluate` prints.

        Arguments:
            files: in order.
            pretokenized, lines: cut them so, whatever the training text was; else as that was.
            carry_state: whether the state is carried from sentence to sentence; None: as in training.
            encoding: of the files; None: that of the training text.
            stage: called when a stage of reading begins.
            scoring: called with the number of predictions; what it returns is told how many are made since its last
                call.
            adaptation: the fields of `AdaptationSettings`, as in `cache=500`.

        Raises TextError where a file cannot be read, and what the settings of a text raise.
        """
        if not files:
            raise SettingsError("there is no text to score; name one, or - for standard input")
        names: tuple[str, ...] = fit_option(tuple[str, ...], files, "file")
        settings = AdaptationSettings.of(adaptation)
        settings.check_encoded()
        corpus = self._corpus(names, self._cut(pretokenized, lines, encoding), stage)
        reader = self.adapting(settings, carry_state, stage) if settings.active else None
        figure = partial(adapted_perplexity, reader) if reader else partial(perplexity, self._carrying(carry_state))
        with working(self.threads) as work:
            progress = scoring(corpus.predictions) if scoring else None
            score = figure(corpus, work, unknown_id=self.saved.vocabulary.unknown_id, progress=progress)
        if not math.isfinite(score.log_likelihood):
            raise _no_numbers(settings.dynamic)
        return score

    def _cut(self, pretokenized: bool, lines: bool, encoding: str | None) -> Tokenizer:
        """Return what cuts texts as the training text was, or as the arguments say."""
        own = self.saved.tokenizer
        settings = replace(own.settings, encoding=own.settings.encoding if encoding is None else encoding)
        if pretokenized or lines:
            settings = replace(settings, pretokenized=pretokenized, lines=lines)
        return replace(own, settings=settings, punkt=None if pretokenized or lines else own.punkt)

    def _corpus(self, names: Sequence[str], tokenizer: Tokenizer, stage: Stage) -> Corpus:
        with spooled(names) as sources, computing():
            return encode_once(sources, tokenizer, self.saved.vocabulary, processes=self.threads, stage=stage)

    def _carrying(self, carry_state: bool | None, name: str = "carry_state") -> LanguageModel:
        """Return the model as it carries its state: None is as in training."""
        model = self.saved.model
        return model if carry_state is None else model.carrying(fit_option(bool, carry_state, name))

    def _sentences(self, text: str) -> list[list[str]]:
        sentences = self.saved.tokenizer.prompt(fit_option(str, text, "prompt"))
        if not sentences:
            raise TextError("the text has no words; give one that has")
        return sentences

    def _ids(self, sentences: Iterable[Sequence[str]]) -> Array:
        ended = ((*sentence, SENTENCE_END) for sentence in sentences)
        return self.saved.vocabulary.encode(itertools.chain.from_iterable(ended))

    def _losses(self, sentences: list[list[str]]) -> Array:
        """Return -log p of each word of sentences, and of their ends, in nats."""
        with working(self.threads) as work:
            losses = word_losses(self.saved.model, self._ids(sentences), work)
        if not np.isfinite(losses).all():
            raise no_numbers()
        return losses.astype(np.float64)


def _no_numbers(dynamic: float) -> ModelError:
    """Return what is raised where probabilities are not finite, perhaps as steps of this rate were too large."""
    return no_numbers(f"give a lower rate than --dynamic {dynamic:g}") if dynamic else no_numbers()


def load(path: Path = "model", *, threads: int = 1) -> Model:
    """Read a model: the best of its folder, or an `.npz`.

    `threads` compute what it is asked; they change no result. Raises ModelError where there is no model, or its file is
    damaged.
    """
    return Model(load_model(path), fit_option(Threads, threads, "threads"))


def train(
    corpus: Path | Sequence[Path] = (),
    model: Path = "model",
    *,
    resume: bool = False,
    overwrite: bool = False,
    listener: Listener | None = None,
    **options: Any,
) -> Iterator[Event]:
    """Train a model on texts, into a folder, as `rnnlm train` does; yields what happens, and trains while it is asked.

    Who stops asking can go on later with `resume=True`: what was trained is saved. Under mpiexec each process calls
    this with the same arguments, and all see the same events; there, only a `listener` stops them so that all is saved.

    Arguments:
        corpus: the text, or several; `-` is standard input. With `resume`, only if it is elsewhere now.
        model: the folder.
        resume: go on with the training in that folder.
        overwrite: replace the model in that folder.
        listener: who is told of what lies between events, and may stop the run.
        options: the other options of `rnnlm train` by their names, `hidden=200` for `--hidden 200`; `from_` for
            `--from`.

    Raises an RnnlmError at once where an option is wrong, and when it is asked: TextError, VocabularyError, ModelError,
    SettingsError, DivergenceError.
    """
    events = train_to_end(
        *_start(corpus, ModelFolder(model), resume, overwrite, Listener() if listener is None else listener, options)
    )
    _live.add(events)
    return events


_live: WeakSet[Generator[Event]] = WeakSet()


@atexit.register
def _close_all() -> None:
    """Save what is trained of runs that nobody has finished, while there still is all that saving needs."""
    for events in list(_live):
        with suppress(ValueError):  # it is at work, in another thread
            events.close()


def _start(
    corpus: object, folder: ModelFolder, resume: bool, overwrite: bool, listener: Listener, options: dict[str, Any]
) -> tuple[ModelFolder, Callable[[], Run], bool, int, SaveEvery, Listener, Ranks, str | None]:
    """Check the options of a run, and return what `train_to_end` takes."""
    resume, overwrite = fit_option(bool, resume, "resume"), fit_option(bool, overwrite, "overwrite")
    if resume and overwrite:
        raise SettingsError("--resume goes on with a model and --overwrite replaces it; give one of them")
    if "initial" in options:
        raise SettingsError("there is no option 'initial'; a model to begin with is given by from_")
    given = {"initial" if name == "from_" else name: value for name, value in options.items()}
    if resume and "initial" in given:
        raise SettingsError("--resume goes on with a model and --from begins with one; give one of them")
    if not isinstance(listener, Listener):
        raise SettingsError(f"the listener is {brief(listener)}; it takes an rnnlm.Listener")
    save_every = SaveEvery.of(given.pop("save_every", "10m"))
    ranks, scratch = world(), fit_option(str | None, given.pop("scratch", None), "scratch")
    threads = fit_option(Threads, given.pop("threads", ranks.cores), "threads")
    texts: tuple[str, ...] = fit_option(tuple[str, ...], corpus, "corpus")
    reading: dict[str, Any] = {"processes": threads * ranks.processes, "stage": listener.stage, "ranks": ranks}
    if resume:
        start = partial(resume_run, folder, texts, given, **reading)
    else:
        start = partial(begin, folder, RunSettings.of(texts, given), overwrite=overwrite, **reading)
    if len(set(ranks.all(repr((texts, folder.name, resume, overwrite, given))))) > 1:
        raise SettingsError("mpiexec has started trainings with other options; give all of them the same")
    return folder, start, resume, threads, save_every, listener, ranks, scratch
