"""Sentences drawn from a model, word after word, each from the distribution that the words before it leave."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from rnnlm.errors import ModelError, SettingsError
from rnnlm.model import SENTENCE_END, Array, LanguageModel, Workspace, runs
from rnnlm.settings import GenerationSettings

SLOTS = 64  # sentences that advance side by side: enough for quick products
SLOT_NUMBERS = 2**20  # and fewer where so many rows of V probabilities would have more numbers than this
DRAWN = 16  # sentences whose next words one thread draws at a time
RUN = 128  # words whose weights are summed before their running sum is wanted


@dataclass
class _Sentence:
    """A sentence on its way: its place in the output, what decides its words, and the words so far."""

    index: int
    generator: np.random.Generator
    words: list[int] = field(default_factory=list)


def generate(
    model: LanguageModel,
    unknown_id: int,
    count: int,
    generator: np.random.Generator,
    work: Workspace,
    prompt: Sequence[int] = (),
    settings: GenerationSettings | None = None,
    before: Sequence[int] = (),
) -> Iterator[list[int]]:
    """Yield `count` sentences in order, each as the ids of the words that follow the prompt, without `</s>`.

    Every sentence begins from a state of zero, or from that after the words of `before`, whole sentences. Each has a
    random stream of its own, spawned from `generator` in order, and the arrays have the same shape for any count: so
    the i-th sentence does not depend on how many are asked for, nor on the number of threads. The work per sentence is
    at most `max_words` steps; nothing is drawn and thrown away.

    Raises SettingsError, before the first sentence, where the prompt holds `</s>` or is longer than `max_words`, and
    where the vocabulary has no word that may be drawn.
    """
    settings = settings or GenerationSettings()
    room = settings.max_words - len(prompt)
    if SENTENCE_END in prompt:
        raise SettingsError("the prompt holds </s>, which ends a sentence; leave it out of --prompt")
    if room < 0:
        message = f"the prompt has {len(prompt)} words, more than a sentence may have ({settings.max_words})"
        raise SettingsError(f"{message}; raise --max-words or shorten --prompt")
    if model.settings.words <= 2 - settings.allow_unk and settings.min_words > len(prompt):
        raise SettingsError("the vocabulary has no word that may be drawn; give --allow-unk or --min-words 0")
    if room == 0:
        return iter([[] for _ in range(count)])
    first = read(model, [*before, *prompt], work)
    return _in_order(_finished(model, unknown_id, count, generator, work, first, len(prompt), settings))


def _in_order(finished: Iterator[_Sentence]) -> Iterator[list[int]]:
    """Hold sentences back until those before them are done."""
    held: dict[int, list[int]] = {}
    wanted = 0
    for sentence in finished:
        held[sentence.index] = sentence.words
        while wanted in held:
            yield held.pop(wanted)
            wanted += 1


def _finished(
    model: LanguageModel,
    unknown_id: int,
    count: int,
    generator: np.random.Generator,
    work: Workspace,
    first: tuple[Array, Array],
    prompted: int,
    settings: GenerationSettings,
) -> Iterator[_Sentence]:
    """Yield sentences as they end; a slot whose sentence has ended takes the next one.

    `first` is what `read` has made of the prompt, which has `prompted` words.
    """
    first_log_p, first_states = first
    slots = max(1, min(SLOTS, SLOT_NUMBERS // model.settings.words))
    log_p, states = first_log_p.repeat(slots, axis=0), first_states.repeat(slots, axis=2)  # (B, V), (L, M, B, H)
    coming = iter(range(count))
    running: dict[int, _Sentence] = {}  # by slot
    while True:
        free = [slot for slot in range(slots) if slot not in running]
        for slot, index in zip(free, coming, strict=False):
            running[slot] = _Sentence(index, generator.spawn(1)[0])
            log_p[slot], states[:, :, slot] = first_log_p[0], first_states[:, :, 0]
        if not running:
            return
        at = list(running)
        lengths = np.array([prompted + len(running[slot].words) for slot in at])
        allowed = _allowed(log_p[at], lengths, unknown_id, settings)
        uniform = np.array([running[slot].generator.random() for slot in at])
        read = np.full(slots, SENTENCE_END)
        read[at] = _draw_all(allowed, uniform, settings, work)
        for slot, length in zip(at, lengths, strict=True):
            if read[slot] != SENTENCE_END:
                running[slot].words.append(int(read[slot]))
            if read[slot] == SENTENCE_END or length + 1 == settings.max_words:
                yield running.pop(slot)
        log_p, states = model.step(read, states, work)


def _draw_all(log_p: Array, uniform: Array, settings: GenerationSettings, work: Workspace) -> Array:
    """Draw a word for each row of log p (B, V), as `draw` does, on all threads."""
    words = np.empty(len(uniform), int)

    def draw_some(rows: slice) -> None:
        words[rows] = draw(weights(log_p[rows], settings), uniform[rows])

    work.each(draw_some, runs(0, len(uniform), DRAWN))
    return words


def _allowed(log_p: Array, lengths: Array, unknown_id: int, settings: GenerationSettings) -> Array:
    """Put -inf in log p (B, V), which it overwrites, for words that may not follow `lengths` (B,) words."""
    if not settings.allow_unk:
        log_p[:, unknown_id] = -np.inf
    log_p[lengths < settings.min_words, SENTENCE_END] = -np.inf
    return log_p


def read(model: LanguageModel, words: Sequence[int], work: Workspace) -> tuple[Array, Array]:
    """Return log p (1, V) of the word that comes after these, from the start of a text, and the states (L, M, 1, H)."""
    log_p, states = model.step(np.array([SENTENCE_END]), model.start(1), work)
    for word in words:
        log_p, states = model.step(np.array([word]), states, work)
    return log_p, states


def weights(log_p: Array, settings: GenerationSettings) -> Array:
    """Return numbers (B, V) proportional to what steps 2 to 4 of `settings` make of the probabilities, log p (B, V).

    A word that may not come has -inf; every row has one that may. Raises ModelError when a probability is no number.
    """
    most = log_p.max(axis=1, keepdims=True)
    if not np.isfinite(most).all():
        raise ModelError("the model's probabilities are no longer numbers, so nothing can be drawn; train it again")
    if settings.temperature == 0:
        certain = np.zeros_like(log_p)
        certain[np.arange(len(log_p)), log_p.argmax(axis=1)] = 1
        return certain
    temperature = min(max(settings.temperature, 1e-20), 1e20)  # beyond, nothing changes and float32 ends
    result: Array = np.exp((log_p - most) / temperature)
    if settings.top_k is None and settings.top_p is None:
        return result
    return np.where(_likeliest(result, settings.top_k, settings.top_p), result, 0)


def _likeliest(weights: Array, top_k: int | None, top_p: float | None) -> Array:
    """Say which words (B, V) top_k and then top_p keep."""
    ordered = -np.sort(-weights, axis=1)[:, :top_k]
    mass = np.cumsum(ordered, axis=1, dtype=np.float64)
    kept = np.full(len(weights), ordered.shape[1])
    if top_p is not None:
        kept = 1 + (mass[:, :-1] < top_p * mass[:, -1:]).sum(axis=1)
    least = ordered[np.arange(len(weights)), kept - 1][:, None]  # (B, 1)
    above, ties = weights > least, weights == least
    places = kept - above.sum(axis=1)
    keep: Array = above | (ties & (np.cumsum(ties, axis=1) <= places[:, None]))
    return keep


def draw(weights: Array, uniform: Array) -> Array:
    """Draw a word for each row of weights (B, V), where its uniform number (B,) in [0, 1) falls in their running sum.

    A word with weight 0 is never drawn. Returns ids (B,).
    """
    # A running sum adds one number after the other, at a tenth of the speed of a plain sum: so first that of runs.
    run_sums = np.add.reduceat(weights, np.arange(0, weights.shape[1], RUN), axis=1)
    mass = np.cumsum(run_sums, axis=1, dtype=np.float64)
    words = []
    for row, sums, part in zip(weights, mass, uniform.tolist(), strict=True):
        run, part = _place(sums, part)
        word, _ = _place(np.cumsum(row[run * RUN : (run + 1) * RUN], dtype=np.float64), part)
        words.append(run * RUN + word)
    return np.array(words)


def _place(sums: Array, part: float) -> tuple[int, float]:
    """Say between which running sums a part in [0, 1) of the last falls, and at which part, in [0, 1), of the gap."""
    at = part * sums[-1]  # below it, also when rounded, as `part` is at most 1 - 2^-53
    place = int(sums.searchsorted(at, side="right"))
    before = sums[place - 1] if place else 0.0
    return place, min(float((at - before) / (sums[place] - before)), 1 - 2**-53)
