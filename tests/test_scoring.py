"""Perplexity is that of the definition, whatever the shape of the batches it is computed in."""

import json
import math
from contextlib import closing

import numpy as np
import pytest

from conftest import corpus_of
from rnnlm import scoring
from rnnlm.errors import TextError
from rnnlm.model import CELLS, SENTENCE_END, ModelSettings, Workspace, initialize
from rnnlm.scoring import Score, offsets_of, perplexity, sentence_figures, text_figures
from rnnlm.vocabulary import Vocabulary

WORDS = ("</s>", "a", "<unk>", "b1", "c", "d")
VOCABULARY = Vocabulary(WORDS, [9, 8, 7, 6, 5, 4])


KINDS = [{"cell": cell, "layers": 2, "tied": cell in ("gru", "lstm")} for cell in CELLS]


def small_model(carry_state=False, dtype=np.float64, **kind):
    """Make a model for which much depends on what was read."""
    generator = np.random.default_rng(6)
    settings = ModelSettings(words=len(WORDS), hidden=7, carry_state=carry_state, **kind)
    model = initialize(settings, np.ones(len(WORDS)), generator, dtype)
    for parameter in model.parameters.values():
        parameter[...] = generator.normal(0, 1, parameter.shape)
    return model


def some_text(sentences=40, unknown=True):
    """Draw sentences of 1 to 9 words; one is far longer than the others."""
    generator = np.random.default_rng(8)
    words = [word for word in WORDS[1:] if unknown or word != "<unk>"]
    lengths = [*generator.integers(1, 10, sentences - 1), 70]
    return [list(generator.choice(words, length)) for length in lengths]


def by_definition(model, sentences):
    """Return the log-probability of each prediction and its target, a word at a time."""
    work, state = Workspace(), model.start(1)
    result = []
    for sentence in sentences:
        ids = [*VOCABULARY.encode(sentence), SENTENCE_END]
        if not model.settings.carry_state:
            state = model.start(1)
        for context, target in zip([SENTENCE_END, *ids], ids, strict=False):
            log_p, state = model.step(np.array([context]), state, work)
            result.append((float(log_p[0, target]), target))
    return result


@pytest.mark.parametrize("carry_state", [False, True])
def test_perplexity_is_that_of_the_definition(carry_state):
    """The sum is over all words and each </s>, with the state that the words before leave; <unk> is left out or not."""
    model, text = small_model(carry_state), some_text()
    corpus = corpus_of(text, VOCABULARY)
    score = perplexity(model, corpus, Workspace(), unknown_id=VOCABULARY.unknown_id)
    expected = by_definition(model, text)
    known = [log_p for log_p, target in expected if target != VOCABULARY.unknown_id]
    everything = [log_p for log_p, _ in expected]
    words = sum(map(len, text))
    assert (score.sentences, score.words, score.predictions) == (40, words, words + 40)
    assert score.unknown == sum(sentence.count("<unk>") for sentence in text) > 0
    assert score.log_likelihood == pytest.approx(sum(everything), rel=1e-12)
    assert score.known_log_likelihood == pytest.approx(sum(known), rel=1e-12)
    assert score.perplexity == pytest.approx(math.exp(-np.mean(everything)), rel=1e-12)
    assert score.perplexity_excluding_unknown == pytest.approx(math.exp(-np.mean(known)), rel=1e-12)
    assert score.bits_per_prediction == pytest.approx(-np.mean(everything) / math.log(2), rel=1e-12)
    assert score.perplexity != pytest.approx(score.perplexity_excluding_unknown, rel=1e-3)


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_networks_of_every_kind_are_scored_by_the_definition(kind, carry_state):
    """Several layers of any cell, in windows that cut sentences: the sum over single steps, on one thread or two."""
    model, corpus = small_model(carry_state, **kind), corpus_of(some_text(), VOCABULARY)
    if kind["cell"] == "relu":
        for array in model.parameters.values():
            array *= 0.5  # or its states grow without end
    expected = sum(log_p for log_p, _ in by_definition(model, some_text()))
    for streams, window in ((None, None), (None, 3), (1, 5)):
        found = []
        for threads in (1, 2):
            with closing(Workspace(threads)) as work:
                found.append(perplexity(model, corpus, work, streams=streams, window=window).log_likelihood)
        assert found[0] == found[1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("streams", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("window", [1, 3, 50, 5000])
def test_the_shape_of_batches_changes_nothing(streams, window):
    """Sentences that start from zero have the same score in any number of streams and any window."""
    model, corpus = small_model(), corpus_of(some_text(), VOCABULARY)
    unknown = VOCABULARY.unknown_id
    expected = perplexity(model, corpus, Workspace(), unknown_id=unknown)
    score = perplexity(model, corpus, Workspace(), unknown_id=unknown, streams=streams, window=window)
    assert score.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-12)
    assert score.known_log_likelihood == pytest.approx(expected.known_log_likelihood, rel=1e-12)


@pytest.mark.parametrize("window", [1, 3, 50, 5000])
def test_the_window_does_not_cut_a_carried_state(window):
    """One stream in text order gives a model that carries its state the same score in any window."""
    model, corpus = small_model(carry_state=True), corpus_of(some_text(), VOCABULARY)
    expected = perplexity(model, corpus, Workspace())
    score = perplexity(model, corpus, Workspace(), window=window)
    assert score.log_likelihood == pytest.approx(expected.log_likelihood, rel=1e-12)


@pytest.mark.parametrize("carry_state", [False, True])
def test_a_large_vocabulary_is_scored_in_small_windows(carry_state, monkeypatch):
    """What the output layer holds is bounded, down to a single position at a time."""
    model, corpus = small_model(carry_state), corpus_of(some_text(), VOCABULARY)
    expected = perplexity(model, corpus, Workspace()).log_likelihood
    for numbers in (1, len(WORDS), 5 * len(WORDS)):
        monkeypatch.setattr("rnnlm.scoring.WINDOW_NUMBERS", numbers)
        work = Workspace()
        assert perplexity(model, corpus, work).log_likelihood == pytest.approx(expected, rel=1e-12)


def test_progress_counts_every_prediction_once():
    """What the progress is told sums up to the number of predictions."""
    corpus, told = corpus_of(some_text(), VOCABULARY), []
    score = perplexity(small_model(), corpus, Workspace(), streams=3, window=4, progress=told.append)
    assert len(told) > 5
    assert sum(told) == score.predictions


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    """Without weights every word has probability 1/V: perplexity V, log2 V bits, with and without unknown words."""
    model, corpus = small_model(), corpus_of(some_text(), VOCABULARY)
    for parameter in model.parameters.values():
        parameter[...] = 0
    score = perplexity(model, corpus, Workspace(), unknown_id=VOCABULARY.unknown_id)
    assert score.perplexity == pytest.approx(6)
    assert score.perplexity_excluding_unknown == pytest.approx(6)
    assert score.bits_per_prediction == pytest.approx(math.log2(6))


def test_of_equally_likely_words_the_lower_id_comes_first():
    """Where all words are alike, the rank of a word is its id, counted from 1, and they are as uncertain as can be."""
    ids = VOCABULARY.encode([word for word in WORDS[1:] for _ in range(2)] + ["</s>"])
    model = small_model()
    for name in ("V", "c"):
        model.parameters[name][...] = 0
    _, ranks, entropies = sentence_figures(model, ids, Workspace(), ranks=True)
    assert ranks.tolist() == (ids + 1).tolist()
    np.testing.assert_allclose(entropies, math.log(len(WORDS)))
    model.parameters["c"][[1, 3]] = 1  # as likely as each other, and likelier than all others
    _, ranks, _ = sentence_figures(model, np.array([3, 1, 4, 0]), Workspace(), ranks=True)
    assert ranks.tolist() == [2, 1, 5, 3]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("ranks", [False, True])
def test_sentences_side_by_side_have_the_figures_that_they_have_alone(ranks, threads, monkeypatch):
    """Neither neighbors, nor threads, nor where windows end, nor a last sentence that is cut off change a figure."""
    monkeypatch.setattr(scoring, "POSITIONS", 20)
    model, sentences = small_model(), [[*VOCABULARY.encode(words), SENTENCE_END] for words in some_text(20)]
    sentences.append([1, 3, 4])
    ids = np.concatenate(sentences)
    assert offsets_of(ids).tolist() == [0, *np.cumsum([len(sentence) for sentence in sentences])]
    with closing(Workspace(threads)) as work:
        figures = sentence_figures(model, ids, work, ranks)
        alone = [text_figures(model, np.array(one), model.start(1), work, ranks)[0] for one in sentences]
    np.testing.assert_allclose(figures, np.concatenate(alone, axis=1), rtol=1e-9)


def test_unknown_words_may_be_left_together():
    """Without the id of <unk> there is no figure that excludes it, and JSON says null; the others are the same."""
    model, corpus = small_model(), corpus_of(some_text(), VOCABULARY)
    score = perplexity(model, corpus, Workspace())
    assert score.log_likelihood == perplexity(model, corpus, Workspace(), unknown_id=2).log_likelihood
    assert math.isnan(score.perplexity_excluding_unknown)
    assert json.loads(json.dumps(score.to_json()))["perplexity_excluding_unknown"] is None


def test_a_text_of_nothing_but_unknown_words_has_two_figures():
    """The ends of sentences remain when unknown words are left out."""
    corpus = corpus_of([["x", "y"], ["z"]], VOCABULARY)
    score = perplexity(small_model(), corpus, Workspace(), unknown_id=VOCABULARY.unknown_id)
    assert (score.unknown, score.words, score.predictions) == (3, 3, 5)
    assert math.isfinite(score.perplexity_excluding_unknown)


def test_a_text_without_sentences_is_refused():
    """There is no perplexity of nothing."""
    with pytest.raises(TextError, match="nothing to score"):
        perplexity(small_model(), corpus_of([], VOCABULARY), Workspace())


def test_figures_beyond_floating_point_are_infinite():
    """A hopeless model has an infinite perplexity, null in JSON, and no traceback."""
    score = Score(1, 1, 0, 2, -2000.0, -2000.0)
    assert score.perplexity == math.inf
    assert score.to_json()["perplexity"] is None
    assert score.to_json()["bits_per_prediction"] == pytest.approx(1000 / math.log(2))


def test_json_has_the_figures_that_are_promised():
    """The keys are those of the documentation."""
    keys = {"perplexity", "perplexity_excluding_unknown", "bits_per_prediction", "sentences", "words", "unknown"}
    assert set(Score(1, 2, 0, 3, -1.0, -1.0).to_json()) == keys | {"predictions"}


def test_single_precision_is_close_to_double():
    """float32 changes a perplexity by less than one part in 100,000, threads by nothing."""
    corpus = corpus_of(some_text(300), VOCABULARY)
    exact = perplexity(small_model(), corpus, Workspace()).perplexity
    single = perplexity(small_model(dtype=np.float32), corpus, Workspace()).perplexity
    assert single == pytest.approx(exact, rel=1e-5)
    threads = Workspace(2)
    assert perplexity(small_model(dtype=np.float32), corpus, threads).perplexity == single
    threads.close()
