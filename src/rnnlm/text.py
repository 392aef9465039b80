"""Texts to sentences of words: Punkt and word tokenizing; the only file that knows NLTK.

Each chunk of a text is tokenized by itself, here or in another process, into its *plain form*: one sentence a line,
words separated by single spaces. Sentence ends are found by Punkt, whose parameters are learned on the training corpus
and stored with the model, or are the ends of lines; words are found by NLTK's word tokenizer. A pretokenized text needs
neither, and then NLTK is not loaded.
"""

import contextlib
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, NamedTuple, TypeVar

from rnnlm import workers
from rnnlm.checking import Checked, Range, Unfit
from rnnlm.errors import TextError
from rnnlm.settings import TextSettings
from rnnlm.shortcuts import CLOSING_WORD, Remembered, simply_cut, simply_cut_last, surely_ends
from rnnlm.sources import SURROGATE, Chunk, Lines, Progress, Source, check_encoding, half_pair, plain_characters
from rnnlm.vocabulary import UNKNOWN

SENTENCE_LIMIT = 2**16  # a sentence of more characters is cut at blanks: no sentence is that long
LEARNING_LIMIT = 2**22  # Punkt learns from about the first 4 million characters: 5 seconds, and plenty
PROCESSES_PAY = 2_000_000  # bytes of raw text below which starting processes costs more than it saves
PLAIN_PROCESSES_PAY = 20_000_000  # the same for pretokenized text
KNOWN_RULES = 0x43485AF0  # checksum of NLTK's rules that the shortcuts lead around: those of version 3.10.4

Made = TypeVar("Made")

_STAND_IN = "\ufdd0"  # <unk> while NLTK, which would cut it into three, looks at the sentence; no source has it
_APOSTROPHE = re.compile(r"(?<!')’(?=\w)")  # before a word or part of one; elsewhere NLTK makes it a word of its own
_CLOSING = re.compile("[\"')\\]}”“’»›]+?(?:\\s+|(?=--)|$)", re.MULTILINE)  # what belongs to the sentence before it
_GOES_ON = re.compile("[“”’»›],")  # as in „Kommst du?“, fragte er
_LAST_STOP = re.compile(r"(?<=[^.\s])\.(?=[“‘«‹]+\s*$)")  # NLTK cuts it off its word before ” ’ and » alone
_BLANK_LINES = re.compile(r"\n\s*\n")
_TIDY = (("  ", " "), (" \n", "\n"), ("\n ", "\n"), ("\n\n", "\n"))


def nltk_version() -> str:
    """Return the version of NLTK, whose rules change a little from one to the next."""
    import importlib.metadata  # which brings along all that reads e-mail

    return importlib.metadata.version("nltk")


# Tokenizing


@dataclass(frozen=True)
class PunktParameters(Checked):
    """What Punkt has learned of a corpus, in plain values.

    Arguments:
        abbreviations: words that end in a period without ending a sentence.
        collocations: pairs of words that a period between them does not part.
        sentence_starters: words that often begin a sentence.
        orthography: for each word a sum of flags: where it was seen capitalized, and where not.
    """

    abbreviations: tuple[str, ...]
    collocations: tuple[tuple[str, str], ...]
    sentence_starters: tuple[str, ...]
    orthography: dict[str, Annotated[int, Range(0, 127)]]


class Line(NamedTuple):
    """A line of a text, cut into words."""

    text: str
    words: list[str]
    spans: list[tuple[int, int]] | None  # where in the line each word stands; None for pretokenized text


@dataclass(frozen=True)
class Prompt:
    """The beginning of a text, as a model reads it."""

    before: list[list[str]]  # sentences that are read first, where the model carries its state
    words: list[str]  # of the last sentence, which is continued
    unknown: list[str]  # words that the model does not know, and reads as <unk>


@dataclass(frozen=True)
class Tokenizer(Checked):
    """Text settings, and the sentence parameters learned under them (None where a line is a sentence).

    Equal tokenizers cut any text alike, also after they were stored as JSON. Raises Unfit when the settings need
    parameters and there are none, or the other way round.
    """

    settings: TextSettings = field(default_factory=lambda: TextSettings(pretokenized=True))
    punkt: PunktParameters | None = None

    def check(self) -> None:
        """Refuse parameters that do not go with the settings."""
        if (self.punkt is None) != self.settings.line_is_sentence:
            raise Unfit("punkt", self.punkt, "parameters if the text's settings need them, and else none")

    @classmethod
    def learn(cls, sources: Sequence[Source], settings: TextSettings, progress: Progress | None = None) -> "Tokenizer":
        """Learn where sentences end from the first LEARNING_LIMIT characters or so of a corpus.

        Where a line is a sentence, there is nothing to learn and nothing is read. `progress` is told of the bytes read.
        Raises TextError when the text cannot be read, SettingsError when its encoding does not exist.
        """
        check_encoding(settings.encoding)
        if settings.line_is_sentence:
            return cls(settings)
        return cls(settings, _learn_punkt(_leading_chunks(sources, settings, progress)))

    def blocks(self, sources: Sequence[Source], processes: int = 1, progress: Progress | None = None) -> Generator[str]:
        r"""Yield a corpus in its plain form, about a million characters at a time.

        Each block holds whole sentences, each a line that ends in "\n", its words separated by single spaces. The
        blocks are the same for any number of processes. The arguments and errors are those of `made_of_blocks`.
        """
        return self.made_of_blocks(_itself, sources, processes, progress)

    def made_of_blocks(
        self,
        make: Callable[[], Callable[[str], Made]],
        sources: Sequence[Source],
        processes: int = 1,
        progress: Progress | None = None,
    ) -> Generator[Made]:
        """Yield what a function makes of each block, in order; it works where the block has been tokenized.

        Arguments:
            make: makes the function, once in each process; it is pickled, and so is what the function returns.
            sources: in order.
            processes: how many processes tokenize at the same time; a small corpus starts none.
            progress: told how many bytes of the files were read since its last call.

        Raises TextError when a file cannot be read or has no words, or when a reserved word stands in it.
        """
        check_encoding(self.settings.encoding)
        encoding, lines = self.settings.encoding, self.settings.line_is_sentence
        read = (chunk for source in sources for chunk in source.chunks(encoding, lines))
        pay = PLAIN_PROCESSES_PAY if self.settings.pretokenized else PROCESSES_PAY
        number = processes if sum(source.size for source in sources) >= pay else 1
        work, chunks = partial(_block_maker, self, make), _checked(read, self.settings)
        with _deaths_named(), contextlib.closing(workers.ordered(work, chunks, number)) as finished:
            has_words = False  # the source that is being read, so far
            for chunk, made in finished:
                has_words = has_words or made is not None
                if chunk.last and not has_words:
                    raise TextError(f"{chunk.source.name} has no words; leave it out or name another file")
                if chunk.last:
                    has_words = False  # the next source has not begun
                if progress:
                    progress(chunk.read)
                if made is not None:
                    yield made

    def sentences(
        self, sources: Sequence[Source], processes: int = 1, progress: Progress | None = None
    ) -> Generator[list[str]]:
        """Yield the sentences of a corpus in order, each a list of words; the arguments are those of `blocks`."""
        with contextlib.closing(self.blocks(sources, processes, progress)) as blocks:
            for block in blocks:
                for sentence in block[:-1].split("\n"):
                    yield sentence.split(" ")

    def lines(self, block: Lines) -> list[Line]:
        """Cut each line into words, as one sentence; a blank one has none.

        Raises TextError, with the line, where a reserved word stands in it.
        """
        found = _reserved(self.settings).search("\n".join(block.lines))
        if found:
            raise _kept(block.name, block.first + found.string.count("\n", 0, found.start()), found)
        if self.settings.pretokenized:
            return [Line(text, folded(split_at_blanks(text), self.settings.lowercase), None) for text in block.lines]
        split = _word_splitter(self.settings)
        cut = []
        for number, text in enumerate(block.lines, block.first):
            with _patience(f"{block.name}, line {number}"):
                words = [word for part in _short(" ".join(text.split())) if part for word in split(part).split(" ")]
            spans, lower = _spans(text, words), text.lower() if self.settings.lowercase else text
            own = folded(words, self.settings.lowercase)
            cut.append(Line(lower if len(lower) == len(text) else text, own, spans))
        return cut

    def prompt(self, text: str) -> list[list[str]]:
        """Return the sentences of a prompt, each a list of words, cut like those of a text; a blank one has none.

        Raises TextError when a reserved word stands in it, or what is no character.
        """
        surrogate = SURROGATE.search(text)
        if surrogate:
            raise TextError(f"the prompt has {half_pair(surrogate)}; write it in the encoding of the terminal")
        text = plain_characters(text).replace("\0", " ")
        reserved = _reserved(self.settings).search(text)
        if reserved:
            raise TextError(f"{reserved.group()!r} is the model's own mark and cannot be given as a word; leave it out")
        with _patience("the prompt"):
            return [sentence.split(" ") for sentence in _plain_form(self)(text).split("\n")[:-1]]


def _checked(chunks: Iterable[Chunk], settings: TextSettings) -> Iterator[Chunk]:
    """Pass chunks on, stopping at a word that the model keeps for itself."""
    pattern = _reserved(settings)
    for chunk in chunks:
        found = pattern.search(chunk.text)
        if found:
            line = chunk.line + chunk.text.count("\n", 0, found.start())
            raise _kept(chunk.source.name, line, found)
        yield chunk


def _kept(name: str, line: int, found: re.Match[str]) -> TextError:
    """Return what is raised where a word stands in a text that the model keeps for itself."""
    message = f"{found.group()!r} is the model's own mark and cannot be a word; remove it from the text"
    return TextError(f"{name}, line {line}: {message}")


def _reserved(settings: TextSettings) -> re.Pattern[str]:
    """Return what finds <s> and </s>: as words in pretokenized text, anywhere in raw text."""
    mark = "</?[sS]>" if settings.lowercase else "</?s>"
    # "<" stands first, as the search for a plain character is fast; what is before it is looked at then
    return re.compile(rf"<(?<![^ \n]<){mark[1:]}(?![^ \n])" if settings.pretokenized else mark)


def _itself() -> Callable[[str], str]:
    """Return the function that leaves a block as it is."""
    return str


def _block_maker(tokenizer: Tokenizer, make: Callable[[], Callable[[str], Made]]) -> Callable[[Chunk], Made | None]:
    """Return the function that brings a chunk into its plain form and makes something of that, if there are words."""
    plain, use = _plain_form(tokenizer), make()

    def work(chunk: Chunk) -> Made | None:
        with _patience(_place(chunk)):
            block = plain(chunk.text)
        return use(block) if block else None

    return work


def _plain_form(tokenizer: Tokenizer) -> Callable[[str], str]:
    """Return the function that brings a text into its plain form, in which each sentence has at least one word."""
    settings = tokenizer.settings
    if settings.pretokenized:
        cut = _tidied
    else:
        split_sentences = _lines if tokenizer.punkt is None else _sentence_splitter(tokenizer.punkt)
        split_words = _word_splitter(settings)

        def cut(text: str) -> str:
            sentences = (" ".join(sentence.split()) for sentence in split_sentences(text))  # NLTK knows one blank
            parts = (split_words(part) for sentence in sentences for part in _short(sentence) if part)
            return "".join(f"{words}\n" for words in parts)

    return (lambda text: cut(text).lower()) if settings.lowercase else cut


def _tidied(text: str) -> str:
    """Bring pretokenized text into its plain form."""
    lines = _lines(text)
    if max(map(len, lines)) > SENTENCE_LIMIT:
        text = "\n".join(part for line in lines for part in _short(line))
    text = f"\n{text}\n"
    for wide, narrow in _TIDY:
        while wide in text:
            text = text.replace(wide, narrow)
    return text[1:]


def _short(sentence: str) -> Iterator[str]:
    """Yield the sentence, or its parts where it has more than SENTENCE_LIMIT characters, cut at blanks."""
    while len(sentence) > SENTENCE_LIMIT:
        cut = sentence.rfind(" ", 0, SENTENCE_LIMIT) + 1 or sentence.find(" ", SENTENCE_LIMIT) + 1
        if not cut:
            break
        yield sentence[:cut]
        sentence = sentence[cut:]
    yield sentence


def _lines(text: str) -> list[str]:
    return text.split("\n")


def split_at_blanks(sentence: str) -> list[str]:
    """Split at blanks; the blanks of other alphabets, such as the no-break space, belong to their words."""
    return sentence.split() if sentence.isascii() else [word for word in sentence.split(" ") if word]


def _spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Say from where to where in a text each of its words stands: together they are all of it but blanks."""
    places = [place for place, character in enumerate(text) if not character.isspace()]
    spans, start = [], 0
    for word in words:
        straight = word in ("``", "''") and text[places[start]] == '"'  # NLTK writes two characters for it
        end = start + (1 if straight else len(word))
        spans.append((places[start], places[end - 1] + 1))
        start = end
    return spans


def folded(words: list[str], lowercase: bool) -> list[str]:
    """Return words in lower case, if that is how texts are read."""
    return [word.lower() for word in words] if lowercase else words


def _sentence_splitter(parameters: PunktParameters) -> Callable[[str], Iterator[str]]:
    """Return the function that cuts raw text into sentences, none of which crosses a blank line."""
    from nltk.tokenize import punkt

    learned = punkt.PunktParameters()
    learned.abbrev_types = set(parameters.abbreviations)
    learned.collocations = set(parameters.collocations)
    learned.sent_starters = set(parameters.sentence_starters)
    learned.ortho_context.update(parameters.orthography)

    class Signs(punkt.PunktLanguageVars):  # type: ignore[misc]  # NLTK has no types
        re_boundary_realignment = _CLOSING  # NLTK's own takes the « that opens a sentence from it

    class Splitter(punkt.PunktSentenceTokenizer):  # type: ignore[misc]  # the same
        def text_contains_sentbreak(self, text: str) -> bool:
            return ends[text]

    splitter = Splitter(learned, lang_vars=Signs())
    doubtful = {*parameters.abbreviations, *(first for first, _ in parameters.collocations)}
    ask = super(Splitter, splitter).text_contains_sentbreak
    known = _rules_are_known()
    ends = Remembered(lambda text: (known and surely_ends(text, doubtful)) or ask(text))

    def split(text: str) -> Iterator[str]:
        for paragraph in _BLANK_LINES.split(text):
            sentence = ""
            for part in splitter.tokenize(paragraph):
                if sentence and not _GOES_ON.match(part):
                    yield sentence
                    sentence = ""
                sentence += part
            yield sentence

    return split


def _word_splitter(settings: TextSettings) -> Callable[[str], str]:
    """Return the function that cuts a raw sentence into words, `<unk>` remaining one, with single spaces between them.

    The sentence has single spaces, and at least one word. Each word is cut by itself, and remembered: what NLTK's rules
    make of what stands between two spaces depends on whether that is first, last, or neither, and on nothing else. The
    last stop alone they look for through words that are closing marks, which therefore go with the word before them.
    """
    split = _whole_splitter(settings)
    if not _rules_are_known():
        return split
    first = Remembered(lambda word: simply_cut(word) or split(f"{word} a").rpartition(" ")[0])
    between = Remembered(lambda word: simply_cut(word) or split(f"a {word} a")[2:-2])
    last = Remembered(lambda words: simply_cut_last(words) or split(f"a {words}")[2:])
    alone = Remembered(lambda words: simply_cut_last(words) or split(words))

    def join(sentence: str) -> str:
        words = sentence.split(" ")
        end = len(words) - 1
        while end and CLOSING_WORD.fullmatch(words[end]):
            end -= 1
        if not end or not words[-1]:  # a sentence that was cut for its length may end with a blank
            return alone[sentence]
        return " ".join((first[words[0]], *map(between.__getitem__, words[1:end]), last[" ".join(words[end:])]))

    return join


def _rules_are_known() -> bool:
    """Say whether NLTK's rules are those that the shortcuts lead around; if not, it is asked everything."""
    from nltk.tokenize.destructive import NLTKWordTokenizer as Rules
    from nltk.tokenize.punkt import PunktLanguageVars

    try:
        replaced = (*Rules.STARTING_QUOTES, *Rules.PUNCTUATION, Rules.PARENS_BRACKETS, Rules.DOUBLE_DASHES)
        texts = [text for pattern, by in (*replaced, *Rules.ENDING_QUOTES) for text in (pattern.pattern, by)]
        texts += [pattern.pattern for pattern in (*Rules.CONTRACTIONS2, *Rules.CONTRACTIONS3)]
        texts += sorted(PunktLanguageVars().period_context_re().pattern)  # it has a set in it, which has no order
    except (AttributeError, TypeError, ValueError):  # a version that has them in another form
        return False
    return zlib.crc32("\n".join(texts).encode()) == KNOWN_RULES


def _whole_splitter(settings: TextSettings) -> Callable[[str], str]:
    """Return the function that cuts a raw sentence into words by NLTK's rules."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    tokenize: Callable[[str], list[str]] = NLTKWordTokenizer().tokenize
    unknown = re.compile("<[uU][nN][kK]>" if settings.lowercase else UNKNOWN)

    def split(sentence: str) -> str:
        sentence = _LAST_STOP.sub(" .", sentence)
        if not unknown.search(sentence):
            return " ".join(_apostrophes_kept(tokenize, sentence))
        words = _apostrophes_kept(tokenize, unknown.sub(_STAND_IN, sentence))
        parts = (part for word in words for part in re.split(f"({_STAND_IN})", word) if part)
        return " ".join(UNKNOWN if part == _STAND_IN else part for part in parts)

    return split


def _apostrophes_kept(tokenize: Callable[[str], list[str]], sentence: str) -> list[str]:
    """Tokenize as if typographic apostrophes were straight, then cut the same words out of the sentence itself.

    NLTK takes every typographic one for a quotation mark, and makes three words of isn’t where n’t should be one.
    """
    if "’" not in sentence:
        return tokenize(sentence)
    words, rest, start = [], sentence.replace(" ", ""), 0
    for word in tokenize(_APOSTROPHE.sub("'", sentence)):
        if word in ("``", "''"):  # two characters that may stand for one: the only words that NLTK changes
            end = start + (1 if rest[start] == '"' else 2)
            words.append(word)
        else:
            end = start + len(word)
            words.append(rest[start:end])
        start = end
    return words


# Learning sentence ends


def _leading_chunks(sources: Sequence[Source], settings: TextSettings, progress: Progress | None) -> Iterator[Chunk]:
    """Yield chunks from the start of a corpus until they have LEARNING_LIMIT characters."""
    characters = 0
    for source in sources:
        for chunk in source.chunks(settings.encoding):
            yield chunk
            if progress:
                progress(chunk.read)
            characters += len(chunk.text)
            if characters >= LEARNING_LIMIT:
                return


def _learn_punkt(chunks: Iterable[Chunk]) -> PunktParameters:
    from nltk.tokenize import punkt

    types = Remembered(lambda word: str(punkt.PunktToken(word).type))
    ellipses = Remembered(lambda word: bool(punkt.PunktToken(word).is_ellipsis))

    class Token(punkt.PunktToken):  # type: ignore[misc]  # NLTK has no types
        def _get_type(self, word: str) -> str:
            return types[word]

        @property
        def is_ellipsis(self) -> bool:
            return ellipses[self.tok]

    trainer = punkt.PunktTrainer(token_cls=Token)
    for chunk in chunks:
        lines = (part for line in _lines(chunk.text) for part in _short(line))
        with _patience(_place(chunk)):
            trainer.train("\n".join(lines), finalize=False)
    learned = trainer.get_params()
    # Sorted, since sets have no order of their own: equal corpora give equal files.
    return PunktParameters(
        tuple(sorted(learned.abbrev_types)),
        tuple(sorted(learned.collocations)),
        tuple(sorted(learned.sent_starters)),
        {word: learned.ortho_context[word] for word in sorted(learned.ortho_context)},
    )


@contextlib.contextmanager
def _patience(place: str) -> Iterator[None]:
    """NLTK gives each of its regular expressions a few seconds; name the text on which one ran out of them."""
    try:
        yield
    except TimeoutError:
        message = "NLTK took too long over this text; break it into paragraphs, or tokenize it and say --pretokenized"
        raise TextError(f"{place}: {message}") from None


@contextlib.contextmanager
def _deaths_named() -> Iterator[None]:
    """Name the text during which a process was killed."""
    try:
        yield
    except workers.WorkerDiedError as error:
        (chunk,) = error.args
        message = "a process that tokenized it was killed, perhaps for want of memory; give a smaller --threads"
        raise TextError(f"{_place(chunk)}: {message}") from None


def _place(chunk: Chunk) -> str:
    return f"{chunk.source.name}, after line {chunk.line}"
