"""What is chosen where nothing is said: by the cell, the vocabulary and the size of the text, as measured.

docs/benchmarks.md has the trials that these figures come from. Most were made on the Penn Treebank.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from rnnlm.model import CELLS, RULES, ModelSettings, parameter_table
from rnnlm.settings import CHOSEN, NetworkSettings, RunSettings, TrainingSettings

RATE_POWER = 0.5  # of rules whose rates follow word frequencies
ELMAN_RATE = 0.001  # of SGD without gates, whose rate falls; the rule's is for those that keep it
FALL = 30  # by which the rate has fallen in the last epoch, where it falls
TREEBANK = 929_589  # predictions in the training part of the Penn Treebank
WINDOWS = 100  # in an epoch, at least, of a text that is not short
TREEBANK_SHARE = 4.35  # parameters of an Elman network of 200 units for each of them


class _Kind(NamedTuple):
    """What suits a kind of network."""

    streams: int  # at most, of one layer with two tables of words
    dropout: float  # on the treebank, with TREEBANK_SHARE
    steepness: float  # by how much it grows where there are ten times as many parameters for a prediction
    weight_decay: float  # on the Penn Treebank, too
    epochs: int  # at most, of a text that is not short
    of_treebank: int  # epochs on the Penn Treebank, at most


GATED = _Kind(streams=32, dropout=0.2, steepness=0.3, weight_decay=0.0003, epochs=40, of_treebank=8)
PLAIN = _Kind(streams=64, dropout=0.25, steepness=0.2, weight_decay=0.001, epochs=14, of_treebank=14)


def choose(settings: RunSettings, predictions: int, words: int) -> RunSettings:
    """Return settings in which nothing is left open, for a training text of so many predictions of so many words."""
    unsaid = {name for name in CHOSEN if getattr(settings.training, name, ...) is None}
    settings = replace(settings, chosen=tuple(name for name in CHOSEN if name in unsaid.union(settings.chosen)))
    network = _filled(settings.network, _network(settings, predictions), settings.chosen)
    settings = replace(settings, network=network)
    two_tables = model_settings(replace(network, tied=False), words)  # a tied one learns what both would
    parameters = sum(math.prod(row.shape) for row in parameter_table(two_tables).values())
    values = _training(settings, predictions, parameters / predictions)
    return replace(settings, training=_filled(settings.training, values, settings.chosen))


def model_settings(network: NetworkSettings, words: int) -> ModelSettings:
    """Return what kind of model a network for so many words is, with one softmax."""
    return ModelSettings(
        words=words,
        hidden=network.hidden,
        cell=network.cell,
        layers=network.layers,
        embedding=network.embedding,
        tied=network.tied,
        truncate=network.bptt_truncate,
        carry_state=network.carry_state,
    )


def rule(settings: TrainingSettings) -> str:
    """Return the key of the optimizer's rule."""
    return "momentum" if settings.optimizer == "sgd" and settings.momentum else settings.optimizer


def _filled(settings: Any, values: dict[str, Any], names: tuple[str, ...]) -> Any:
    """Put values in the place of those that may be chosen."""
    return replace(settings, **{name: value for name, value in values.items() if name in names})


def _gated(network: NetworkSettings) -> bool:
    return len(CELLS[network.cell].gates) > 1


def _network(settings: RunSettings, predictions: int) -> dict[str, Any]:
    """Choose the network. Cells with gates profit from tied tables and a carried state, an Elman network does not."""
    network, gated = settings.network, _gated(settings.network)
    hidden = 200 if predictions > TREEBANK / 10 else 100
    if "hidden" not in settings.chosen:
        hidden = network.hidden
    elif network.tied and network.embedding:
        hidden = network.embedding
    return {
        "hidden": hidden,
        "tied": gated and network.embedding in (None, hidden),
        "carry_state": gated or settings.training.dropout_state > 0,
    }


def _training(settings: RunSettings, predictions: int, share: float) -> dict[str, Any]:
    """Choose how a network is trained; `share` is how many parameters it has for each prediction of the text.

    The more, the sooner it learns the text by heart: dropout and weight decay grow with it. Streams make a step cheaper
    for each word, and steps fewer and longer: there are as many as leave 200 steps in an epoch. With a rate that stays
    the same an Elman network diverges sooner or later. So its rate falls after the first sixth of the epochs, and is
    lower on long texts, whose sixth has many steps; then it bears more streams than other networks.
    """
    network, training = settings.network, settings.training
    own_rule, window, gated = RULES[rule(training)], training.bptt or 20, _gated(network)
    kind = GATED if gated else PLAIN
    most_streams = 20 if network.layers > 1 or network.tied else kind.streams
    streams = training.batch_size or max(8, min(most_streams, predictions // (200 * window)))
    size, relative = predictions / TREEBANK, share / TREEBANK_SHARE
    short = WINDOWS * streams * window / predictions  # above 1 where an epoch has fewer than WINDOWS
    epochs = round(max(5, min(kind.of_treebank / math.sqrt(size), kind.epochs * max(1, short))))
    stretch = max(1, epochs / kind.epochs)  # how many epochs take the place of one
    planned = epochs if "epochs" in settings.chosen else max(epochs, training.epochs)  # fewer ones may be resumed
    usual_start = 0 if gated else max(1, round(planned / 6))
    decay_from = usual_start if "decay_from" in settings.chosen else training.decay_from
    stays = gated and "decay_from" in settings.chosen
    fall = FALL ** (1 / (planned - decay_from)) if 0 < decay_from < planned else TrainingSettings.lr_decay
    rate = own_rule.learning_rate if gated or not own_rule.row_rates else ELMAN_RATE / math.sqrt(max(1, size))
    values = {
        "dropout": min(0.5, max(0.0, kind.dropout + kind.steepness * math.log10(relative))),
        "dropout_state": 0.5 if network.carry_state and gated else 0.0,
        "lr": rate * (1 - training.momentum),  # velocity is the sum of gradients, 1 / (1 - momentum) of them
        "rate_power": RATE_POWER if own_rule.row_rates else 0.0,
        "min_improvement": 0.003 / stretch,
    }
    return {
        **{name: float(f"{value:.2g}") for name, value in values.items()},
        "weight_decay": float(f"{kind.weight_decay * min(4, relative):.1g}"),
        "batch_size": streams,
        "average": True,
        "epochs": epochs,
        "decay_from": decay_from,
        "lr_decay": 1.0 if stays else 1 + float(f"{fall - 1:.4g}"),
        "patience": round(3 * stretch),
    }
