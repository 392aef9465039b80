"""What a user can choose: every setting's name, type, range and default, in one place.

A setting is a field; `bptt_truncate` here is `--bptt-truncate` on the command line and `bptt_truncate = ` in a file of
settings or a call from Python. Constructors check what they are given. Nothing here needs numpy, so that `--help`
answers at once.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from rnnlm.checking import Checked, Range, Settings, brief, fit_option, flag
from rnnlm.errors import SettingsError
from rnnlm.sources import STANDARD_INPUT

Natural = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0, above=True)]
Threads = Annotated[int, Range(1, 1024)]
Perplexity = Annotated[float, Range(0, infinite=True)]
Share = Annotated[float, Range(0, 1)]
Precision = Annotated[float, Range(1e-12, 1)]
Probability = Annotated[float, Range(0, 1, below=True)]
NotNegative = Annotated[float, Range(0, 1e30)]
Weight = Annotated[float, Range(-1e6, 1e6)]

CACHE_WEIGHT, CACHE_FLATNESS = 0.1, 0.3  # measured, see docs/benchmarks.md
DYNAMIC_DECAY = 0.002  # Krause et al. (2018)


# What rnnlm chooses by the cell and the size of the text where it is not given: see `defaults`.
CHOSEN = (
    *("hidden", "tied", "carry_state"),
    *("batch_size", "lr", "rate_power", "dropout", "dropout_state", "weight_decay", "average"),
    *("epochs", "decay_from", "lr_decay", "min_improvement", "patience"),
)


# What launchers of several processes tell each of its rank and of their number: Open MPI, MPICH and Intel MPI, MVAPICH,
# SLURM. The last says the number in a batch script too, which is one process, so that a rank goes with it.
LAUNCHERS = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
    ("PMIX_RANK", "SLURM_STEP_NUM_TASKS"),
)


def own_cores() -> set[int]:
    """Return the numbers of the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cores() -> int:
    """Count the cores that this process may use."""
    return len(own_cores())


def launched() -> tuple[int, int]:
    """Return the rank of this process among those that mpiexec has started, and their number; (0, 1) without it."""
    for rank, size in LAUNCHERS:
        numbers = os.environ.get(rank, ""), os.environ.get(size, "")
        if all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
            return int(numbers[0]), int(numbers[1])
    return 0, 1


@dataclass(frozen=True)
class TextSettings(Settings):
    """How a text becomes words."""

    pretokenized: bool = False  # one sentence a line, words separated by blanks; nothing is left to find
    lines: bool = False  # one sentence a line, words found by the word tokenizer
    lowercase: bool = False  # fold every word to lower case
    encoding: str = "utf-8"  # the text's encoding, by its Python name

    @property
    def line_is_sentence(self) -> bool:
        """Whether the ends of lines are those of sentences, so that Punkt is not needed."""
        return self.pretokenized or self.lines

    def check(self) -> None:
        """Refuse what contradicts itself."""
        if self.pretokenized and self.lines:
            raise SettingsError("--pretokenized takes a line as a sentence already; leave --lines out")


@dataclass(frozen=True)
class VocabularySettings(Settings):
    """How the vocabulary is made: from the training text, or from a file, which then takes the place of the rest."""

    vocab_size: Annotated[int, Range(3)] | None = 8000  # the most words, `</s>` and `<unk>` included; None: all
    min_count: Count | None = None  # rarer words are not kept; None: 2, or 1 where the text has `<unk>` of its own
    vocab: Path | None = None  # a file of the words


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """What is asked of the network; the vocabulary decides the rest of the model's settings."""

    hidden: Annotated[int, Range(1, 100_000)] = 100  # H
    cell: Literal["elman", "relu", "sigmoid", "gru", "lstm"] = "elman"
    layers: Annotated[int, Range(1, 100)] = 1  # L
    embedding: Annotated[int, Range(1, 100_000)] | None = None  # D, of the last of several tied layers too; None: H
    tied: bool = False  # one table of words for input and output
    clusters: Annotated[int, Range(1, 1000)] | None = None  # of words in the softmax; None: few, nearly the quickest
    bptt_truncate: Natural | None = None  # K; None: to the window's first step
    carry_state: bool = False  # from sentence to sentence, in text order


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How a model is trained."""

    bptt: Annotated[int, Range(0, 100_000)] = 35  # T, steps in a window; 0: a window is a sentence of each stream
    batch_size: Annotated[int, Range(1, 100_000)] | None = None  # B, streams; None: by the size of the text
    optimizer: Literal["sgd", "adagrad", "adam"] = "sgd"
    lr: Annotated[float, Range(0, 1e30, above=True)] | None = None  # of sgd, for a window's sum; None: see `defaults`
    rate_power: Share | None = None  # rows of U, V and c learn at p(word)^-power; None: 0.5 for sgd
    momentum: Probability = 0.0
    dropout: Probability = 0.0  # share of numbers zeroed in a window: words' rows, between layers, outputs
    dropout_input: Probability | None = None  # of words' rows; None: as `dropout`
    dropout_hidden: Probability | None = None  # between layers; None: as `dropout`
    dropout_output: Probability | None = None  # of outputs; None: as `dropout`
    dropout_weights: Probability = 0.0  # of each layer's recurrent weights
    dropout_state: Share = 0.0  # of sentences that begin with a state of zero, where it is carried
    weight_decay: NotNegative = 0.0  # of half the squared norm of U and V, beside the mean loss
    average: bool = False  # evaluate and keep a running mean of the weights
    average_every: Natural = 0  # windows after which ranks that step alone average their weights; 0: all take one step
    clip: NotNegative = 5.0  # greatest joint norm of the gradients of the mean loss; 0: none
    epochs: Annotated[int, Range(1, 10**9)] = 20
    eval_every: Natural = 0  # windows between evaluations, beside the one after each epoch; 0: none
    min_improvement: Annotated[float, Range(0, 1, below=True)] = 0.003  # share by which it must lower the perplexity
    decay_from: Natural = 0  # the first epoch after which the rate falls; 0: the first that has not improved so
    lr_decay: Annotated[float, Range(1, 1e30)] = 2.0  # what the rate is divided by after each epoch from then on
    patience: Annotated[int, Range(1, 10**9)] = 3  # epochs in a row without that improvement, after which it stops
    seed: Annotated[int, Range(0, 2**64 - 1)] = 1

    def check(self) -> None:
        """Refuse settings without effect, before any text is read in vain."""
        if self.optimizer != "sgd":
            for name in ("momentum", "rate_power"):
                if getattr(self, name):
                    message = f"{flag(name)} goes with --optimizer sgd and has no effect on {self.optimizer}"
                    raise SettingsError(f"{message}; leave one of them out")

    def dropout_in_force(self, layers: int) -> dict[str, float]:
        """Return the options of dropout that have an effect in a network of so many layers, with their rates."""
        own = {name: getattr(self, name) for name in own_dropout(layers)}
        options = {"dropout": self.dropout if None in own.values() else 0, **own}
        return {name: rate for name, rate in {**options, "dropout_weights": self.dropout_weights}.items() if rate}


def own_dropout(layers: int) -> tuple[str, ...]:
    """Return the options that take the place of --dropout, each for a part of a network of so many layers."""
    return ("dropout_input", *(["dropout_hidden"] if layers > 1 else []), "dropout_output")


def no_choice(name: str) -> SettingsError:
    """Return what is raised where an option has no effect, as nothing is drawn."""
    message = f"--temperature 0 takes the likeliest word, so {flag(name)} has no effect"
    return SettingsError(f"{message}; leave one of them out")


@dataclass(frozen=True)
class GenerationSettings(Settings):
    """How the next word is drawn, and how long a sentence may be.

    The distribution is made in this order, and sums to one again after each step:

    1. Words that may not come now are left out: `<unk>` unless `allow_unk`, and `</s>` while there are fewer than
       `min_words`.
    2. p becomes p^(1/temperature). Temperature 0 is the limit: always the likeliest word.
    3. `top_k` keeps the k likeliest words.
    4. `top_p` keeps the smallest set of the likeliest words whose probability, of the distribution so far, reaches
       top_p.

    Where two words are equally likely the one with the lower id, the more frequent, counts as the likelier. The length
    of a sentence counts the words of the prompt and not `</s>`; a sentence of `max_words` ends there.
    """

    temperature: Annotated[float, Range(0)] = 1.0
    top_k: Count | None = None  # None: all words
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None  # None: all words
    min_words: Natural = 1
    max_words: Count = 100
    allow_unk: bool = False

    @classmethod
    def of(cls, count: object, seed: object, given: Mapping[str, Any]) -> GenerationSettings:
        """Make settings of options by their names. Raises SettingsError as `RunSettings.of` does."""
        names = [item.name for item in fields(cls)]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise SettingsError(f"there is no option {unknown[0]!r}; rnnlm generate --help lists them")
        settings = cls(**given)
        for name, value in (("count", count), ("seed", 0 if seed is None else seed)):
            fit_option(Natural, value, name)
        if settings.temperature == 0 and seed is not None:
            raise no_choice("seed")
        return settings

    def check(self) -> None:
        """Refuse what contradicts itself or has no effect."""
        if self.min_words > self.max_words:
            message = f"--min-words is {self.min_words} and --max-words {self.max_words}"
            raise SettingsError(f"{message}; --max-words must be at least --min-words")
        for name in ("top_k", "top_p"):
            if self.temperature == 0 and getattr(self, name) is not None:
                raise no_choice(name)


@dataclass(frozen=True)
class RescoringSettings(Settings):
    """How the hypotheses of an n-best list are compared.

    A total is weight times the model's score, old_weight times the score that stands in the list, word_penalty times
    the number of words, and SRILM's acoustic score.
    """

    weight: Weight = 1.0
    old_weight: Weight | None = None  # None: 1, but 0 in SRILM's lists, where the old score is another model's
    word_penalty: Weight = 0.0
    context: Literal["none", "previous"] = "none"  # what a list is read after: the best hypothesis of the one before


@dataclass(frozen=True)
class AdaptationSettings(Settings):
    """How a model adapts to what it reads: see `adapting`."""

    cache: Annotated[int, Range(0, 1_000_000)] = 0  # positions that are remembered; 0: none
    cache_weight: Probability | None = None  # of what the cache expects; None: CACHE_WEIGHT
    cache_flatness: Annotated[float, Range(0, 1000)] | None = None  # None: CACHE_FLATNESS
    dynamic: NotNegative = 0.0  # rate of a step of SGD after each segment; 0: none
    dynamic_rms: str | None = None  # a text over which gradients are squared, to divide by the root of the mean
    dynamic_decay: Share | None = None  # of the way back to the model at each step, beside that; None: DYNAMIC_DECAY
    adapt_over: Literal["text", "paragraph", "sentence"] = "text"  # at whose end it is forgotten

    @property
    def caching(self) -> bool:
        """Whether there is a cache that changes anything."""
        return bool(self.cache and self.weight)

    @property
    def active(self) -> bool:
        """Whether anything is adapted."""
        return self.caching or bool(self.dynamic)

    @property
    def weight(self) -> float:
        """The share of what the cache expects."""
        return CACHE_WEIGHT if self.cache_weight is None else self.cache_weight

    @property
    def flatness(self) -> float:
        """What products of states are multiplied with, before the exponential."""
        return CACHE_FLATNESS if self.cache_flatness is None else self.cache_flatness

    @property
    def decay(self) -> float:
        """The share of the way back to the model that parameters of mean gradient go at each step."""
        return DYNAMIC_DECAY if self.dynamic_decay is None else self.dynamic_decay

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> AdaptationSettings:
        """Make settings of options by their names. Raises SettingsError as `RunSettings.of` does."""
        names = [item.name for item in fields(cls)]
        unknown = [name for name in given if name not in names]
        if unknown:
            raise SettingsError(f"there is no option {unknown[0]!r}; rnnlm evaluate --help lists them")
        return cls(**given)

    def check(self) -> None:
        """Refuse what has no effect."""
        needs = [("cache_weight", "cache"), ("cache_flatness", "cache"), ("dynamic_rms", "dynamic")]
        for name, other in (*needs, ("dynamic_decay", "dynamic_rms")):
            if getattr(self, name) is not None and not getattr(self, other):
                raise SettingsError(f"{flag(name)} has no effect without {flag(other)}; give both, or leave it out")
        if self.adapt_over != "text" and not (self.cache or self.dynamic):
            message = "--adapt-over has no effect without --cache or --dynamic"
            raise SettingsError(f"{message}; give one of them, or leave it out")

    def check_encoded(self) -> None:
        """Refuse paragraphs, of which an encoded text knows nothing."""
        if self.adapt_over == "paragraph":
            message = "--adapt-over paragraph needs blank lines, which a text loses when it is cut into sentences"
            raise SettingsError(f"{message}; give --adapt-over text or sentence, or use rnnlm score without --tune-on")

    def check_tuning(self) -> None:
        """Refuse a search for the cache's weight and flatness that has no effect."""
        if not self.cache:
            raise SettingsError("--tune-on finds what a cache needs; give --cache too, or leave it out")
        for name in ("cache_weight", "cache_flatness"):
            if getattr(self, name) is not None:
                raise SettingsError(f"--tune-on finds {flag(name)}; leave one of them out")


@dataclass(frozen=True)
class RunSettings(Settings):
    """All that decides what a training computes: its texts, how they become words, the network, the training."""

    corpus: tuple[str, ...]  # paths, or - for standard input
    valid: tuple[str, ...] = ()  # the same; none: the end of the corpus
    valid_fraction: Annotated[float, Range(0, 0.5, above=True)] = 0.05  # of the corpus's sentences, then held out
    initial: str | None = None  # a model whose weights and vocabulary the run begins with; None: random weights
    text: TextSettings = field(default_factory=TextSettings)
    vocabulary: VocabularySettings = field(default_factory=VocabularySettings)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    training: TrainingSettings = field(default_factory=TrainingSettings)
    chosen: tuple[str, ...] = ()  # those of CHOSEN that were not given, and that rnnlm may choose

    def check(self) -> None:
        """Refuse what contradicts itself or has no effect."""
        if not self.corpus:
            raise SettingsError("there is no text to train on; name one, or - for standard input")
        if (self.corpus + self.valid).count(STANDARD_INPUT) > 1:
            raise SettingsError("standard input is one text; name a file for the other of CORPUS and --valid")
        network, known = self.network, self.initial is not None or "hidden" in self.chosen
        if network.tied and network.layers == 1 and not known and network.embedding not in (None, network.hidden):
            message = f"--tied has one table of words for both, and --embedding is {network.embedding}"
            raise SettingsError(f"{message} where --hidden is {network.hidden}; leave --embedding out")
        reach, window = network.bptt_truncate, self.training.bptt
        if self.initial is None and reach is not None and window and reach >= window - 1:
            message = f"--bptt-truncate {reach} has no effect in windows of --bptt {window} steps"
            raise SettingsError(f"{message}; {'give a smaller one, or ' if reach else ''}leave it out")
        if self.initial is None:
            self.check_dropout()

    def check_dropout(self) -> None:
        """Refuse rates without effect in the network, which with `initial` is known only when that model is read."""
        training, network = self.training, self.network
        if training.dropout_hidden and network.layers == 1:
            raise SettingsError("--dropout-hidden is between layers and has no effect on one; leave it out")
        if training.dropout_state and not network.carry_state and "carry_state" not in self.chosen:
            if self.initial is not None:
                message = "--dropout-state has no effect, as the model of --from does not carry its state"
                raise SettingsError(f"{message}; leave it out")
            raise SettingsError("--dropout-state has no effect without --carry-state; give both, or leave it out")
        if training.dropout and "dropout" not in {*self.chosen, *training.dropout_in_force(network.layers)}:
            message = f"--dropout has no effect beside {' and '.join(map(flag, own_dropout(network.layers)))}"
            raise SettingsError(f"{message}; leave one of them out")

    @classmethod
    def groups(cls) -> dict[str, type[Checked]]:
        """Return the names of the fields that are settings themselves, each with its class."""
        return {
            "text": TextSettings,
            "vocabulary": VocabularySettings,
            "network": NetworkSettings,
            "training": TrainingSettings,
        }

    @classmethod
    def of(cls, corpus: object, given: Mapping[str, Any]) -> RunSettings:
        """Make settings of options by their names, those that are given and no others.

        Raises SettingsError where there is no such option, a value is not in its range, or one has no effect beside
        another that is given too.
        """
        rest, parts = dict(given), {}
        decided = vars(NetworkSettings()) if given.get("initial") is not None else {}
        chosen = tuple(name for name in CHOSEN if name not in given and name not in decided)
        for name, group in cls.groups().items():
            own = [item.name for item in fields(group) if item.name in rest]  # type: ignore[arg-type]  # a dataclass
            parts[name] = group(**{key: rest.pop(key) for key in own})
            if given.get("initial") is not None and name != "training" and set(own) - {"encoding"}:
                message = f"{flag(own[0])} has no effect beside --from, whose model decides it"
                raise SettingsError(f"{message}; leave one of them out")
        unknown = [name for name in rest if name not in ("valid", "valid_fraction", "initial")]
        if unknown:
            raise SettingsError(f"there is no option {unknown[0]!r}; rnnlm train --help lists them")
        settings = cls(corpus, chosen=chosen, **rest, **parts)  # type: ignore[arg-type]  # the constructor checks
        for name, other in (("valid_fraction", "valid"), ("vocab_size", "vocab"), ("min_count", "vocab")):
            if name in given and (settings.valid if other == "valid" else settings.vocabulary.vocab):
                raise SettingsError(f"{flag(name)} has no effect beside {flag(other)}; leave one of them out")
        return settings


@dataclass(frozen=True)
class SaveEvery:
    """How often a run is saved, beside each evaluation: after so many windows or, where that is 0, seconds."""

    windows: int = 0
    seconds: float = 600.0

    def due(self, windows: int, saved_at: float) -> bool:
        """Say whether to save after so many windows of an epoch, when it was last done at a time of the clock."""
        return windows % self.windows == 0 if self.windows else time.monotonic() - saved_at >= self.seconds

    @classmethod
    def of(cls, value: object) -> SaveEvery:
        """Read a number of windows, as in 500, or of minutes, as in 10m; raises SettingsError."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(m?)", str(value), re.ASCII)
        if match is None or float(match[1]) == 0 or (not match[2] and "." in match[1]):
            what = "a number of windows, as in 500, or of minutes, as in 10m"
            raise SettingsError(f"--save-every is {brief(value)}; it takes {what}")
        return cls(0, float(match[1]) * 60) if match[2] else cls(int(match[1]), 0.0)


SAVE_EVERY = SaveEvery()
