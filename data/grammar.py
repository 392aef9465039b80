"""The grammar behind the embedded corpus: draws text from it, and knows how well that text can be predicted at best.

    python data/grammar.py draw                                  # writes data/train.txt, valid.txt and test.txt again
    python data/grammar.py pairs                                 # pairs of sentences, whose verbs agree or do not
    python data/grammar.py floor data/valid.txt                  # the perplexity that no model can beat
    rnnlm generate --count 100 | python data/grammar.py check -  # the share of sentences that the grammar accepts

A probabilistic context-free grammar gives each derivation the product of its rules' probabilities, and each sentence
the sum over its derivations. The mean of -log of that over the predictions (each word, and the end of each sentence)
is the entropy of the text, and its exponential is the perplexity of a model that knows all there is to know.

A sentence is a list of tokens in one of two forms: the grammar's own, lower case but for names and "I"; and the
written one, as a model sees it, in which the first word, and the first word of a quotation, are capitalized. No name is
also a word in lower case, so both forms have the same probability.
"""

import json
import math
import textwrap
from bisect import bisect
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO, TypeAlias

import click
import nltk
import numpy as np
from nltk.grammar import Nonterminal

from rnnlm.detokenize import detokenize
from rnnlm.errors import ModelError, RnnlmError, TextError
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

DATA = Path(__file__).resolve().parent
SEED = 1
SIZES = {"train": 18_000, "valid": 1_000, "test": 1_000}
LINE_WIDTH = 76


# --- The grammar ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rule:
    """One way to rewrite a nonterminal: its children in order (the strings are words), and how likely it is."""

    children: tuple[Nonterminal | str, ...]
    probability: float


@dataclass(frozen=True)
class Grammar:
    """A probabilistic context-free grammar without empty rules; `rules` lists the ways to rewrite each nonterminal."""

    start: Nonterminal
    rules: Mapping[Nonterminal, tuple[Rule, ...]]

    @cached_property
    def words(self) -> frozenset[str]:
        """Every word that a rule can write."""
        children = (child for rules in self.rules.values() for rule in rules for child in rule.children)
        return frozenset(child for child in children if isinstance(child, str))

    @cached_property
    def cumulative(self) -> Mapping[Nonterminal, list[float]]:
        """For each nonterminal, the running sums of its rules' probabilities."""
        return {left: list(accumulate(rule.probability for rule in rules)) for left, rules in self.rules.items()}

    @cached_property
    def inside(self) -> "InsideTable":
        """The rules in the form that `log_probability` reads."""
        return tabulate(self)


def parse_grammar(text: str) -> Grammar:
    """Read NLTK's PCFG syntax; raises ValueError if the probabilities of a left-hand side do not sum to one."""
    parsed = nltk.PCFG.fromstring(text)
    rules: dict[Nonterminal, list[Rule]] = defaultdict(list)
    for production in parsed.productions():
        if not production.rhs():
            raise ValueError(f"{production.lhs()} has an empty rule, which this script does not support")
        rules[production.lhs()].append(Rule(tuple(production.rhs()), production.prob()))
    for left, choices in rules.items():
        total = math.fsum(rule.probability for rule in choices)
        if abs(total - 1) > 1e-9:  # NLTK itself lets one percent pass
            raise ValueError(f"the probabilities of {left} sum to {total:.6f}, not to one")
    return Grammar(parsed.start(), {left: tuple(choices) for left, choices in rules.items()})


def load_grammar() -> Grammar:
    """Read `data/grammar.pcfg`."""
    return parse_grammar((DATA / "grammar.pcfg").read_text(encoding="utf-8"))


# --- Drawing ----------------------------------------------------------------------------------------------------------


def draw_sentence(
    grammar: Grammar, generator: np.random.Generator, start: str | None = None
) -> tuple[list[str], float]:
    """Draw one derivation; returns its tokens in the grammar's own form and its log-probability in nats.

    `start` is the symbol to begin with; None: the grammar's own.
    """
    words: list[str] = []
    log_probability = 0.0
    pending: list[Nonterminal | str] = [grammar.start if start is None else Nonterminal(start)]
    while pending:
        symbol = pending.pop()
        if isinstance(symbol, str):
            words.append(symbol)
            continue
        rules = grammar.rules[symbol]
        # Rounding may leave the last running sum just short of one.
        rule = rules[min(bisect(grammar.cumulative[symbol], generator.random()), len(rules) - 1)]
        log_probability += math.log(rule.probability)
        pending.extend(reversed(rule.children))
    return words, log_probability


def capitalize(tokens: Sequence[str]) -> list[str]:
    """Return the written form, in which a sentence's first word and a quotation's first word are capitalized."""
    return [token[0].upper() + token[1:] if begins else token for token, begins in with_beginnings(tokens)]


def uncapitalize(tokens: Sequence[str], words: frozenset[str]) -> list[str]:
    """Undo `capitalize`, given the grammar's words; a token that should be capitalized and is not becomes ''."""
    return [restore(token, words) if begins else token for token, begins in with_beginnings(tokens)]


def with_beginnings(tokens: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield each token, and whether it is the first word of the sentence or of a quotation."""
    begins = True
    for token in tokens:
        yield token, begins and token != "``"
        begins = token == "``"


def restore(token: str, words: frozenset[str]) -> str:
    """Return the grammar's form of a token that begins a sentence."""
    if not token[:1].isupper():
        return ""
    return token if token in words else token[0].lower() + token[1:]


def render(sentences: Sequence[Sequence[str]], generator: np.random.Generator) -> str:
    """Return raw text of sentences in the grammar's own form: paragraphs of three to seven, in wrapped lines."""
    readable = [detokenize(capitalize(sentence)) for sentence in sentences]
    paragraphs = []
    first = 0
    while first < len(readable):
        last = first + 3 + int(5 * generator.random())
        paragraphs.append(textwrap.fill(" ".join(readable[first:last]), LINE_WIDTH))
        first = last
    return "\n\n".join(paragraphs) + "\n"


def draw_texts(grammar: Grammar, seed: int, sizes: Mapping[str, int]) -> dict[str, str]:
    """Draw raw texts of so many sentences each, one after the other from a single generator; one seed, one result."""
    generator = np.random.default_rng(seed)
    texts = {}
    for name, size in sizes.items():
        sentences = [draw_sentence(grammar, generator)[0] for _ in range(size)]
        texts[name] = render(sentences, generator)
    return texts


# --- Minimal pairs ----------------------------------------------------------------------------------------------------

NUMBERS = {"s": "singular", "p": "plural"}


def draw_pair(
    grammar: Grammar, subject: str, inner: str, generator: np.random.Generator
) -> tuple[list[str], list[str]]:
    """Draw a sentence whose subject and verb have a relative clause between them, and the same with the other verb.

    `subject` and `inner` are s or p, the number of the subject and that of the subject within the clause. Returns the
    tokens of both sentences in the grammar's own form. Where number does not show in the verb, another is drawn.
    """
    clause = ["that", *draw_sentence(grammar, generator, f"PlainBeing-{inner}")[0]]
    clause += draw_sentence(grammar, generator, f"Verb-{inner}")[0]
    beginning = [*draw_sentence(grammar, generator, f"PlainBeing-{subject}")[0], *clause]
    while True:
        # The rules for one number are those for the other, in the same order: the same numbers choose the same words.
        seed = int(generator.integers(2**63))
        predicates = {
            number: draw_sentence(grammar, np.random.default_rng(seed), f"Predicate-{number}")[0] for number in NUMBERS
        }
        good = predicates.pop(subject)
        (bad,) = predicates.values()
        if good != bad:
            return [*beginning, *good, "."], [*beginning, *bad, "."]


def draw_pairs(grammar: Grammar, count: int, seed: int) -> Iterator[str]:
    """Yield so many lines for `rnnlm pairs`: a good sentence, a bad one, and the numbers of both subjects."""
    generator = np.random.default_rng(seed)
    kinds = [(subject, inner) for subject in NUMBERS for inner in NUMBERS]
    for index in range(count):
        subject, inner = kinds[index % len(kinds)]
        good, bad = (detokenize(capitalize(tokens)) for tokens in draw_pair(grammar, subject, inner, generator))
        yield f"{good}\t{bad}\t{NUMBERS[subject]}, in the clause {NUMBERS[inner]}"


# --- Probability ------------------------------------------------------------------------------------------------------

Symbol: TypeAlias = Nonterminal | str | tuple[Nonterminal | str, ...]  # a tuple is the beginning of a longer rule
Spans: TypeAlias = Mapping[
    int, float
]  # the symbols, by number, that derive some words, each with its inside probability


@dataclass(frozen=True)
class InsideTable:
    """A grammar cut into steps that join two neighbors, chains of single-child rules already multiplied out.

    Arguments:
        start: the number of the start symbol.
        words: for each word, the log of a common factor, and what derives the word, divided by that factor; so that
            the probability of a long sentence stays a number that a float can hold.
        joins: `joins[left][right]` lists (symbol, probability) for every symbol that left and right together make.
    """

    start: int
    words: Mapping[str, tuple[float, Spans]]
    joins: Mapping[int, Mapping[int, Sequence[tuple[int, float]]]]


def tabulate(grammar: Grammar) -> InsideTable:
    """Bring a grammar's rules into the form that `log_probability` reads."""
    singles, pairs = binarize(grammar)
    symbols: list[Symbol] = [*grammar.rules, *sorted(grammar.words), *(parent for parent, _, _ in pairs)]
    number = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols))}
    useful = {number[grammar.start]} | {number[child] for _, *children in pairs for child in children}
    ancestors = chains({(number[a], number[b]): p for (a, b), p in singles.items()}, len(number), useful)

    joins: dict[int, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for (parent, left, right), probability in pairs.items():
        made = joins[number[left]][number[right]]
        made.extend((ancestor, chain * probability) for ancestor, chain in ancestors[number[parent]].items())
    words = {}
    for word in grammar.words:
        spans = ancestors[number[word]]
        factor = max(spans.values(), default=1.0)
        words[word] = math.log(factor), {symbol: probability / factor for symbol, probability in spans.items()}
    return InsideTable(number[grammar.start], words, {left: dict(row) for left, row in joins.items()})


def binarize(
    grammar: Grammar,
) -> tuple[dict[tuple[Symbol, Symbol], float], dict[tuple[Symbol, Symbol, Symbol], float]]:
    """Cut rules of three children and more in two from the left: `A -> B C D` becomes `A -> (B C) D`, `(B C) -> B C`.

    Returns the probabilities of the rules of one child, by parent and child, and of those of two.
    """
    singles: dict[tuple[Symbol, Symbol], float] = defaultdict(float)
    pairs: dict[tuple[Symbol, Symbol, Symbol], float] = defaultdict(float)
    for parent, rules in grammar.rules.items():
        for rule in rules:
            *beginning, last = rule.children
            if not beginning:
                singles[parent, last] += rule.probability
                continue
            left: Symbol = beginning[0]
            for length, child in enumerate(beginning[1:], start=2):
                prefix = tuple(beginning[:length])
                pairs[prefix, left, child] = 1.0
                left = prefix
            pairs[parent, left, last] += rule.probability
    return singles, pairs


def chains(singles: Mapping[tuple[int, int], float], size: int, useful: set[int]) -> list[dict[int, float]]:
    """Return, for each symbol, the useful symbols that chains of single-child rules, or of none, rewrite as it.

    Sum the powers of the matrix of single-child rules, which end in zero unless a symbol can become itself.
    """
    step = np.zeros((size, size))
    for (parent, child), probability in singles.items():
        step[parent, child] = probability
    total = power = np.eye(size)
    while (power := power @ step).any():
        if power.diagonal().any():
            raise ValueError("a symbol can be rewritten as itself, which this script does not support")
        total = total + power
    return [{int(i): float(column[i]) for i in np.flatnonzero(column) if int(i) in useful} for column in total.T]


def log_probability(grammar: Grammar, tokens: Sequence[str]) -> float:
    """Return the log-probability in nats of a sentence in the grammar's own form, summed over its derivations.

    It is -inf for what the grammar does not accept. The inside algorithm: from short spans to long ones, the
    probability that a symbol derives just these words is the sum over the ways to join two shorter spans.
    """
    table = grammar.inside
    if not tokens or any(token not in table.words for token in tokens):
        return -math.inf
    chart: dict[tuple[int, int], Spans] = {}
    for first, token in enumerate(tokens):
        chart[first, first + 1] = table.words[token][1]
    for width in range(2, len(tokens) + 1):
        for first in range(len(tokens) - width + 1):
            last = first + width
            cell: dict[int, float] = defaultdict(float)
            for middle in range(first + 1, last):
                if (lefts := chart[first, middle]) and (rights := chart[middle, last]):
                    join(table, lefts, rights, cell)
            chart[first, last] = cell
    probability = chart[0, len(tokens)].get(table.start, 0.0)
    if probability == 0.0:
        return -math.inf
    return math.log(probability) + math.fsum(table.words[token][0] for token in tokens)


def join(table: InsideTable, lefts: Spans, rights: Spans, cell: dict[int, float]) -> None:
    """Add to `cell` whatever a symbol of `lefts` makes with one of `rights`."""
    for left, left_probability in lefts.items():
        row = table.joins.get(left)
        if row is None:
            continue
        for right, right_probability in rights.items():
            for symbol, probability in row.get(right, ()):
                cell[symbol] += left_probability * right_probability * probability


def written_log_probability(grammar: Grammar, tokens: Sequence[str]) -> float:
    """Return the log-probability in nats of a sentence in its written form, as a model sees it."""
    return log_probability(grammar, uncapitalize(tokens, grammar.words))


@dataclass(frozen=True)
class Figures:
    """What a text holds, and its log-probability under the grammar in nats; or what a sentence holds on average."""

    sentences: float
    words: float
    log_probability: float

    @property
    def predictions(self) -> float:
        """How often a model must predict: each word and, for each sentence, `</s>`."""
        return self.words + self.sentences

    @property
    def entropy(self) -> float:
        """Nats per prediction."""
        return -self.log_probability / self.predictions

    @property
    def perplexity(self) -> float:
        """The perplexity of a model that gives each sentence its true probability."""
        return math.exp(self.entropy)


def measure(grammar: Grammar, sentences: Iterable[Sequence[str]]) -> Figures:
    """Return the figures of a text in its written form; raises TextError at a sentence that the grammar rejects."""
    count = words = 0
    total = 0.0
    for count, sentence in enumerate(sentences, start=1):
        words += len(sentence)
        total += written_log_probability(grammar, sentence)
        if total == -math.inf:
            raise TextError(f"sentence {count} is not in the grammar, so the text has no floor: {detokenize(sentence)}")
    return Figures(count, words, total)


def expect(grammar: Grammar) -> Figures:
    """Return one sentence's words and derivation log-probability in expectation, from the rules alone.

    Each nonterminal's expectation is what its rules add themselves plus that of their children: a linear system,
    (1 - M) x = own, where M[A, B] is the expected number of children B of an A.
    """
    number = {left: index for index, left in enumerate(grammar.rules)}
    children = np.zeros((len(number), len(number)))
    own = np.zeros((len(number), 2))  # words, log-probability
    for left, rules in grammar.rules.items():
        for rule in rules:
            own[number[left], 1] += rule.probability * math.log(rule.probability)
            for child in rule.children:
                if isinstance(child, str):
                    own[number[left], 0] += rule.probability
                else:
                    children[number[left], number[child]] += rule.probability
    words, log_probability = np.linalg.solve(np.eye(len(number)) - children, own)[number[grammar.start]]
    return Figures(1, float(words), float(log_probability))


# --- Commands ---------------------------------------------------------------------------------------------------------


@cache
def training_tokenizer() -> Tokenizer:
    """Learn where sentences end, as `rnnlm train data/train.txt` does."""
    return Tokenizer.learn([Source.of(DATA / "train.txt")], TextSettings())


def read_sentences(file: str | Path) -> list[list[str]]:
    """Return the sentences of a raw text in their written form."""
    return list(training_tokenizer().sentences([Source.of(file)]))


def judge(grammar: Grammar, lines: Iterable[str]) -> list[tuple[str, bool]]:
    """Return each readable sentence, and whether the grammar accepts it; blank lines are no sentences."""
    tokenizer = Tokenizer(TextSettings(lines=True))
    sentences = [line.strip() for line in lines if line.strip()]
    if not sentences:
        raise TextError("there are no sentences to judge; give one a line, as rnnlm generate prints them")
    return [(line, written_log_probability(grammar, tokenizer.prompt(line)[0]) > -math.inf) for line in sentences]


def share(judged: Sequence[tuple[str, bool]]) -> str:
    """Say how many of the sentences are accepted."""
    accepted = sum(fine for _, fine in judged)
    return f"{accepted:,} of {len(judged):,} ({accepted / len(judged):.1%})"


def best_perplexity(model: Path) -> float:
    """Return the best validation perplexity in the history of a model's folder."""
    history = model / "history.jsonl"
    if not history.is_file():
        raise ModelError(f"{history}: there is no such file; name a model's folder with --model")
    records = (json.loads(line) for line in history.read_text(encoding="utf-8").splitlines())
    perplexities = [float(record["valid_perplexity"]) for record in records if "valid_perplexity" in record]
    if not perplexities:
        raise ModelError(f"{history}: nothing has been evaluated yet; train the model for an epoch")
    return min(perplexities)


class Commands(click.Group):
    """Commands whose errors are one sentence."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except RnnlmError as error:
            raise click.ClickException(str(error)) from None


@click.group(cls=Commands)
def main() -> None:
    """Draw the embedded corpus from its grammar, and hold texts and models against that grammar."""


@main.command()
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True, help="Seed of the draw.")
@click.option(
    "--directory",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=DATA,
    show_default="beside this script",
    help="Where to write.",
)
def draw(seed: int, directory: Path) -> None:
    """Draw train.txt, valid.txt and test.txt, overwriting them."""
    for name, text in draw_texts(load_grammar(), seed, SIZES).items():
        (directory / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")


@main.command()
@click.option("--count", type=click.IntRange(min=1), default=1000, show_default=True, help="Pairs to draw.")
@click.option("--seed", type=click.IntRange(min=0), default=SEED, show_default=True, help="Seed of the draw.")
def pairs(count: int, seed: int) -> None:
    """Print minimal pairs for rnnlm pairs: verbs that agree with their subjects across a relative clause."""
    for line in draw_pairs(load_grammar(), count, seed):
        click.echo(line)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
def floor(files: tuple[str, ...]) -> None:
    """Print the perplexity that no model can beat except by luck: the grammar's own, on FILES and in expectation."""
    grammar = load_grammar()
    click.echo(f"{'text':16}{'sentences':>10}{'words':>10}{'types':>7}{'predictions':>13}   nats   bits  perplexity")
    for file in files:
        sentences = read_sentences(file)
        types = len({word for sentence in sentences for word in sentence})
        found = measure(grammar, sentences)
        counts = f"{found.sentences:10,}{found.words:10,}{types:7,}{found.predictions:13,}"
        click.echo(f"{Path(file).name:16}{counts}{entropy_columns(found)}")
    mean = expect(grammar)
    click.echo(f"{'in expectation':16}{1:10}{mean.words:10.3f}{'':7}{mean.predictions:13.3f}{entropy_columns(mean)}")


def entropy_columns(figures: Figures) -> str:
    """Return the last columns of `floor`: entropy per prediction in nats and in bits, and perplexity."""
    return f"{figures.entropy:7.4f}{figures.entropy / math.log(2):7.4f}{figures.perplexity:12.4f}"


@main.command()
@click.option("--rejected", is_flag=True, help="Print the sentences that the grammar rejects, too.")
@click.argument("sentences", type=click.File(encoding="utf-8", errors="replace"))
def check(rejected: bool, sentences: TextIO) -> None:
    """Print how many of SENTENCES, one a line, the grammar accepts; - reads standard input."""
    judged = judge(load_grammar(), sentences)
    click.echo(f"accepted by the grammar: {share(judged)}")
    if rejected:
        click.echo("\n".join(line for line, fine in judged if not fine))


@main.command()
@click.option("--perplexity", type=click.FloatRange(min=1), help="What the model reached on the text of --floor-of.")
@click.option(
    "--model",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The model's folder instead: the best validation perplexity in its history.",
)
@click.option(
    "--floor-of",
    type=click.Path(exists=True, dir_okay=False),
    default=DATA / "valid.txt",
    show_default="valid.txt beside this script",
    help="The text on which that was reached.",
)
@click.argument("sentences", type=click.File(encoding="utf-8", errors="replace"))
def report(perplexity: float | None, model: Path | None, floor_of: str, sentences: TextIO) -> None:
    """Hold a model against the grammar: its perplexity, and SENTENCES that it generated, one a line."""
    if perplexity is None and model is not None:
        perplexity = best_perplexity(model)
    if perplexity is None:
        raise click.UsageError("Say what the model reached, with --model or --perplexity.")
    grammar = load_grammar()
    lowest = measure(grammar, read_sentences(floor_of)).perplexity
    click.echo(f"perplexity reached on {Path(floor_of).name:14} {perplexity:8.3f}")
    click.echo(f"perplexity of the grammar itself     {lowest:8.3f}  (no model can beat it, except by luck)")
    click.echo(f"ratio                                {perplexity / lowest:8.3f}")
    click.echo(f"generated sentences it accepts       {share(judge(grammar, sentences))}")


if __name__ == "__main__":
    main()
