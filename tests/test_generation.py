"""Sentences are drawn from exactly the distribution that the settings define, and the same ones again by seed."""

from collections import Counter
from itertools import product

import numpy as np
import pytest

from rnnlm.errors import ModelError, SettingsError
from rnnlm.generation import SLOTS, GenerationSettings, draw, generate, weights
from rnnlm.model import CELLS, SENTENCE_END, SLICE_WORDS, ModelSettings, Workspace, initialize

UNKNOWN = 2


KINDS = [{"cell": cell, "layers": 2, "tied": cell in ("gru", "lstm")} for cell in CELLS]


def small_model(words=6, hidden=5, scale=3.0, dtype=np.float32, **kind):
    """Make a model with weights large enough that what was read matters much."""
    generator = np.random.default_rng(4)
    settings = ModelSettings(words=words, hidden=hidden, **kind)
    model = initialize(settings, np.ones(words), generator, dtype)
    for parameter in model.parameters.values():
        parameter[...] = generator.normal(0, scale / np.sqrt(hidden), parameter.shape)
    return model


def sentences(model, count=20, seed=1, prompt=(), threads=1, **settings):
    """Generate, and return a list."""
    work = Workspace(threads)
    generator = np.random.default_rng(seed)
    result = list(generate(model, UNKNOWN, count, generator, work, prompt, GenerationSettings(**settings)))
    work.close()
    return result


def log_probability(model, words, context, minimum, unknown):
    """Return log p of a sentence's words after `context` by the definition: word by word, masked, renormalized."""
    work = Workspace()
    log_p, state = model.step(np.array([SENTENCE_END]), model.start(1), work)
    for word in context:
        log_p, state = model.step(np.array([word]), state, work)
    total = 0.0
    for place, word in enumerate(words):
        p = np.exp(log_p[0].astype(float))
        if not unknown:
            p[UNKNOWN] = 0
        if len(context) + place < minimum:
            p[SENTENCE_END] = 0
        total += np.log(p[word] / p.sum())
        log_p, state = model.step(np.array([word]), state, work)
    return total


def chi_square(observed, probabilities, count):
    """Say how many standard deviations the statistic lies above its mean; rare outcomes are pooled."""
    expected = {outcome: p * count for outcome, p in probabilities.items() if p * count >= 10}
    rest = count - sum(expected.values())
    statistic = sum((observed[outcome] - e) ** 2 / e for outcome, e in expected.items())
    statistic += (count - sum(observed[outcome] for outcome in expected) - rest) ** 2 / max(rest, 1)
    return (statistic - len(expected)) / np.sqrt(2 * len(expected))


@pytest.mark.parametrize(
    ("prompt", "minimum", "unknown"), [((), 0, True), ((), 2, False), ((3,), 2, False), ((UNKNOWN, 1), 0, False)]
)
def test_sentences_have_the_probabilities_of_the_model(prompt, minimum, unknown):
    """The number of times that each possible sentence is drawn agrees with its exact probability."""
    model, longest, count = small_model(words=5, scale=1.0), 3, 8_000
    drawn = sentences(
        model, count, prompt=prompt, min_words=minimum, max_words=len(prompt) + longest, allow_unk=unknown
    )
    probabilities = {}
    words = [word for word in range(1, 5) if unknown or word != UNKNOWN]
    for length in range(longest + 1):
        if length < longest and len(prompt) + length < minimum:
            continue
        for sentence in product(words, repeat=length):
            ended = sentence if length == longest else (*sentence, SENTENCE_END)
            probabilities[sentence] = np.exp(log_probability(model, ended, prompt, minimum, unknown))
    assert sum(probabilities.values()) == pytest.approx(1)
    observed = Counter(tuple(sentence) for sentence in drawn)
    assert set(observed) <= set(probabilities)
    assert abs(chi_square(observed, probabilities, count)) < 3


def test_a_wrong_distribution_is_noticed():
    """The test above can fail: it tells the model's distribution from that at temperature 1.5."""
    model, count = small_model(words=5, scale=1.0), 8_000
    drawn = sentences(model, count, min_words=0, max_words=1, allow_unk=True, temperature=1.5)
    probabilities = {(word,): np.exp(log_probability(model, [word], (), 0, True)) for word in range(1, 5)}
    probabilities[()] = np.exp(log_probability(model, [SENTENCE_END], (), 0, True))
    assert chi_square(Counter(map(tuple, drawn)), probabilities, count) > 3


def distribution(p, **settings):
    """Return the distribution that the settings make of p."""
    result = weights(np.log(np.array([p])), GenerationSettings(**settings))[0]
    return result / result.sum()


def test_temperature_takes_probabilities_to_its_inverse():
    """P becomes p^(1/temperature), renormalized."""
    p = np.array([0.5, 0.3, 0.2])
    for temperature in (0.25, 1.0, 2.0):
        expected = p ** (1 / temperature)
        np.testing.assert_allclose(distribution(p, temperature=temperature), expected / expected.sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [0, 1e-320, 1e-45, 1e-30])
def test_temperature_near_zero_takes_the_likeliest_word(temperature, dtype):
    """Nothing overflows on the way to a temperature of zero, where all is certain; what may not come stays out."""
    p = np.array([0.3, 0.3001, 0.2999, 0.1], dtype)
    log_p = np.array([[*np.log(p), -np.inf]])
    np.testing.assert_array_equal(weights(log_p, GenerationSettings(temperature)), [[0, 1, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("temperature", [1e9, 1e40, 1e308])
def test_a_high_temperature_makes_words_equal(temperature, dtype):
    """At a great temperature all words that may come are equally likely."""
    log_p = np.array([[-0.1, -100, -np.inf]], dtype)
    np.testing.assert_allclose(weights(log_p, GenerationSettings(temperature)), [[1, 1, 0]], rtol=1e-6)


def test_greedy_text_takes_the_lower_id_of_equals():
    """At temperature 0 the more frequent of two equally likely words is taken."""
    np.testing.assert_array_equal(distribution([0.2, 0.4, 0.4], temperature=0), [0, 1, 0])


@pytest.mark.parametrize(
    ("k", "expected"),
    [(1, [0, 1, 0, 0]), (2, [0, 0.8, 0.2, 0]), (3, [0, 2 / 3, 1 / 6, 1 / 6]), (4, None), (9, None)],
)
def test_top_k_keeps_k_words(k, expected):
    """Exactly k words are kept, the lower ids where words are equally likely; a large k keeps all."""
    p = np.array([0.05, 0.4, 0.1, 0.1])
    expected = p / p.sum() if expected is None else expected
    np.testing.assert_allclose(distribution(p, top_k=k), expected)


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(0.01, 1), (0.5, 1), (0.5000001, 2), (0.75, 2), (0.7500001, 3), (0.875, 3), (0.9, 4), (1.0, 5)],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    """A set whose probability is exactly top_p is enough; of equally likely words the lower ids are kept."""
    p = np.array([0.0625, 0.5, 0.125, 0.25, 0.0625])
    order = [1, 3, 2, 0, 4]
    expected = np.zeros(5)
    expected[order[:kept]] = p[order[:kept]]
    np.testing.assert_allclose(distribution(p, top_p=top_p), expected / expected.sum())


def test_top_p_looks_at_what_top_k_left():
    """The probability that top_p wants is that of the distribution which top_k made: 0.5 of 0.75 is two thirds."""
    p = [0.25, 0.5, 0.25]
    np.testing.assert_allclose(distribution(p, top_k=2, top_p=0.6), [0, 1, 0])
    np.testing.assert_allclose(distribution(p, top_k=2, top_p=0.7), [1 / 3, 2 / 3, 0])


def test_rows_are_cut_by_themselves():
    """Each row of a batch is treated as if it were alone."""
    rows = np.log(np.random.default_rng(2).dirichlet(np.ones(30), 50))
    settings = GenerationSettings(top_k=12, top_p=0.8, temperature=0.7)
    alone = np.concatenate([weights(row[None], settings) for row in rows])
    np.testing.assert_array_equal(weights(rows, settings), alone)


def test_words_that_may_not_come_are_never_drawn():
    """Nothing is drawn outside the weights above 0, at either end of the uniform numbers."""
    rows = np.array([[0.0, 0.0, 1.0, 0.0, 3.0, 0.0]] * 5, np.float32)
    uniform = np.array([0.0, np.nextafter(0.25, 0), 0.25, 0.9, np.nextafter(1, 0)])
    np.testing.assert_array_equal(draw(rows, uniform), [2, 2, 4, 4, 4])


def test_a_model_that_is_no_longer_one_is_refused():
    """NaN in a model ends in a sentence, not in a word out of range."""
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}, {"temperature": 0}):
        with pytest.raises(ModelError, match="no longer numbers"):
            weights(np.array([[-1.0, -1.0], [np.nan, -1.0]]), GenerationSettings(**options))


@pytest.mark.parametrize("kind", [{}, *KINDS], ids=str)
def test_the_same_seed_gives_the_same_text_on_any_number_of_threads(kind):
    """Threads share the products of a vocabulary with several slices, and change nothing, whatever the network."""
    model = small_model(words=3 * SLICE_WORDS, hidden=8, **kind)
    expected = sentences(model, 30, max_words=12)
    assert sentences(model, 30, max_words=12, threads=3) == expected
    assert sentences(model, 30, max_words=12, seed=2) != expected


@pytest.mark.parametrize("words", [6, 3000])
def test_a_sentence_does_not_depend_on_how_many_are_asked_for(words):
    """The first sentences are the same whether few or many follow, also when slots are taken over."""
    model = small_model(words=words, hidden=8, scale=2.0)
    many = sentences(model, 3 * SLOTS + 1, max_words=9)
    assert len(many) == 3 * SLOTS + 1
    for count in (0, 1, 7, SLOTS, SLOTS + 1):
        assert sentences(model, count, max_words=9) == many[:count]
    assert len({tuple(sentence) for sentence in many}) > SLOTS


def test_one_generator_goes_on_with_other_sentences():
    """Calling twice with the same generator does not repeat the text."""
    model, work, generator = small_model(), Workspace(), np.random.default_rng(3)
    first = list(generate(model, UNKNOWN, 10, generator, work))
    assert list(generate(model, UNKNOWN, 10, generator, work)) != first


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("kind", [{}, *KINDS], ids=str)
def test_greedy_text_follows_the_prompt(kind, carry_state):
    """With temperature 0 each word is the likeliest one after </s>, the prompt, and the words so far."""
    scale = 1.0 if kind.get("cell") == "relu" else 3.0  # or its states grow without end
    model, work = small_model(words=50, hidden=10, scale=scale, carry_state=carry_state, **kind), Workspace()
    prompt = [7, 3, 19]
    (drawn,) = sentences(model, 1, prompt=prompt, temperature=0, max_words=15, allow_unk=True)
    state, expected = model.start(1), []
    for word in [SENTENCE_END, *prompt, *drawn]:
        log_p, state = model.step(np.array([word]), state, work)
        expected.append(int(log_p.argmax()))
    assert drawn
    assert expected[len(prompt) :][: len(drawn)] == drawn


def test_lengths_stay_within_their_bounds():
    """No sentence is shorter than min_words or longer than max_words, the prompt included."""
    model = small_model(scale=0.5)
    drawn = sentences(model, 300, prompt=(4,), min_words=3, max_words=5)
    assert {len(sentence) for sentence in drawn} == {2, 3, 4}
    assert all(SENTENCE_END not in sentence for sentence in drawn)
    assert {len(sentence) for sentence in sentences(model, 20, min_words=4, max_words=4)} == {4}


def test_an_empty_sentence_takes_a_minimum_of_zero():
    """The default asks for a word at least; min_words=0 lets the model end a sentence at once."""
    model = small_model(scale=0.5)
    assert all(sentences(model, 100))
    assert [] in sentences(model, 100, min_words=0)


def test_a_prompt_of_the_greatest_length_is_left_as_it_is():
    """There is no room for a word after it."""
    assert sentences(small_model(), 3, prompt=(1, 3), max_words=2) == [[], [], []]


def test_unknown_words_are_drawn_only_if_allowed():
    """<unk> is left out by default, also where the prompt holds it."""
    model = small_model(scale=0.5)
    assert not any(UNKNOWN in sentence for sentence in sentences(model, 200, prompt=(UNKNOWN,)))
    assert any(UNKNOWN in sentence for sentence in sentences(model, 200, allow_unk=True))


def test_a_likely_unknown_word_leaves_no_loop():
    """Where <unk> and </s> have nearly all probability, the other words share what is left, a step a word."""
    model = small_model(scale=0.5)
    model.parameters["c"][[SENTENCE_END, UNKNOWN]] = 1000  # exp(-1000) is no float32
    drawn = sentences(model, 50, min_words=6, max_words=6)
    assert {word for sentence in drawn for word in sentence} == {1, 3, 4, 5}


def test_a_large_vocabulary_has_fewer_slots(monkeypatch):
    """What is drawn side by side is bounded by memory; the text is then another, but complete."""
    monkeypatch.setattr("rnnlm.generation.SLOT_NUMBERS", 13)
    assert len(sentences(small_model(), 9, max_words=5)) == 9


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_k": 0}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
        ({"top_p": float("nan")}, "--top-p"),
        ({"min_words": -1}, "--min-words"),
        ({"min_words": 5, "max_words": 4}, "--max-words"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, option):
    """Each message names the option."""
    with pytest.raises(SettingsError, match=option):
        GenerationSettings(**settings)


def test_what_cannot_be_generated_is_refused_before_the_first_sentence():
    """A prompt with </s>, one that is too long, and a vocabulary with nothing to draw each give a sentence."""
    model = small_model()
    with pytest.raises(SettingsError, match="--prompt"):
        sentences(model, prompt=(1, SENTENCE_END))
    with pytest.raises(SettingsError, match="--max-words"):
        sentences(model, prompt=(1, 3, 1), max_words=2)
    bare = small_model(words=2)
    generator = np.random.default_rng(1)
    with pytest.raises(SettingsError, match="--allow-unk"):
        generate(bare, 1, 5, generator, Workspace())
    assert list(generate(bare, 1, 2, generator, Workspace(), (), GenerationSettings(min_words=0))) == [[], []]


def test_numbers_keep_their_type():
    """float32 stays float32 on the way to the weights."""
    log_p, _ = small_model().step(np.array([0]), small_model().start(1), Workspace())
    for settings in (GenerationSettings(), GenerationSettings(temperature=0), GenerationSettings(top_k=2, top_p=0.5)):
        assert weights(log_p, settings).dtype == np.float32
