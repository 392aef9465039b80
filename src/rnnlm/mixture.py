"""Mixtures of language models.

    p(w | h) = sum_M l_M p_M(w | h),    sum_M l_M = 1

Vocabularies may differ. Let D_M be the words of model M without `<unk>`, V the union of all D_M, and u anything else. A
model gives its `<unk>` in equal shares to u and to the words of V that it lacks, p_M(<unk> | h) / (|V - D_M| + 1) each,
so that the probabilities of V and u sum to one, in each model and hence in the mixture.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from rnnlm import api
from rnnlm.arpa import MAGIC, KenlmBinary, read_arpa
from rnnlm.checking import Checked, Range, Unfit, fit_option, restore
from rnnlm.checkpoint import model_file
from rnnlm.corpus import Stage, silent
from rnnlm.errors import ModelError, SettingsError, TextError
from rnnlm.files import open_plain, reason, replacing
from rnnlm.scoring import Reader, Score, Scorer, each_sentence
from rnnlm.settings import Count, Share, TextSettings
from rnnlm.sources import Source, shown, spooled
from rnnlm.text import Prompt, Tokenizer
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN

Array = NDArray[np.float64]
PathLike = str | os.PathLike[str]
Oov = Literal["share", "mikolov"]

TITLE = "# A mixture of language models, as `rnnlm mix` writes it."
"""The first line of a mixture's file."""

ROUNDED = 1e-6
"""What the sum of weights may differ from 1 by."""

_FILE_LIMIT = 2**20  # bytes of a mixture's file
_BLOCK = 10_000  # sentences that are scored at once


class Mixture:
    """Models, and how much of each; it answers as they do.

    Arguments:
        parts: the models (M).
        weights: (M,), which sum to one.
        oov: what a model gives to a word that it lacks: `share`, as above; `mikolov`: nothing.
    """

    carries_state = False

    def __init__(self, parts: Sequence[Scorer], weights: Sequence[float], oov: Oov = "share") -> None:
        self.parts, self.weights, self.oov = list(parts), np.array(weights, float), fit_option(Oov, oov, "oov")
        self.words: frozenset[str] = frozenset().union(*(part.words for part in parts))
        # of the others' words, how many each part shares its <unk> with
        self.lacking = tuple(len(self.words) - len(part.words) if oov == "share" else 0 for part in parts)
        self._shares = [math.log(lacking + 1) for lacking in self.lacking]

    @property
    def tokenizer(self) -> Tokenizer:
        """How a text becomes words: as for the models of ours in it, else a sentence a line, words between blanks.

        Raises SettingsError where they differ.
        """
        return tokenizer_of(self.parts)

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[Array]:
        """Return log p, natural, of the words of each sentence and of its `</s>`; each is read by itself."""
        if not sentences:
            return []
        return each_sentence(mixed(self.part_log_probs(sentences), self.weights), sentences)

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Say of each word whether no model has it: whether it is u."""
        return [word not in self.words for word in words]

    def lengths(self, words: Sequence[str]) -> list[int]:
        """Return by how many words each word of a sentence, and its end, is predicted, at most."""
        return [max(lengths) for lengths in zip(*(part.lengths(words) for part in self.parts), strict=True)]

    @property
    def numbers(self) -> Mapping[str, int]:
        """The number of each word where KenLM prints one: of an n-gram model alone its own; else 0 is `<unk>`."""
        if len(self.parts) == 1:
            return self.parts[0].numbers
        return {word: 0 if word == UNKNOWN else number + 2 for word, number in self.ids.items()}

    @cached_property
    def ids(self) -> dict[str, int]:
        """A number for each word, `</s>` the first, `<unk>` the last."""
        words = [SENTENCE_END, *sorted(self.words - {SENTENCE_END}), UNKNOWN]
        return {word: number for number, word in enumerate(words)}

    @property
    def lowercase(self) -> bool:
        """Whether texts are read in lower case."""
        return tokenizer_of(self.parts, pretokenized=True).settings.lowercase

    def line_tokenizer(self, pretokenized: bool = False) -> Tokenizer:
        """Return what cuts a line; raises SettingsError as `tokenizer_of` does."""
        own = [part.tokenizer.settings for part in self.parts if isinstance(part, api.Model)]
        raw = bool(own) and not (pretokenized or any(settings.pretokenized for settings in own))
        settings = tokenizer_of(
            self.parts, pretokenized, lines=raw
        ).settings  # a line is a sentence, whatever Punkt knows
        return Tokenizer(replace(settings, lines=not settings.pretokenized))

    def reader(self, *, keep_state: bool = False, ranks: bool = False) -> Reader:
        """Return what reads sentences of words, for `scoring.scored`; SettingsError for what a mixture cannot."""
        if keep_state or ranks:
            option = "--keep-state" if keep_state else "--rank"
            raise SettingsError(f"{option} is for a model of ours alone; leave it out")
        return lambda sentences: [log_p[None] for log_p in self.log_probs(sentences)]

    def prompt(self, text: str, pretokenized: bool = False) -> Prompt:
        """Cut the beginning of a sentence into words; raises TextError as `api.Model.prompt` does."""
        tokenizer = tokenizer_of(self.parts, pretokenized)
        *_, words = tokenizer.prompt(fit_option(str, text, "prompt")) or [[]]
        unknown = [word for word, strange in zip(words, self.unknown(words), strict=True) if strange]
        return Prompt([], words, list(dict.fromkeys(unknown)))

    def next_words(self, text: str, count: int = 10, pretokenized: bool = False) -> list[tuple[str, float]]:
        """Return the likeliest words after the beginning of a sentence, each with its probability.

        `<unk>` stands for all words that no model has.
        """
        words, count = self.prompt(text, pretokenized).words, fit_option(Count, count, "count")
        following = list(self.ids)
        table = np.empty((len(following), len(self.parts)))
        for column, part in enumerate(self.parts):
            log_p = part.next_log_probs(words)
            own = log_p[UNKNOWN] - (self._shares[column] if self.oov == "share" else math.inf)
            table[:, column] = [own if word == UNKNOWN else log_p.get(word, own) for word in following]
        found = zip(following, mixed(table, self.weights).tolist(), strict=True)
        likeliest = sorted(found, key=lambda item: (-item[1], item[0]))[:count]
        return [(word, math.exp(each)) for word, each in likeliest]

    def perplexity(
        self,
        *files: PathLike,
        pretokenized: bool = False,
        lines: bool = False,
        carry_state: bool | None = None,
        encoding: str | None = None,
        stage: Stage = silent,
        scoring: object = None,
    ) -> Score:
        """Score texts, as `api.Model.perplexity` does, each sentence by itself; `stage` is told of the progress."""
        if carry_state:
            raise SettingsError("--carry-state is for a model of ours alone; leave it out")
        names: tuple[str, ...] = fit_option(tuple[str, ...], files, "file")
        tokenizer = tokenizer_of(self.parts, pretokenized, lines, encoding)
        log_p, known, sentences, words, strange = 0.0, 0.0, 0, 0, 0
        for each, unknown in self._scored(names, tokenizer, stage):
            log_p += math.fsum(each.tolist())
            known += math.fsum(each[:-1][~np.array(unknown, bool)].tolist()) + float(each[-1])
            sentences, words, strange = sentences + 1, words + len(unknown), strange + sum(unknown)
        if not sentences:
            raise TextError("there is nothing to score: the text has no sentences; name another file")
        return Score(sentences, words, strange, words + sentences, log_p, known)

    def _scored(self, names: Sequence[str], tokenizer: Tokenizer, stage: Stage) -> Iterator[tuple[Array, list[bool]]]:
        """Yield log p of the words of each sentence of texts and of its end, and which words are unknown."""
        with spooled(names) as sources:
            for source in sources:
                with (
                    stage(f"scoring {source.name}", source.size) as progress,
                    closing(tokenizer.sentences([source], 1, progress)) as sentences,
                ):
                    for some in blocks(sentences):
                        yield from zip(self.log_probs(some), map(self.unknown, some), strict=True)

    def part_log_probs(self, sentences: Sequence[Sequence[str]]) -> Array:
        """Return what each model gives to each word and `</s>` (N, M), as a part of the mixture."""
        words = [word for sentence in sentences for word in (*sentence, SENTENCE_END)]
        table = np.empty((len(words), len(self.parts)))
        for column, part in enumerate(self.parts):
            log_p = np.concatenate(part.log_probs(sentences))
            lacking = np.array(part.unknown(words))
            if self.oov == "share":
                log_p[lacking] -= self._shares[column]
            else:  # there, <unk> in a text is a word like others
                log_p[lacking & (np.array(words, object) != UNKNOWN)] = -math.inf
            table[:, column] = log_p
        return table


def blocks(sentences: Iterator[list[str]]) -> Iterator[list[list[str]]]:
    """Gather sentences that are scored at once."""
    while some := list(islice(sentences, _BLOCK)):
        yield some


def mixed(table: Array, weights: Array) -> Array:
    """Return log p of a mixture (N,), of the log p of its parts (N, M)."""
    with np.errstate(divide="ignore"):  # a weight of 0
        weighted: Array = table + np.log(weights)
    return np.asarray(np.logaddexp.reduce(weighted, axis=1))


def tokenizer_of(
    parts: Iterable[Scorer], pretokenized: bool = False, lines: bool = False, encoding: str | None = None
) -> Tokenizer:
    """Return how a text is cut; raises SettingsError where models of ours cut it differently."""
    settings, parts = TextSettings(pretokenized, lines), list(parts)
    kinds: list[Tokenizer] = []
    for part in parts:
        if isinstance(part, api.Model):
            own = part.tokenizer
            how = settings if settings.line_is_sentence else own.settings
            code = encoding or (kinds[0] if kinds else own).settings.encoding
            how = replace(how, lowercase=own.settings.lowercase, encoding=code)
            kinds.append(Tokenizer(how, None if how.line_is_sentence else own.punkt))
    if any(kind.settings.lowercase != kinds[0].settings.lowercase for kind in kinds):
        raise SettingsError(
            "some models read texts in lower case and others do not, so they cannot be mixed; leave out one kind"
        )
    others = any(not isinstance(part, api.Model) for part in parts)  # whose texts have a sentence a line
    if any(kind != kinds[0] for kind in kinds) or (others and kinds and not kinds[0].settings.line_is_sentence):
        raise SettingsError(
            "the models cut texts into sentences or words differently; say how to: --pretokenized or --lines"
        )
    if kinds:
        return kinds[0]
    return Tokenizer(TextSettings(not settings.lines, settings.lines, encoding=encoding or settings.encoding))


# Files


@dataclass(frozen=True)
class _PartEntry(Checked):
    """A model in a mixture's file."""

    path: str  # from the file's folder on
    weight: Share
    sha256: str  # of the model's file


@dataclass(frozen=True)
class _File(Checked):
    """A mixture's file."""

    format: Annotated[int, Range(1, 1)]
    model: tuple[_PartEntry, ...]

    def check(self) -> None:
        """Refuse weights that do not sum to one."""
        total = sum(part.weight for part in self.model)
        if abs(total - 1) > ROUNDED:
            raise Unfit("the sum of the weights", total, "1")


def digest(path: PathLike, mixture: str = "") -> str:
    """Return the SHA-256 of a model's file; of a folder, that of the file which is used.

    Raises ModelError where it cannot be read, with the name of the `mixture` that it is a part of.
    """
    place = model_file(path)
    try:
        with open_plain(place):  # a pipe would wait for who writes to it
            pass
    except OSError as error:
        remedy = "put it back, or mix again" if mixture else "name a model's folder, its .npz, or an ARPA file"
        within = f"{mixture}: " if mixture else ""
        raise ModelError(f"{within}{shown(str(place))}: cannot be read ({reason(error)}); {remedy}") from None
    return Source.of(place).digest()


def check_output(output: PathLike | None, streams: bool, oov: Oov) -> None:
    """Refuse before the work what cannot be written after it; None is nothing to write."""
    if output is None:
        return
    path = Path(output)
    if streams:
        raise SettingsError(
            "-o writes a mixture of models, and a stream scores its own text only; leave out one of them"
        )
    if oov != "share":
        raise SettingsError("-o writes a mixture whose probabilities sum to one; leave out -o or --oov mikolov")
    if path.suffix != ".toml":
        raise SettingsError(f"{shown(str(path))}: the name of a mixture's file ends in .toml; name it so with -o")
    try:
        if os.path.lexists(path):
            with open_plain(path) as file:
                if not file.read(len(TITLE)) == TITLE.encode():
                    raise ModelError(
                        f"{shown(str(path))}: there is another file, no mixture; remove it or name another with -o"
                    )
        elif not path.parent.is_dir():
            raise ModelError(
                f"{shown(str(path))}: there is no folder {shown(str(path.parent))}; make it, or name another with -o"
            )
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "there is no such path"
        raise ModelError(f"{shown(str(path))}: cannot be written ({why}); name another with -o") from None


def save(path: Path, models: Sequence[str], weights: Sequence[float], digests: Sequence[str]) -> None:
    """Write a mixture's file; raises ModelError where that fails."""
    rows, folder = [TITLE, "format = 1"], os.path.realpath(path.parent)  # a link may lead to it
    for model, weight, sha256 in zip(models, weights, digests, strict=True):
        place = model if Path(model).is_absolute() else os.path.relpath(os.path.realpath(model), folder)
        quoted = json.dumps(place, ensure_ascii=False).replace("\x7f", "\\u007f")
        rows += ["", "[[model]]", f"path = {quoted}", f"weight = {weight!r}", f'sha256 = "{sha256}"']
    try:
        content = ("\n".join(rows) + "\n").encode()
    except UnicodeEncodeError:
        raise ModelError(f"{shown(str(path))}: the path of a model is not UTF-8; rename it") from None
    with replacing(path, ModelError, "make room, or name another file with -o") as file:
        file.write(content)


def load(path: PathLike, threads: int = 1, stage: Stage = silent) -> Mixture:
    """Read a mixture's file and its models.

    Raises ModelError where it is none, or where a model is missing or has changed.
    """
    import tomllib

    name, folder = shown(os.fspath(path)), Path(path).parent
    try:
        with open_plain(Path(path)) as file:
            text = file.read(_FILE_LIMIT + 1)
        if len(text) > _FILE_LIMIT:
            remedy = "write it again with rnnlm mix -o"
            raise ModelError(f"{name}: is no mixture (it has more than {_FILE_LIMIT:,} bytes); {remedy}")
        content = tomllib.loads(text.decode())
        found = restore(_File, content, "the file")
    except OSError as error:
        raise ModelError(f"{name}: cannot be read ({reason(error)}); name another file") from None
    except (ValueError, RecursionError) as error:
        detail = str(error) if isinstance(error, Unfit | tomllib.TOMLDecodeError) else "it is no TOML in UTF-8"
        raise ModelError(f"{name}: is no mixture ({detail}); write it again with rnnlm mix -o") from None
    if not found.model:
        raise ModelError(f"{name}: has no models; write it again with rnnlm mix -o")
    for part in found.model:
        if digest(folder / part.path, name) != part.sha256:
            where = shown(str(folder / part.path))
            raise ModelError(f"{name}: {where} has changed since; mix again, or put the old one back")
    parts = [open_part(folder / part.path, threads, stage) for part in found.model]
    return Mixture(parts, [part.weight for part in found.model])


def open_scorer(path: PathLike, threads: int = 1, stage: Stage = silent) -> api.Model | Mixture:
    """Open a model of any kind: ours, a mixture's .toml, or an ARPA file or a binary of KenLM, as a mixture of one.

    Raises ModelError or TextError where there is none, or it is damaged.
    """
    if Path(path).suffix == ".toml":
        return load(path, threads, stage)
    part = _single(path, threads, stage)
    return part if isinstance(part, api.Model) else Mixture([part], [1.0])


def open_part(path: PathLike, threads: int = 1, stage: Stage = silent) -> Scorer:
    """Open a model that can be a part of a mixture; raises as `open_scorer` does, and ModelError for a mixture."""
    if Path(path).suffix == ".toml":
        raise ModelError(
            f"{shown(os.fspath(path))}: a mixture is no part of another; name the models that it is made of"
        )
    return _single(path, threads, stage)


def _single(path: PathLike, threads: int, stage: Stage) -> Scorer:
    """Open a model that is no mixture; its first bytes say of which kind it is."""
    place = Path(path)
    name = shown(os.fspath(path))
    try:
        if place.suffix == ".npz" or place.is_dir():
            return api.load(path, threads=threads)
        with open_plain(place) as file:
            start = file.read(len(MAGIC))
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else "there is no such path"
        remedy = "train one with `rnnlm train`, or name a model's folder, its .npz, an ARPA file or a mixture's .toml"
        raise ModelError(f"{name}: cannot be read ({why}); {remedy}") from None
    if start.startswith(b"PK"):
        return api.load(path, threads=threads)
    if start == MAGIC:
        return KenlmBinary(place)
    source = Source.of(path)
    with stage(f"reading {source.name}", source.size) as progress:
        return read_arpa(source, progress)
