"""The contestants: the matrix product alone, rnnlm's training, generation and evaluation, and PyTorch's training.

Each `prepare_...` makes a piece of work ready and returns a function that does so many units of it: products, windows,
batches of sentences. It is called in the contestant's own process, which alone loads what the contestant needs.
"""

import functools
import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import threadpoolctl
from contest import Run

from rnnlm.clusters import choose_cutoffs
from rnnlm.corpus import Corpus
from rnnlm.generation import generate
from rnnlm.model import (
    CELLS,
    LanguageModel,
    ModelSettings,
    Optimizer,
    Workspace,
    dense_size,
    initialize,
    parameter_table,
    recur,
)
from rnnlm.scoring import perplexity
from rnnlm.training import Progress, TrainingSettings, TrainingState, train

PRODUCT = 1024  # rows and columns of the matrices whose product is timed: large enough for a core's full speed
SENTENCE = 20  # mean words of a sentence, beside its </s>
RATE = 1e-5  # a text of independent words teaches next to nothing, and at usual rates may diverge
COUNTED = 1e9  # words of the imagined text that words were counted in


@dataclass(frozen=True)
class Shape:
    """What is trained: V, H, B, T, the cutoffs between clusters (None: as many as are quickest), and on what."""

    words: int
    hidden: int
    streams: int
    threads: int
    cutoffs: tuple[int, ...] | None = ()
    window: int = 35
    text: int = 1_000_000  # words of the text
    cell: str = "elman"
    layers: int = 1
    tied: bool = False  # whether inputs and outputs share the words' rows

    @property
    def settings(self) -> ModelSettings:
        """The same as rnnlm's settings of a model."""
        settings = ModelSettings(self.words, self.hidden, self.cell, layers=self.layers, tied=self.tied)
        return replace(settings, cutoffs=default_cutoffs(self) if self.cutoffs is None else self.cutoffs)

    @property
    def operations(self) -> int:
        """Operations a word that the products of training cannot do without, at the full softmax.

        Each number of a matrix takes part in three products, one forward and two back, of a multiplication and an
        addition each.
        """
        table = parameter_table(self.settings)
        return sum(6 * math.prod(table[name].shape) for name in table if name[0] in "XWV")


def zipf(words: int) -> np.ndarray:
    """Return probabilities of words by rank, (words,): Zipf's law, as Mandelbrot mended it, and </s> before them."""
    weight = 1 / (np.arange(1, words) + 2.7)
    return np.concatenate(([1 / (SENTENCE + 1)], weight / weight.sum() * SENTENCE / (SENTENCE + 1)))


def zipf_text(shape: Shape) -> Corpus:
    """Draw a text of independent words, as training reads one."""
    generator = np.random.default_rng(1)
    lengths = 1 + generator.poisson(SENTENCE - 1, max(2, shape.text // SENTENCE))
    offsets = np.concatenate(([0], np.cumsum(lengths + 1)))
    cumulated = np.cumsum(zipf(shape.words)[1:])
    ids = 1 + np.searchsorted(cumulated / cumulated[-1], generator.random(offsets[-1]), side="right")
    ids[offsets[1:] - 1] = 0
    return Corpus(np.minimum(ids, shape.words - 1).astype(np.int32), offsets, 0, shape.words - 1)


def prepare_product(threads: int, own: bool) -> Run:
    """Products of float32 matrices: as rnnlm makes them, one BLAS thread in each of its own, or on BLAS's threads."""
    threadpoolctl.threadpool_limits(1 if own else threads, user_api="blas")
    work = Workspace(threads if own else 1)
    generator = np.random.default_rng(1)
    products = threads if own else 1
    left, right = (generator.random((products, PRODUCT, PRODUCT), np.float32) for _ in range(2))
    result = np.empty_like(left)

    def run(count: int) -> float:
        for _ in range(count):
            work.each(lambda k: np.matmul(left[k], right[k], out=result[k]), range(products))
        return count * products * 2.0 * PRODUCT**3

    return run


def prepare_torch_product(threads: int) -> Run:
    """Products of float32 matrices by PyTorch's own BLAS."""
    import torch

    torch.set_num_threads(threads)
    left, right, result = (torch.rand(PRODUCT, PRODUCT) for _ in range(3))

    def run(count: int) -> float:
        for _ in range(count):
            torch.mm(left, right, out=result)
        return count * 2.0 * PRODUCT**3

    return run


def default_cutoffs(shape: Shape) -> tuple[int, ...]:
    """Return the cutoffs that rnnlm chooses for the text unless told."""
    dense = dense_size(replace(shape, cutoffs=()).settings)
    return choose_cutoffs(counts(shape), shape.hidden, shape.streams * shape.window, dense=dense)


def counts(shape: Shape) -> np.ndarray:
    """Return how often each word occurs, (words,), in an imagined text."""
    return np.round(COUNTED * zipf(shape.words)).astype(np.int64)


def _model(shape: Shape) -> LanguageModel:
    return initialize(shape.settings, counts(shape), np.random.default_rng(1))


def _workspace(shape: Shape) -> Workspace:
    threadpoolctl.threadpool_limits(1, user_api="blas")
    return Workspace(shape.threads)


def prepare_ours(shape: Shape) -> Run:
    """Train by the loop behind `rnnlm train`, a window at a time: all that it does for a window is counted."""
    work, corpus, model = _workspace(shape), zipf_text(shape), _model(shape)
    settings = TrainingSettings(bptt=shape.window, batch_size=shape.streams, epochs=10**9, patience=10**9)
    optimizer = Optimizer("sgd", model.parameters, model.settings, counts(shape))
    state = TrainingState(model, optimizer, RATE)
    valid = Corpus(np.array([1, 0], np.int32), np.array([0, 2]), 0, 1)  # next to nothing, at an epoch's end
    windows = (event for event in train(state, settings, corpus, valid, work) if isinstance(event, Progress))

    def run(count: int) -> float:
        return sum(event.predictions for event in itertools.islice(windows, count))

    return run


def prepare_our_layers(shape: Shape) -> Run:
    """Walk the layers alone through a window and back, from given rows of numbers to their gradient."""
    work, model = _workspace(shape), _model(shape)
    rows, ds = _layer_numbers(shape)
    keep, before = np.ones(rows.shape[:2], bool), model.start(shape.streams)

    def run(count: int) -> float:
        for _ in range(count):
            _, backward = recur(rows, keep, before, model.layers, CELLS[shape.cell], None, work)
            backward(ds)
        return count * shape.window * shape.streams

    return run


def prepare_torch_layers(shape: Shape) -> Run:
    """Let PyTorch do the same."""
    import torch

    torch.set_num_threads(shape.threads)
    recurrence, before = _torch_layers(shape)
    rows, ds = map(torch.from_numpy, _layer_numbers(shape))
    rows.requires_grad_()

    def run(count: int) -> float:
        for _ in range(count):
            recurrence.zero_grad()
            rows.grad = None
            recurrence(rows, before)[0].backward(ds)
        return count * shape.window * shape.streams

    return run


def _layer_numbers(shape: Shape) -> tuple[np.ndarray, np.ndarray]:
    """Draw what comes into the layers, and the gradient of what comes out: both (T, B, H)."""
    generator = np.random.default_rng(1)
    size = (shape.window, shape.streams, shape.hidden)
    return generator.normal(0, 0.1, size).astype(np.float32), generator.normal(0, 1e-4, size).astype(np.float32)


def prepare_torch(shape: Shape, compiled: bool = False) -> Run:
    """Train the same network as one writes it in PyTorch: adaptive softmax where there are cutoffs, full otherwise.

    What torch.compile takes is the output layer: it leaves the recurrent layers alone.
    """
    import torch
    from torch import nn

    torch.set_num_threads(shape.threads)
    torch.manual_seed(1)
    embedding, (recurrence, state) = nn.Embedding(shape.words, shape.hidden), _torch_layers(shape)
    kind, extra = (nn.AdaptiveLogSoftmaxWithLoss, [list(shape.cutoffs)]) if shape.cutoffs else (nn.Linear, [])
    output = kind(shape.hidden, shape.words, *extra)
    if shape.tied:
        nn.init.uniform_(embedding.weight, -0.1, 0.1)  # its own first values are those of no output layer
        output.weight = embedding.weight
    parameters = list(nn.ModuleList([embedding, recurrence, output]).parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.1)

    def mean_loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if shape.cutoffs:
            return output(outputs, targets).loss
        return nn.functional.cross_entropy(output(outputs), targets)

    if compiled:
        mean_loss = torch.compile(mean_loss)
    windows = itertools.cycle(_torch_windows(shape))

    def run(count: int) -> float:
        nonlocal state
        for inputs, targets in itertools.islice(windows, count):
            optimizer.zero_grad()
            outputs, last = recurrence(embedding(inputs), state)
            mean_loss(outputs.flatten(0, 1), targets).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            state = tuple(part.detach() for part in last) if isinstance(last, tuple) else last.detach()
        return count * shape.window * shape.streams

    return run


def _torch_layers(shape: Shape) -> tuple:
    """Return the recurrent layers as PyTorch has them, and their state before the first word."""
    import torch
    from torch import nn

    kinds = {
        "elman": nn.RNN,
        "relu": functools.partial(nn.RNN, nonlinearity="relu"),
        "gru": nn.GRU,
        "lstm": nn.LSTM,
    }
    zero = torch.zeros(shape.layers, shape.streams, shape.hidden)
    layers = kinds[shape.cell](shape.hidden, shape.hidden, num_layers=shape.layers)
    return layers, (zero, zero) if shape.cell == "lstm" else zero


def _torch_windows(shape: Shape) -> list[tuple]:
    """Cut the text into windows beforehand, inputs (T, B) and targets (T*B,): that is not counted."""
    import torch

    ids = torch.from_numpy(zipf_text(shape).ids.astype(np.int64))
    count = len(ids) // (shape.window * shape.streams)
    if not count:
        raise ValueError("the text is shorter than a window")
    inputs = ids[: count * shape.window * shape.streams].reshape(shape.streams, -1).T  # (count*T, B)
    targets = inputs.roll(-1, 0)
    pairs = zip(inputs.split(shape.window), targets.split(shape.window), strict=True)
    return [(before.contiguous(), after.flatten()) for before, after in pairs]


def prepare_generation(shape: Shape, sentences: int) -> Run:
    """Generate so many sentences at once, as `rnnlm generate --count` does."""
    work, model = _workspace(shape), _model(shape)

    def run(count: int) -> float:
        made = (generate(model, 1, sentences, np.random.default_rng(seed), work) for seed in range(count))
        return sum(len(sentence) + 1 for sentence in itertools.chain.from_iterable(made))

    return run


def prepare_evaluation(shape: Shape) -> Run:
    """Evaluate a text, as `rnnlm evaluate` does."""
    work, model, corpus = _workspace(shape), _model(shape), zipf_text(shape)

    def run(count: int) -> float:
        return sum(perplexity(model, corpus, work).predictions for _ in range(count))

    return run
