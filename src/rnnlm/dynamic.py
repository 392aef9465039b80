"""Dynamic evaluation: steps of training on what was read, which can be forgotten.

A learner (Mikolov et al. 2010) takes a step of SGD, as training does, after each segment of SEGMENT words: a
sentence is cut into as many segments as it needs. With statistics of the training text (Krause et al. 2018) the step is

    theta -= rate g / (RMS + EPSILON) - decay R (theta_0 - theta),    R = min(RMS / mean(RMS), 1 / decay)

where theta_0 is the model, g the gradient of the segment's loss divided by SEGMENT, and RMS the root of the mean square
that such a gradient, of STATISTICS_STREAMS segments, has over the training text.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from rnnlm.batches import windows
from rnnlm.corpus import Corpus
from rnnlm.errors import TextError
from rnnlm.model import (
    IGNORED,
    SENTENCE_END,
    Array,
    Gradients,
    LanguageModel,
    Optimizer,
    Parameters,
    Product,
    Workspace,
    blocks,
    in_arrays,
    mean_weights,
    pieces,
)
from rnnlm.settings import AdaptationSettings

SEGMENT = 5  # words, at most, from one step to the next
EPSILON = 2e-5  # of the reported settings
RATE_POWER = 0.5  # rows of rarer words learn faster, as in training
STATISTICS_STREAMS = 100  # segments whose mean gradient is squared
STATISTICS_WINDOWS = 400  # and how many such gradients are enough


def segments(ids: Array) -> Iterator[slice]:
    """Cut each sentence into segments of about equal length."""
    ends = np.flatnonzero(ids == SENTENCE_END) + 1
    for start, end in itertools.pairwise(np.unique([0, *ends.tolist(), len(ids)]).tolist()):
        yield from pieces(start, end, math.ceil((end - start) / SEGMENT))


class Learner:
    """A copy of a model that learns, and can forget; what is touched is known by its rows."""

    weight = 1.0  # of each loss in the gradient

    def __init__(self, model: LanguageModel, settings: AdaptationSettings) -> None:
        self.settings, self.original, self.time = settings, model.parameters, 0
        self.model = replace(model, parameters={name: value.copy() for name, value in model.parameters.items()})
        # of each row, the last step that it has taken; 0: it is the model's
        self.done = {name: np.zeros(len(value), np.int64) for name, value in model.parameters.items()}

    def prepare(self, x: Array, y: Array) -> None:
        """Bring the parameters that words x and targets y (T, 1) read up to the last step."""

    def step(self, gradients: Gradients, work: Workspace) -> None:
        """Take a step against gradients, which are overwritten."""
        self.time += 1
        for name, gradient in gradients.items():
            for rows, _ in gradient:
                self.done[name][rows] = self.time
        self.move(gradients, work)

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""
        raise NotImplementedError

    def forget(self) -> None:
        """Go back to the model."""
        if self.time:
            for name, done in self.done.items():
                rows = np.flatnonzero(done)
                self.model.parameters[name][rows] = self.original[name][rows]
                done[rows] = 0
        self.time = 0


class Sgd(Learner):
    """Steps as those of training: the rate is for the sum over a segment, and rows of words have rates of their own."""

    def __init__(self, model: LanguageModel, settings: AdaptationSettings, counts: Array) -> None:
        super().__init__(model, settings)
        self.optimizer = Optimizer("sgd", self.model.parameters, model.settings, counts, power=RATE_POWER)

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""
        self.optimizer.step(self.model.parameters, gradients, self.settings.dynamic, work)


class Rms(Learner):
    """Steps that are divided by RMS, the root of the mean squared gradient in training, and go back to the model."""

    weight = 1 / SEGMENT

    def __init__(self, model: LanguageModel, settings: AdaptationSettings, rms: Parameters) -> None:
        super().__init__(model, settings)
        mean = sum(float(value.sum(dtype=np.float64)) for value in rms.values()) / sum(map(np.size, rms.values()))
        decay, type_ = settings.decay, model.parameters["V"].dtype
        self.rate = {name: (settings.dynamic / (value + EPSILON)).astype(type_) for name, value in rms.items()}
        # decay R, of which R is at most 1 / decay
        self.pull = {name: np.minimum(decay * value / (mean or 1), 1).astype(type_) for name, value in rms.items()}
        with np.errstate(divide="ignore"):  # where nothing is left, -inf
            self.log_left = {name: np.log1p(-value) for name, value in self.pull.items()}

    def prepare(self, x: Array, y: Array) -> None:
        """Let rows that are read now go back to the model for the steps in which they were not."""
        settings, words = self.model.settings, np.unique(x)
        J, tails = len(settings.cutoffs), np.unique(np.searchsorted(np.array(settings.cutoffs, int), y, side="right"))
        self._catch_up("V" if settings.tied else "U", words + J if settings.tied else words)
        edges = [*settings.cutoffs, settings.words]
        for tail in tails[tails > 0].tolist():  # what is read of every softmax is never behind
            rows = np.arange(edges[tail - 1] + J, edges[tail] + J)
            self._catch_up("V", rows)
            self._catch_up("c", rows)

    def _catch_up(self, name: str, rows: Array) -> None:
        done = self.done[name]
        late = rows[(done[rows] > 0) & (done[rows] < self.time)]
        if late.size:
            original, parameter = self.original[name][late], self.model.parameters[name]
            missed = (self.time - done[late]).astype(original.dtype).reshape(-1, *(1 for _ in original.shape[1:]))
            left = self.log_left[name][late]
            left *= missed
            parameter[late] = original + (parameter[late] - original) * np.exp(left, out=left)
            done[late] = self.time

    def move(self, gradients: Gradients, work: Workspace) -> None:
        """Change the parameters."""

        def move(task: tuple[str, Any, Array | Product]) -> None:
            name, rows, values = task
            g, theta = np.asarray(values), self.model.parameters[name][rows]
            g *= self.rate[name][rows]
            change = self.original[name][rows] - theta
            change *= self.pull[name][rows]
            change -= g
            self.model.parameters[name][rows] = np.add(theta, change, out=change)

        work.each(move, [(name, *block) for name, gradient in gradients.items() for block in blocks(gradient)])


def root_mean_square(
    model: LanguageModel, corpus: Corpus, work: Workspace, progress: Callable[[int], object] | None = None
) -> Parameters:
    """Return, shaped as the parameters, the root of the mean squared gradient over a text.

    A gradient is of the mean loss of SEGMENT words in each of STATISTICS_STREAMS places of the text; the first
    STATISTICS_WINDOWS of them count. `progress` is told of the predictions made. Raises TextError where the text has no
    sentences.
    """
    if not corpus.sentences:
        raise TextError("there is nothing to square: the text has no sentences; name another with --dynamic-rms")
    read = windows(corpus, STATISTICS_STREAMS, SEGMENT)
    squares = {name: np.zeros_like(value) for name, value in model.parameters.items()}
    states, count = model.start(read.streams), min(len(read), STATISTICS_WINDOWS)
    for number in range(count):
        x, y = read[number]
        (_, states), backward = model.losses(x, y, states, work)
        for name, gradient in backward(mean_weights(y)).items():
            for rows, values in in_arrays(gradient):
                squares[name][rows] += values * values
        if progress:
            progress(int(np.count_nonzero(y != IGNORED)))
    return {name: np.sqrt(value / count) for name, value in squares.items()}
