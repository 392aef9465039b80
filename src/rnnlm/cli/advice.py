"""What `rnnlm train` warns of before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rnnlm.checking import flag
from rnnlm.errors import counted

if TYPE_CHECKING:
    from rnnlm.run import Run

LONG_SENTENCE, LONG_WORD = 100, 12  # words, characters, on average: no language that is written with blanks has more
FEW = 30  # predictions, of which a perplexity is no figure


def text_warnings(run: Run) -> Iterator[str]:
    """Warn of texts that a model learns little from, or that measure it badly."""
    from rnnlm.corpus import same_text

    settings, text, valid = run.saved.origin.settings, run.saved.origin.coverage, run.valid
    if text.words > LONG_SENTENCE * text.sentences:
        yield (
            f"sentences have {text.words // text.sentences:,} words on average; if the text has a sentence on each "
            "line, give --lines, or --pretokenized."
        )
    if text.characters > LONG_WORD * text.words:
        yield (
            f"words have {text.characters // text.words:,} characters on average; text without spaces between words, "
            "such as Chinese, must be cut into words first, and be given with --pretokenized."
        )
    chosen, given = settings.vocabulary, settings.initial is not None or settings.vocabulary.vocab is not None
    if text.unknown > text.words / 2:
        remedy = "the vocabulary is of other texts" if given else "give a larger --vocab-size or a smaller --min-count"
        yield f"{1 - text.share:.0%} of the training words are unknown; {remedy}."
    if valid.unknown and not text.unknown and not given:
        rarer = "--min-count 2" if chosen.min_count == 1 else f"a --vocab-size below {text.vocabulary:,}"
        yield (
            f"the validation text has {counted(valid.unknown, 'unknown word')}, and training has none to learn from: "
            f"each costs much perplexity; give {rarer}."
        )
    if valid.predictions < FEW:
        yield f"the validation text has {valid.predictions:,} predictions only; name a longer one with --valid."
    if same_text(run.corpus, valid):
        yield "the validation text is the training text, so its perplexity says nothing of other texts."


def option_warnings(run: Run) -> Iterator[str]:
    """Name options that do less than they say."""
    settings, words = run.saved.origin.settings, run.saved.origin.coverage.vocabulary
    asked, made = settings.network.clusters or 0, len(run.saved.model.settings.cutoffs) + 1
    if asked > made:
        room = f"--clusters {asked} does not fit a vocabulary of {words:,} words"
        yield f"{room}; the softmax has {counted(made, 'cluster')}."
    training = settings.training
    if training.decay_from >= training.epochs:
        given = [name for name in ("decay_from", "lr_decay") if name not in settings.chosen]
        if given:
            options = " and ".join(f"{flag(name)} {getattr(training, name):g}" for name in given)
            some = f"{'have' if len(given) > 1 else 'has'} no effect in {counted(training.epochs, 'epoch')}"
            late = f"the rate first falls after epoch {training.decay_from}"
            yield f"{options} {some}, as {late}; give a lower --decay-from or more --epochs."
