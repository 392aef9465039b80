"""A model that adapts scores first and learns then: the cache and the steps are what their definitions say."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest

from conftest import corpus_of
from rnnlm import adapting
from rnnlm.adapting import Adapting, Cache, mixed, sentence_runs, tune
from rnnlm.batches import windows
from rnnlm.dynamic import EPSILON, SEGMENT, STATISTICS_STREAMS, Rms, root_mean_square, segments
from rnnlm.errors import SettingsError, TextError
from rnnlm.model import CELLS, LanguageModel, ModelSettings, Workspace, in_arrays, initialize, mean_weights
from rnnlm.scoring import perplexity, word_losses
from rnnlm.settings import AdaptationSettings
from rnnlm.vocabulary import Vocabulary

WORDS = ("</s>", "a", "<unk>", "b", "c", "d", "e", "f")
VOCABULARY = Vocabulary(WORDS, [9, 8, 7, 6, 5, 4, 3, 2])
COUNTS = np.array(VOCABULARY.counts)
KINDS: list[dict[str, Any]] = [
    *({"cell": cell, "layers": 2, "tied": cell in ("gru", "lstm")} for cell in CELLS),
    {"cutoffs": (2, 5), "carry_state": True},
    {"cutoffs": (2, 5), "tied": True},
    {"carry_state": True, "embedding": 3},
    {"cell": "lstm", "layers": 2, "tied": True, "embedding": 3},
]
CACHE, STEPS = {"cache": 9, "cache_weight": 0.3, "cache_flatness": 0.4}, {"dynamic": 0.01}


def small_model(scale: float = 1, **kind: Any) -> LanguageModel:
    """Return a model for which much depends on what was read."""
    generator = np.random.default_rng(6)
    settings = ModelSettings(words=len(WORDS), hidden=7, **kind)
    model = initialize(settings, np.ones(len(WORDS)), generator, np.float64)
    for parameter in model.parameters.values():
        parameter[...] = generator.normal(0, scale, parameter.shape)
    return model


def some_sentences(sentences: int = 12, seed: int = 8) -> list[list[str]]:
    """Draw sentences of 1 to 12 words, and a long one."""
    generator = np.random.default_rng(seed)
    lengths = [*generator.integers(1, 13, sentences - 1), 40]
    return [list(generator.choice(WORDS[1:], length)) for length in lengths]


def some_ids(**options: Any) -> Any:
    """Return the ids of some sentences, end to end."""
    return corpus_of(some_sentences(**options), VOCABULARY).ids


def losses(model: LanguageModel, ids: Any, rms: Any = None, **settings: Any) -> Any:
    """Return what a fresh reader finds."""
    return Adapting(model, AdaptationSettings(**settings), COUNTS, rms).losses(ids, Workspace())


def outputs(model: LanguageModel, ids: Any) -> Any:
    """Return s (N, H) at each position of a text."""
    x = np.concatenate(([0], ids[:-1])).astype(np.int32)
    return model.read(x[:, None], model.start(1), Workspace())[0][0][:, 0].copy()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("scope", ["text", "sentence"])
def test_the_cache_is_that_of_the_definition(kind: dict[str, Any], scope: str) -> None:
    """Each word has the mixture of what the model and the last N positions of its scope expect, one by one."""
    model, ids = small_model(0.5, **kind), some_ids()
    s, static, begin = outputs(model, ids), word_losses(model, ids, Workspace()), 0
    expected = []
    for t in range(len(ids)):
        if scope == "sentence" and t and ids[t - 1] == 0:
            begin = t
        p = math.exp(-static[t])
        seen = range(max(begin, t - 9), t)
        if seen:
            e = {i: math.exp(0.4 * float(s[t] @ s[i])) for i in seen}
            p = 0.7 * p + 0.3 * sum(e[i] for i in seen if ids[i] == ids[t]) / sum(e.values())
        expected.append(-math.log(p))
    found = losses(model, ids, **CACHE, adapt_over=scope)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_probabilities_with_a_cache_sum_to_one() -> None:
    """Whatever is remembered, what all words have together is one."""
    model, ids = small_model(), some_ids()
    for length in (0, 1, 5, 30):
        before = np.append(ids[:length], 0) if length else ids[:0]
        each = [losses(model, np.append(before, word).astype(np.int32), **CACHE)[-1] for word in range(len(WORDS))]
        assert np.exp(-np.array(each)).sum() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("large", [1e3, 1e-3])
def test_great_and_small_states_are_no_trouble(large: float) -> None:
    """The largest exponent is subtracted: p is a number for states of any size, and alike states share it equally."""
    cache = Cache(4, 3)
    cache.add(np.full((3, 3), large, np.float32), np.array([1, 1, 2], np.int32))
    shares = [
        cache.shares(np.full((1, 3), large, np.float32), np.array([word]), np.array([9]), 1000, Workspace())[0]
        for word in (1, 2, 3)
    ]
    assert shares == pytest.approx([2 / 3, 1 / 3, 0])
    assert np.isfinite(mixed(np.array([800.0]), np.zeros(1), np.ones(1), 0.1)).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("settings", [CACHE, STEPS, {**CACHE, **STEPS}], ids=str)
@pytest.mark.parametrize("scope", ["text", "sentence", "paragraph"])
def test_a_longer_text_changes_nothing_before(kind: dict[str, Any], settings: dict[str, Any], scope: str) -> None:
    """The words of a beginning have the same scores whatever follows, and however the text arrives."""
    model = small_model(0.5, **kind)
    ids = corpus_of([*some_sentences(), [], *some_sentences(seed=9)], VOCABULARY).ids
    whole = losses(model, ids, **settings, adapt_over=scope)
    part = np.flatnonzero(ids == 0)[7] + 1
    np.testing.assert_allclose(losses(model, ids[:part], **settings, adapt_over=scope), whole[:part], rtol=1e-9)
    reader = Adapting(model, AdaptationSettings(**settings, adapt_over=scope), COUNTS)
    lines = np.split(ids, np.flatnonzero(ids == 0)[:-1] + 1)
    arrived = np.concatenate([reader.losses(line, Workspace()) for line in lines])
    np.testing.assert_allclose(arrived, whole, rtol=1e-9)


@pytest.mark.parametrize("settings", [CACHE, STEPS], ids=str)
def test_words_are_scored_before_they_are_learned(settings: dict[str, Any]) -> None:
    """Before anything is remembered, or a first step taken, scores are the model's own."""
    model, ids = small_model(), some_ids()
    first = 1 if "cache" in settings else next(segments(ids)).stop
    static, found = word_losses(model, ids, Workspace()), losses(model, ids, **settings)
    np.testing.assert_allclose(found[:first], static[:first], rtol=1e-13)
    assert found[first] != pytest.approx(static[first], rel=1e-9)


@pytest.mark.parametrize("settings", [{**CACHE, **STEPS}, {"dynamic": 0.01, "dynamic_rms": "x"}], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_learned_is_forgotten(kind: dict[str, Any], settings: dict[str, Any]) -> None:
    """A paragraph that comes after others has the scores that it has alone; the model itself is never changed."""
    model = small_model(0.5, **{**kind, "carry_state": False})
    before = {name: value.copy() for name, value in model.parameters.items()}
    rms = root_mean_square(model, corpus_of(some_sentences(), VOCABULARY), Workspace())
    paragraph, other = some_ids(seed=3), np.append(some_ids(seed=4), 0).astype(np.int32)
    rms = rms if "dynamic_rms" in settings else None
    after = losses(model, np.concatenate((other, paragraph)), rms, **settings, adapt_over="paragraph")
    alone = losses(model, paragraph, rms, **settings)
    np.testing.assert_allclose(after[len(other) :], alone, rtol=1e-9)
    on = losses(model, np.concatenate((other, paragraph)), rms, **settings)
    assert not np.allclose(on[len(other) :], alone, rtol=1e-3)
    assert all(np.array_equal(before[name], value) for name, value in model.parameters.items())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_steps_with_statistics_are_those_of_the_formula(kind: dict[str, Any]) -> None:
    """Rows that are not read decay when they are read next, exactly: as if all parameters moved at every step."""
    model, ids, rate, decay = small_model(0.5, **kind), some_ids(), 0.002, 0.3
    rms = root_mean_square(model, corpus_of(some_sentences(), VOCABULARY), Workspace())
    mean = np.concatenate([value.ravel() for value in rms.values()]).mean()
    work, states = Workspace(), model.start(1)
    theta = LanguageModel(model.settings, {name: value.copy() for name, value in model.parameters.items()})
    x, expected = np.concatenate(([0], ids[:-1])).astype(np.int32), []
    for part in segments(ids):
        (found, states), backward = theta.losses(x[part, None], ids[part, None], states, work)
        expected += found[:, 0].tolist()
        gradients = backward(np.full(found.shape, 1 / SEGMENT))
        for name, value in theta.parameters.items():
            full = np.zeros_like(value)
            for rows, own in gradients[name]:
                full[rows] = own
            R = np.minimum(rms[name] / mean, 1 / decay)
            value += decay * R * (model.parameters[name] - value) - rate * full / (rms[name] + EPSILON)
    found = losses(model, ids, rms, dynamic=rate, dynamic_rms="x", dynamic_decay=decay)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert not np.allclose(found, word_losses(model, ids, Workspace()), rtol=1e-3)


def test_statistics_are_the_root_of_the_mean_square() -> None:
    """A parameter that no word of the text touches has 0, and then steps stay numbers."""
    model = small_model(cutoffs=(2, 5))
    corpus = corpus_of([["a", "a"]] * 9, VOCABULARY)
    rms = root_mean_square(model, corpus, Workspace())
    assert rms["U"][3:].tolist() == np.zeros_like(rms["U"][3:]).tolist()
    assert (rms["U"][1] > 0).all()
    x, y = windows(corpus, STATISTICS_STREAMS, SEGMENT)[0]  # the text has one
    gradients = model.losses(x, y, model.start(x.shape[1]), Workspace())[1](mean_weights(y))
    for name, gradient in gradients.items():
        expected = np.zeros_like(rms[name])
        for rows, values in in_arrays(gradient):
            expected[rows] = np.abs(values)  # of one window, the root of the square
        np.testing.assert_allclose(rms[name], expected, rtol=1e-5, atol=1e-12)
    learner = Rms(model, AdaptationSettings(dynamic=0.1, dynamic_rms="x"), rms)
    assert all(np.isfinite(value).all() for value in (*learner.rate.values(), *learner.pull.values()))
    with pytest.raises(TextError, match="no sentences"):
        root_mean_square(model, corpus_of([], VOCABULARY), Workspace())


def test_threads_change_nothing() -> None:
    """The scores are the same to the last bit with one thread and with three."""
    model, ids = small_model(cutoffs=(2, 5)), np.tile(some_ids(sentences=30), 20)
    reader = Adapting(model, AdaptationSettings(**CACHE, **STEPS), COUNTS)
    work = Workspace(3)
    assert reader.losses(ids, work).tolist() == losses(model, ids, **CACHE, **STEPS).tolist()
    work.close()


@pytest.mark.parametrize("carry_state", [False, True])
def test_very_long_sentences_are_read_in_parts(carry_state: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence of more words than are held at once has the same scores, but for where steps fall."""
    model, ids = small_model(carry_state=carry_state), some_ids()
    whole = losses(model, ids, **CACHE)
    monkeypatch.setattr(adapting, "RUN", 10)
    monkeypatch.setattr(adapting, "POSITIONS", 10)
    np.testing.assert_allclose(losses(model, ids, **CACHE), whole, rtol=1e-9)
    reader = Adapting(model, AdaptationSettings(**CACHE, **STEPS), COUNTS)
    reader.losses(ids, Workspace())
    lists = [some_ids(seed=seed) for seed in (1, 2)]
    sentences = [sentence for ids in lists for sentence in np.split(ids, np.flatnonzero(ids == 0)[:-1] + 1)]
    apart = reader.hypotheses(sentences, Workspace())
    monkeypatch.undo()
    np.testing.assert_allclose(apart, reader.hypotheses(sentences, Workspace()), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hypotheses_have_the_scores_of_the_text(kind: dict[str, Any]) -> None:
    """With a cache alone, a hypothesis has the score that its sentence would have as the next of the text."""
    model, ids = small_model(**kind), some_ids()
    sentences = [corpus_of([words], VOCABULARY).ids for words in (["a"], [], ["b", "c", "a", "f"])]
    reader = Adapting(model, AdaptationSettings(**CACHE), COUNTS)
    reader.losses(ids, Workspace())
    for _ in range(2):  # nothing is learned of them
        found = reader.hypotheses(sentences, Workspace())
        each = [losses(model, np.concatenate((ids, one)), **CACHE)[len(ids) :].sum() for one in sentences]
        np.testing.assert_allclose(-found, each, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_hypotheses_are_read_by_what_has_gone_back_to_the_model(kind: dict[str, Any]) -> None:
    """A short hypothesis has its score as the next sentence: rows that were not read for some steps have gone back."""
    model = small_model(**kind)
    rms = root_mean_square(model, corpus_of(some_sentences(), VOCABULARY), Workspace())
    reader = Adapting(model, AdaptationSettings(dynamic=0.01, dynamic_rms="x", dynamic_decay=0.2), COUNTS, rms)
    words = [["e", "f", "d"], *[["a", "b"], ["b"]] * 5]  # the first are left behind
    reader.losses(corpus_of(words, VOCABULARY).ids, Workspace())
    sentence = corpus_of([["e", "f"]], VOCABULARY).ids
    (found,) = reader.hypotheses([sentence], Workspace())
    assert -found == pytest.approx(copy.deepcopy(reader).losses(sentence, Workspace()).sum(), rel=1e-6)


@pytest.mark.parametrize("carry_state", [False, True])
def test_what_has_no_effect_is_static_scoring(carry_state: bool) -> None:
    """A reader whose steps and cache have no weight finds what static scoring finds, but for rounding."""
    model, corpus = small_model(carry_state=carry_state), corpus_of(some_sentences(), VOCABULARY)
    static = perplexity(model, corpus, Workspace(), unknown_id=2)
    for settings in ({"cache": 5, "cache_weight": 0.0}, {"dynamic": 0.0}, {"cache": 5, "cache_weight": 1e-15}):
        reader = Adapting(model, AdaptationSettings(**settings), COUNTS)
        score = adapting.perplexity(reader, corpus, Workspace(), unknown_id=2)
        assert score.log_likelihood == pytest.approx(static.log_likelihood, rel=1e-12)
        assert score.known_log_likelihood == pytest.approx(static.known_log_likelihood, rel=1e-12)


def test_runs_are_whole_sentences() -> None:
    """All of a text is in one run or another; only a sentence that is longer than a run is cut."""
    offsets = np.array([0, 3, 5, 9, 30, 31])
    found = [(run.start, run.stop) for run in sentence_runs(offsets, 8)]
    assert found == [(0, 5), (5, 9), (9, 17), (17, 25), (25, 30), (30, 31)]


def test_the_cache_is_tuned() -> None:
    """Weight and flatness are such that no value of a fine grid is much better, and the text gains by them."""
    model = small_model()
    corpus = corpus_of(some_sentences() * 3, VOCABULARY)
    weight, flatness = tune(Adapting(model, AdaptationSettings(cache=50), COUNTS), corpus, Workspace())

    def loss(weight: float, flatness: float) -> float:
        return float(losses(model, corpus.ids, cache=50, cache_weight=weight, cache_flatness=flatness).mean())

    grid = itertools.product((0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 0.95), (0.01, 0.05, 0.2, 0.5, 1, 2, 5))
    assert loss(weight, flatness) <= min(loss(*values) for values in grid) + 1e-3
    with pytest.raises(TextError, match="--tune-on"):
        tune(Adapting(model, AdaptationSettings(cache=50), COUNTS), corpus_of([], VOCABULARY), Workspace())


@pytest.mark.parametrize(
    "options",
    [
        {"cache_weight": 0.1},
        {"cache_flatness": 1.0},
        {"dynamic_rms": "x"},
        {"dynamic": 0.1, "dynamic_decay": 0.1},
        {"adapt_over": "sentence"},
        {"cache": -1},
        {"cache": 5, "cache_weight": 1.0},
        {"cache": 5, "cache_flatness": math.nan},
        {"dynamic": math.inf},
    ],
    ids=str,
)
def test_options_without_effect_are_refused(options: dict[str, Any]) -> None:
    """What is out of range, or has no effect, is refused by its name."""
    with pytest.raises(SettingsError, match="--"):
        AdaptationSettings(**options)
