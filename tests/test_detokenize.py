"""Words back to readable text: contractions, punctuation, quotation marks."""

from pathlib import Path

import pytest

from rnnlm.detokenize import detokenize
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

READABLE = [
    "The cat sat on the mat.",
    "Who are you?",
    "Stop, thief!",
    "I don't know, and I can't say; he won't.",
    "It's the cat's, isn't it?",
    "We'll see what they've done, I'm sure you'd say they're late.",
    '"Go," he said.',
    'He said, "I don\'t know," and left.',
    '"Is it?" she asked. "It is!"',
    "He said 'go' and left.",
    "'Go,' he said, 'or stay.'",
    "'Tis the season, 'twas said.",
    "Give 'em the dogs' bones.",
    "The boys' and the girls' games (or not).",
    "A list: one, two, three; four.",
    "It costs $5.50, or 10% more.",
    "He (the man [in the moon] {there}) left.",
    "We cannot go, I'm gonna stay, you gotta see.",
    "Wait... what?! No...",
    "Dr. Brown, of AT & T, met Mr. Jones at 5:30 in the U.S.",
    "A well-known man -- so he says -- left.",
    "“Yes,” he said, “it’s ‘so’.”",
    "One—two—three, pages 3–5.",
    "It was #5, e.g. 3,000 or 1/2 of it.",
    'He said ("so to speak") nothing.',
    "O' the hill, rock 'n' roll.",
    '<unk> saw the <unk>\'s <unk>, (<unk>) "<unk>".',
    "a < b > c & d * e @ f",
]


@pytest.mark.parametrize("sentence", READABLE)
def test_detokenize_restores_text(raw, sentence):
    """Tokenizing and detokenizing gives the text back, or a text with the same words."""
    words = raw.words(sentence)
    readable = detokenize(words)
    assert raw.words(readable) == words
    if sentence not in ("O' the hill, rock 'n' roll.", "a < b > c & d * e @ f"):
        assert readable == sentence


@pytest.mark.parametrize(
    ("words", "readable"),
    [
        ("-LRB- so -RRB- he -LSB- said -RSB-", "(so) he [said]"),
        ("-lrb- 1\\/2 -rrb- \\*", "(1/2) *"),
        ('he said " go " and " stay "', 'he said "go" and "stay"'),
        ("he 's gon na go , 't is so", "he's gonna go, 'tis so"),
        ("mr. <unk> 's $ N million or N % of it", "mr. <unk>'s $N million or N% of it"),
        ("'s blood", "'s blood"),
        ("the dogs '", "the dogs'"),
        ("`` it `` is '' so ''", '"it "is" so"'),
        ("don ’ t say ‘ no ’", "don’t say ‘no’"),
        ("DO N'T , I 'LL GO", "DON'T, I'LL GO"),
        ("she said — `` go '' — and left", 'she said— "go"—and left'),
        ("' '", "' '"),
        ("", ""),
        (".", "."),
    ],
)
def test_detokenize(words, readable):
    """Words of every tradition become readable: Penn Treebank brackets and slashes, straight and curly quotes."""
    assert detokenize(words.split()) == readable


def test_embedded_corpus_survives_the_round_trip():
    """Every sentence of the embedded corpus's validation part is restored word for word."""
    source = Source.of(Path(__file__).parents[1] / "data" / "valid.txt")
    tokenizer = Tokenizer.learn([source], TextSettings())
    found = list(tokenizer.sentences([source]))
    assert len(found) > 500
    for words in found:
        assert tokenizer.words(detokenize(words)) == words


def test_detokenize_never_makes_a_reserved_word():
    """Brackets that NLTK parted are not joined into marks of the model."""
    assert detokenize(["<", "s", ">", "<", "unk", ">"]) == "< s > < unk >"
