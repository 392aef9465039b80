"""Words back to readable text: contractions, punctuation, quotation marks."""

import time
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
    "“Yes,” he said, “it’s ‘so’, isn’t it? They’ll go.”",
    "O’Brien’s, the dogs’ and the ‘cat’s’ bones; I CAN’T, D’ye?",
    "’Tis the season: ’twas so, in the ’90s and the '80s, give ’em all.",
    "The “cat”’s tail, <unk>’s tail.",
    "See http://www.example.org/a?b=c for it.",
    "Is it https://example.org? No, it is http://localhost:8080/x?a=1&b=%20c#top!",
    "See https://example.org/@user/x, (http://example.org), or ask.",
    "Ask @someone, @you_too: or a.b@c.org, first.last+tag@mail.example.org!",
    "Mail (a.b@c.org).",
    "The #tag, #5 and (#one).",
    "Er sagte: „Das ist ‚einfach‘ so“, und ging.",
    "„Anführung“",
    "Polish „tekst” and English “text” and ‘word’.",
    "Il dit « bon », et « guillemets ».",
]
LINES = Tokenizer(TextSettings(lines=True))


def words_of(sentence):
    """Return the words of one sentence."""
    return [word for words in LINES.prompt(sentence) for word in words]


@pytest.mark.parametrize("sentence", READABLE)
def test_detokenize_restores_text(sentence):
    """Tokenizing and detokenizing gives the text back, or a text with the same words."""
    words = words_of(sentence)
    readable = detokenize(words)
    assert words_of(readable) == words
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
        ("so “ . so ‘", "so“. so‘"),
        ("the odds : 5 ? a=b", "the odds: 5? a=b"),
        ("5 @ 3 or 5 @ noon", "5 @ 3 or 5 @noon"),
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
        assert words_of(detokenize(words)) == words
        curly = " ".join(words).replace("'", "’").replace("’’", "''").split(" ")
        assert "".join(words_of(detokenize(curly))) == "".join(curly)


def test_time_is_linear():
    """A sentence of a hundred thousand marks is no matter of minutes."""
    for mark in ("a '", "'", '. "', "“", "? http : //a"):
        tokens = (mark.split(" ") * 100_000)[:100_000]
        start = time.process_time()
        detokenize(tokens)
        assert time.process_time() - start < 5


def test_detokenize_never_makes_a_reserved_word():
    """Brackets that NLTK parted are not joined into marks of the model."""
    assert detokenize(["<", "s", ">", "<", "unk", ">"]) == "< s > < unk >"
