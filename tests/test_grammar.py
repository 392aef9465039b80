import importlib.util
import itertools
import math
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import nltk
import numpy as np
import pytest
from click.testing import CliRunner

from rnnlm.detokenize import detokenize
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

DATA = Path(__file__).resolve().parent.parent / "data"


def _load() -> ModuleType:
    """Import data/grammar.py, which is a script and belongs to no package."""
    specification = importlib.util.spec_from_file_location("grammar", DATA / "grammar.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["grammar"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


grammar = _load()
GRAMMAR = grammar.load_grammar()

# Several readings of "in the park" and of "and", chains of single-child rules, words inside longer rules.
AMBIGUOUS = """
    S -> NP VP [0.9] | VP [0.1]
    NP -> Det N [0.5] | NP PP [0.2] | Name [0.2] | "all" "the" N [0.1]
    Det -> "the" [1.0]
    Name -> Proper [1.0]
    Proper -> "Ann" [0.7] | "Park" [0.3]
    N -> "dog" [0.6] | "park" [0.3] | Name [0.1]
    VP -> V NP [0.5] | VP PP [0.2] | V [0.2] | VP "and" VP [0.1]
    V -> "sees" [0.6] | "likes" [0.4]
    PP -> "in" NP [1.0]
"""


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[list[str], float]]]:
    """Draw the derivations behind the committed texts: tokens in the grammar's own form, and log-probabilities."""
    generator = np.random.default_rng(grammar.SEED)
    parts = {}
    for name, size in grammar.SIZES.items():
        parts[name] = [grammar.draw_sentence(GRAMMAR, generator) for _ in range(size)]
        grammar.render([tokens for tokens, _ in parts[name]], generator)  # draws the lengths of paragraphs
    return parts


@pytest.fixture(scope="module")
def read() -> dict[str, list[list[str]]]:
    """Read the committed texts by rnnlm's text pipeline, which learns from train.txt."""
    return {name: grammar.read_sentences(DATA / f"{name}.txt") for name in grammar.SIZES}


def accepts(sentence: str) -> bool:
    """Whether the grammar accepts a readable sentence."""
    ((_, accepted),) = grammar.judge(GRAMMAR, [sentence])
    return accepted


# The grammar


def test_nltk_reads_the_same_grammar_and_its_probabilities_sum_to_one() -> None:
    """Each left-hand side's probabilities are positive and sum to one to rounding, and every symbol is defined."""
    productions = nltk.PCFG.fromstring((DATA / "grammar.pcfg").read_text(encoding="utf-8")).productions()
    sums: dict[str, float] = {}
    for production in productions:
        assert production.prob() > 0
        sums[production.lhs()] = sums.get(production.lhs(), 0.0) + production.prob()
    assert sums == pytest.approx(dict.fromkeys(sums, 1.0), abs=1e-12)
    used = {symbol for production in productions for symbol in production.rhs() if not isinstance(symbol, str)}
    assert used | {GRAMMAR.start} == set(sums)
    assert sum(len(rules) for rules in GRAMMAR.rules.values()) == len(productions)


def test_probabilities_that_do_not_sum_to_one_are_refused() -> None:
    """NLTK lets one percent pass; the floor could not be trusted then."""
    with pytest.raises(ValueError, match=r"S sum to 0\.995"):
        grammar.parse_grammar('S -> "a" [0.5] | "b" [0.495]')


def test_a_symbol_that_becomes_itself_is_refused() -> None:
    """Such a symbol has infinitely many derivations, and the sum over chains would not end."""
    with pytest.raises(ValueError, match="rewritten as itself"):
        grammar.log_probability(grammar.parse_grammar('S -> A [0.5] | "a" [0.5]\nA -> S [1.0]'), ["a"])


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("The foxes that the woman loves are sleeping.", "The foxes that the woman loves is sleeping."),
        ("The foxes that the woman loves are sleeping.", "The foxes that the woman love are sleeping."),
        ("The fox that the women love is sleeping.", "The fox that the women love are sleeping."),
        ("The foxes who are following the king fear Anna.", "The foxes who are following the king fears Anna."),
        ("The foxes who are following the king fear Anna.", "The foxes who is following the king fear Anna."),
        ("The key that two kings are stealing is red.", "The key that two kings are stealing are red."),
        ("Two kings, Anna and a hen know the poet.", "Two kings, Anna and a hen knows the poet."),
        ("Does the crow that knows two boys love Tom?", "Do the crow that knows two boys love Tom?"),
        ("Where are the frogs that Tom fears?", "Where is the frogs that Tom fears?"),
        ("Who is helping the men?", "Who are helping the men?"),
        ("A goat isn't in the barn.", "A goat aren't in the barn."),
        ('"I am hungry," says the bear.', '"I is hungry," says the bear.'),
    ],
)
def test_verbs_agree_across_what_stands_between(right: str, wrong: str) -> None:
    """Changing one verb's number makes an accepted sentence impossible."""
    assert accepts(right)
    assert not accepts(wrong)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"The moon rises," says Tom.', '"The moon rises, says Tom.'),
        ('Tom asks, "Where is Anna?"', "Tom asks, where is Anna?"),
        ('Tom asks, "Where is Anna?"', 'Tom asks, "where is Anna?"'),
        ('Tom says, "We are brave."', "We are brave."),
        ("Is Tom brave?", "Is Tom brave."),
        ("When the sun returns, Tom is singing.", "When the sun returns."),
        ("Tom, a hen and two poets are brave.", "Tom, a hen, two poets are brave."),
        ("Tom is brave.", "tom is brave."),
        ("The hen is brave.", "the hen is brave."),
        ("The hen loves Tom.", "The hen loves The dog."),
        ("The hen is brave.", "The <unk> is brave."),
        ("The hen is brave.", "."),
    ],
)
def test_quotations_questions_and_lists_are_complete(right: str, wrong: str) -> None:
    """What opens is closed, what begins is finished, and capitals stand where a sentence or a quotation begins."""
    assert accepts(right)
    assert not accepts(wrong)


def test_capitalizing_loses_nothing(drawn: dict[str, list[tuple[list[str], float]]]) -> None:
    """No name is also a lower-case word, so capitalizing keeps every probability, and can be undone."""
    capitalized = {word[0].upper() + word[1:] for word in GRAMMAR.words if word[0].islower()}
    assert not capitalized & GRAMMAR.words
    for tokens, _ in drawn["valid"]:
        assert grammar.uncapitalize(grammar.capitalize(tokens), GRAMMAR.words) == tokens


# Probabilities


def test_log_probability_sums_over_derivations_as_nltk_finds_them() -> None:
    """On an ambiguous grammar, drawn sentences and random words have the probability of all parses that NLTK lists."""
    small = grammar.parse_grammar(AMBIGUOUS)
    parser = nltk.parse.pchart.InsideChartParser(nltk.PCFG.fromstring(AMBIGUOUS))
    generator = np.random.default_rng(1)
    ambiguous = accepted = 0
    for _ in range(150):
        if generator.random() < 0.5:
            tokens = grammar.draw_sentence(small, generator)[0]
        else:
            tokens = [str(word) for word in generator.choice(sorted(small.words), generator.integers(1, 5))]
        if len(tokens) > 9:
            continue
        trees = list(parser.parse(tokens))
        ambiguous += len(trees) > 1
        accepted += bool(trees)
        expected = math.fsum(tree.prob() for tree in trees)
        assert math.exp(grammar.log_probability(small, tokens)) == pytest.approx(expected, rel=1e-12)
    assert ambiguous > 10
    assert accepted > 50


def test_the_probabilities_of_all_sentences_sum_to_one() -> None:
    """A grammar of finitely many sentences, some of two derivations, shares out all of the probability."""
    finite = grammar.parse_grammar(
        'S -> A A [0.6] | B [0.4]\nA -> "x" [0.5] | "x" "y" [0.5]\nB -> A "x" [0.3] | A [0.7]'
    )
    sentences = itertools.chain.from_iterable(itertools.product("xy", repeat=length) for length in range(1, 5))
    total = math.fsum(math.exp(grammar.log_probability(finite, sentence)) for sentence in sentences)
    assert total == pytest.approx(1.0, abs=1e-14)


def test_a_long_sentence_keeps_its_probability() -> None:
    """A sentence whose probability no float can hold still has the logarithm that arithmetic gives."""
    words = " | ".join(f'"w{index}" [0.001]' for index in range(1000))
    long = grammar.parse_grammar(f"S -> W S [0.5] | W [0.5]\nW -> {words}")
    assert grammar.log_probability(long, ["w7"] * 120) == pytest.approx(120 * math.log(0.0005), rel=1e-12)


def test_drawn_sentences_have_one_derivation(drawn: dict[str, list[tuple[list[str], float]]]) -> None:
    """The sum over derivations is the drawn derivation's own probability, so the floor is exact either way."""
    for tokens, log_probability in drawn["valid"] + drawn["test"]:
        assert grammar.log_probability(GRAMMAR, tokens) == pytest.approx(log_probability, rel=1e-12)


def test_no_sentence_beyond_sixty_words(drawn: dict[str, list[tuple[list[str], float]]]) -> None:
    """Recursion is rare enough that sentences stay short."""
    assert max(len(tokens) for part in drawn.values() for tokens, _ in part) < 60


def test_the_analytic_entropy_is_that_of_the_draw(drawn: dict[str, list[tuple[list[str], float]]]) -> None:
    """Length and entropy of 20,000 drawn sentences lie within four standard errors of what the rules alone give."""
    expected = grammar.expect(GRAMMAR)
    sentences = list(itertools.chain.from_iterable(drawn.values()))
    lengths = np.array([len(tokens) for tokens, _ in sentences])
    surprisals = np.array([-log_probability for _, log_probability in sentences])
    # The entropy per prediction is a ratio of sums: its error is that of the mean of what the ratio leaves over.
    left_over = surprisals - expected.entropy * (lengths + 1)
    for sample, mean in ((lengths, expected.words), (surprisals, -expected.log_probability), (left_over, 0.0)):
        standard_error = sample.std() / math.sqrt(len(sample))
        assert abs(sample.mean() - mean) < 4 * standard_error
    assert left_over.std() / math.sqrt(len(sentences)) / expected.predictions < 0.003  # or the test would prove little


def test_expectation_of_a_grammar_worked_by_hand() -> None:
    """S -> a S | a with one half each: two words and two choices of one bit on average."""
    expected = grammar.expect(grammar.parse_grammar('S -> "a" S [0.5] | "a" [0.5]'))
    assert expected.words == pytest.approx(2)
    assert expected.log_probability == pytest.approx(-2 * math.log(2))
    assert expected.perplexity == pytest.approx(2 ** (2 / 3))


# The texts


def test_one_seed_one_text() -> None:
    """The same seed draws the same bytes, another seed others."""
    sizes = {"one": 40, "two": 20}
    assert grammar.draw_texts(GRAMMAR, 5, sizes) == grammar.draw_texts(GRAMMAR, 5, sizes)
    assert grammar.draw_texts(GRAMMAR, 5, sizes) != grammar.draw_texts(GRAMMAR, 6, sizes)


def test_the_committed_texts_are_what_the_committed_seed_draws(tmp_path: Path) -> None:
    """`draw` writes data/train.txt, valid.txt and test.txt again, byte for byte."""
    result = CliRunner().invoke(grammar.main, ["draw", "--directory", str(tmp_path)])
    assert result.exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.txt", "train.txt", "valid.txt"]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DATA / path.name).read_bytes()


def test_every_sentence_survives_the_text_pipeline(
    drawn: dict[str, list[tuple[list[str], float]]], read: dict[str, list[list[str]]]
) -> None:
    """Cut by the sentence ends that Punkt learns from train.txt, the raw texts give back exactly what was drawn."""
    for name, sentences in drawn.items():
        assert read[name] == [grammar.capitalize(tokens) for tokens, _ in sentences]


def test_another_seed_survives_the_text_pipeline(tmp_path: Path) -> None:
    """It is the grammar that is safe to cut, not one lucky draw."""
    generator = np.random.default_rng(11)
    sentences = [grammar.draw_sentence(GRAMMAR, generator)[0] for _ in range(2000)]
    path = tmp_path / "text.txt"
    path.write_text(grammar.render(sentences, generator), encoding="utf-8")
    source = Source.of(path)
    tokenizer = Tokenizer.learn([source], TextSettings())
    assert list(tokenizer.sentences([source])) == [grammar.capitalize(tokens) for tokens in sentences]


def test_the_texts_are_raw_paragraphs_in_wrapped_lines() -> None:
    """Lines are at most 76 characters wide, and blank lines part paragraphs of three to seven sentences."""
    for name, size in grammar.SIZES.items():
        text = (DATA / f"{name}.txt").read_text(encoding="utf-8")
        assert max(map(len, text.split("\n"))) <= 76
        assert text.endswith("\n")
        assert "\n\n\n" not in text
        assert size / 7 <= len(text.split("\n\n")) <= size / 3


def test_the_readme_states_the_figures(read: dict[str, list[list[str]]]) -> None:
    """The table is what `floor` prints, and the numbers in the prose are those of the texts."""
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    result = CliRunner().invoke(grammar.main, ["floor", *(str(DATA / f"{name}.txt") for name in grammar.SIZES)])
    assert result.exit_code == 0
    assert result.output in readme
    training = {tuple(sentence) for sentence in read["train"]}
    repeated = {name: sum(tuple(sentence) in training for sentence in read[name]) for name in ("valid", "test")}
    prose = " ".join(readme.split())
    assert f"{repeated['valid']} of the 1,000 sentences in `valid.txt` and {repeated['test']} of those in" in prose
    counts = Counter(word for sentence in read["train"] for word in grammar.uncapitalize(sentence, GRAMMAR.words))
    rarest = min(counts[word] for word in GRAMMAR.words)
    assert f"each of the {len(GRAMMAR.words)} words occurs at least {rarest} times" in prose


# The commands


def test_check_counts_and_names_what_the_grammar_rejects() -> None:
    """One sentence a line; blank lines count as none."""
    lines = "Tom is brave.\n\nTom are brave.\nThe sun rises.\n"
    result = CliRunner().invoke(grammar.main, ["check", "--rejected", "-"], input=lines)
    assert result.output == "accepted by the grammar: 2 of 3 (66.7%)\nTom are brave.\n"


def test_report_holds_a_model_against_the_floor(tmp_path: Path) -> None:
    """Perplexity given or read from a model's history, the floor of the text, their ratio, and the share accepted."""
    generator = np.random.default_rng(3)
    sentences = [grammar.draw_sentence(GRAMMAR, generator) for _ in range(50)]
    text = tmp_path / "text.txt"
    text.write_text(grammar.render([tokens for tokens, _ in sentences], generator), encoding="utf-8")
    predictions = sum(len(tokens) + 1 for tokens, _ in sentences)
    floor = math.exp(-math.fsum(log_probability for _, log_probability in sentences) / predictions)
    history = '{"valid_perplexity": 20.0}\n{"valid_perplexity": 10.0}\n{"event": "other"}\n{"valid_perplexity": 11.0}\n'
    (tmp_path / "history.jsonl").write_text(history, encoding="utf-8")
    generated = "".join(detokenize(grammar.capitalize(tokens)) + "\n" for tokens, _ in sentences)
    reports = [
        CliRunner().invoke(grammar.main, ["report", *reached, "--floor-of", str(text), "-"], input=generated).output
        for reached in (["--perplexity", "10"], ["--model", str(tmp_path)])
    ]
    assert reports[0] == reports[1]
    for expected in ("10.000", f"{floor:.3f}", f"{10 / floor:.3f}", "50 of 50 (100.0%)"):
        assert expected in reports[0]


@pytest.mark.parametrize(
    ("arguments", "text", "message"),
    [
        (["check", "-"], "\n", "there are no sentences to judge"),
        (["report", "-"], "Tom is brave.\n", "--model or --perplexity"),
        (["report", "--model", "{folder}", "-"], "Tom is brave.\n", "there is no such file; name a model's folder"),
        (["floor", "{folder}/foreign.txt"], "", "sentence 2 is not in the grammar, so the text has no floor: Go away."),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(tmp_path: Path, arguments: list[str], text: str, message: str) -> None:
    """Wrong usage ends with a sentence and an exit code, never with a traceback."""
    (tmp_path / "foreign.txt").write_text("Tom is brave. Go away.\n", encoding="utf-8")
    arguments = [argument.format(folder=tmp_path) for argument in arguments]
    result = CliRunner().invoke(grammar.main, arguments, input=text)
    assert result.exit_code in (1, 2)
    assert isinstance(result.exception, SystemExit)
    assert message in result.output


def test_pairs_are_one_sentence_of_the_grammar_and_one_that_is_none() -> None:
    """The sentences of a pair differ in one word, the verb of the main clause; one seed gives the same pairs."""
    lines = list(grammar.draw_pairs(GRAMMAR, 100, 3))
    assert lines == list(grammar.draw_pairs(GRAMMAR, 100, 3))
    tokenizer = Tokenizer(TextSettings(lines=True))
    kinds = Counter()
    for line in lines:
        good, bad, kind = line.split("\t")
        kinds[kind] += 1
        (ours,), (wrong,) = tokenizer.prompt(good), tokenizer.prompt(bad)
        assert grammar.written_log_probability(GRAMMAR, ours) > -math.inf
        assert grammar.written_log_probability(GRAMMAR, wrong) == -math.inf
        assert sum(a != b for a, b in zip(ours, wrong, strict=True)) == 1
    assert set(kinds.values()) == {25}
    result = CliRunner().invoke(grammar.main, ["pairs", "--count", "100", "--seed", "3"])
    assert result.output.splitlines() == lines
