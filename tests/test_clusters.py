"""Clusters of words: cut where they cost least, and exact wherever they are cut."""

import itertools

import numpy as np
import pytest

from rnnlm import clusters
from rnnlm.clusters import choose_cutoffs
from rnnlm.model import ModelSettings, Workspace, initialize

ZIPF = (1e6 / np.arange(1, 13)).astype(int)


def cost(counts, hidden, positions, cutoffs, dense=None):
    """Add the cost model of clusters.py up, softmax by softmax."""
    edges = [0, *cutoffs, len(counts)]
    total = positions * hidden * clusters.REST
    if dense is not None:
        total += positions * (dense - hidden**2) * clusters.PRODUCTS
    for j, (start, stop) in enumerate(itertools.pairwise(edges)):
        share = counts[start:stop].sum() / counts.sum() if j else 1.0
        rows = stop - start + (0 if j else len(cutoffs))
        used = 1 - np.exp(-positions * share) if j else 1.0
        total += used * (clusters.CALL + rows * hidden * clusters.UPDATE)
        total += rows * hidden * positions * share * clusters.PRODUCTS
    return total


@pytest.mark.parametrize("number", [1, 2, 3, 4, None])
@pytest.mark.parametrize("call", [1e-9, 1e-6])
def test_the_choice_is_the_cheapest_there_is(number, call, monkeypatch):
    """On twelve words, no set of cutoffs costs less than the one chosen, of those of the number asked for."""
    monkeypatch.setattr(clusters, "CALL", call)
    monkeypatch.setattr(clusters, "WHOLE", 1.0)
    monkeypatch.setattr(clusters, "NEAR", 1.0)
    numbers = range(12) if number is None else [number - 1]
    every = [cutoffs for size in numbers for cutoffs in itertools.combinations(range(1, 12), size)]
    least = min(cost(ZIPF, 100, 700, cutoffs) for cutoffs in every)
    chosen = choose_cutoffs(ZIPF, 100, 700, number)
    assert number is None or len(chosen) == number - 1
    assert cost(ZIPF, 100, 700, chosen) == pytest.approx(least, rel=1e-12)


@pytest.mark.parametrize("dense", [None, 100**2, 5 * 100**2, 40 * 100**2])
def test_the_products_of_other_cells_count_beside_the_softmax(dense, monkeypatch):
    """The fewest clusters are chosen whose whole window, recurrence included, costs at most NEAR times the least."""
    monkeypatch.setattr(clusters, "CALL", 1e-6)
    monkeypatch.setattr(clusters, "WHOLE", clusters.NEAR)
    best = {}
    for size in range(12):
        every = itertools.combinations(range(1, 12), size)
        best[size] = min(cost(ZIPF, 100, 700, cutoffs, dense) for cutoffs in every)
    enough = clusters.NEAR * min(best.values())
    fewest = next(size for size in range(12) if best[size] <= enough)
    assert len(choose_cutoffs(ZIPF, 100, 700, dense=dense)) == fewest


def test_the_more_the_recurrence_costs_the_fewer_clusters_there_are():
    """A one-layer Elman network is what None means; several layers of LSTM leave a softmax less to save."""
    counts, hidden = 1e7 / np.arange(1, 3_001), 200
    assert choose_cutoffs(counts, hidden, 700, dense=hidden**2) == choose_cutoffs(counts, hidden, 700)
    sizes = [len(choose_cutoffs(counts, hidden, 700, dense=times * hidden**2)) for times in (1, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] == 0
    assert len(choose_cutoffs(counts, hidden, 700, 5, dense=200 * hidden**2)) == 4


def test_small_vocabularies_stay_whole_and_large_ones_do_not():
    """By default a few hundred words are one softmax, and ten thousand several, more of them where H is larger."""
    zipf = 1e7 / np.arange(1, 50_001)
    assert choose_cutoffs(zipf[:300], 100, 700) == ()
    sizes = [len(choose_cutoffs(zipf[:words], 200, 700)) for words in (2_000, 10_000, 50_000)]
    assert sizes == sorted(sizes)
    assert sizes[1] >= 3
    assert len(choose_cutoffs(zipf[:5_000], 400, 700)) > len(choose_cutoffs(zipf[:5_000], 50, 700))


@pytest.mark.parametrize("number", [1, 2, 7, 100, 1000])
def test_the_number_asked_for_is_the_number_of_clusters(number):
    """--clusters N gives N, and as many as there are words to cut between where there are fewer."""
    cutoffs = choose_cutoffs(1e5 / np.arange(1, 51), 100, 700, number)
    assert len(cutoffs) == min(number, 50) - 1
    assert list(cutoffs) == sorted(set(cutoffs))
    assert not cutoffs or 1 <= cutoffs[0] <= cutoffs[-1] < 50


@pytest.mark.parametrize("cutoffs", [(), (1,), (3,), (2, 4, 9), tuple(range(1, 12))])
def test_probabilities_are_exact_wherever_the_words_are_cut(cutoffs):
    """After any word, the probabilities of all words sum to one, and their logarithms are what `losses` says."""
    settings = ModelSettings(12, hidden=5, cutoffs=cutoffs)
    model = initialize(settings, ZIPF, np.random.default_rng(2), np.float64)
    work = Workspace()
    inputs = np.array([[3, 0, 7]])
    log_p, _ = model.step(inputs[0], model.start(3), work)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1, rtol=1e-13)
    for word in range(12):
        (losses, _), _ = model.losses(inputs, np.full((1, 3), word), model.start(3), work)
        np.testing.assert_allclose(losses[0], -log_p[:, word], rtol=1e-12)


def test_a_fresh_clustered_model_starts_from_word_frequencies():
    """With no weights but biases, the probability of each word is its share of the training text."""
    settings = ModelSettings(12, hidden=5, cutoffs=(2, 5))
    model = initialize(settings, ZIPF, np.random.default_rng(2), np.float64)
    model.parameters["V"][...] = 0
    log_p, _ = model.step(np.array([1]), model.start(1), Workspace())
    np.testing.assert_allclose(np.exp(log_p[0]), ZIPF / ZIPF.sum(), rtol=1e-12)
