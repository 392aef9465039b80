"""The formats of other tools, held against what those tools have printed."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest

from rnnlm.formats import (
    Scored,
    faster_rnnlm,
    kaldi,
    kenlm,
    keyed,
    mikolov,
    sentence_rows,
    shortest,
    srilm,
    summed,
    word_rows,
)

# Of KenLM's `query`, on three lines of its own model; the summary is that of `query -v summary` on them.
KENLM = """\
the=34 2 -0.73664147	cftc=0 1 -4.997363	's=121 1 -2.2033343	</s>=2 2 -0.9383514	Total: -8.87569 OOV: 1
a=37 2 -2	member=3420 2 -3.25018	of=44 2 -0.58749294	the=34 3 -1e-7	</s>=2 2 -1.3251718	Total: -7.162845 OOV: 0
</s>=2 1 -2.5	Total: -2.5 OOV: 0
"""
# Of Mikolov's rnnlm 0.4b, `-test six.txt -rnnlm a.text -debug 2`: the beginning, the end of the last two sentences.
MIKOLOV = """\
debug mode: 2
test file: six.txt
rnnlm file: a.text
Index   P(NET)          Word
----------------------------------
-1	0		OOV
1	0.1870617270	UNKWORD
2	0.0669267476	the
0	0.0045425314	</s>
-1	0		OOV
2	0.1027913094	the
56	0.0096796639	market
0	0.0047820066	</s>

test log probability: {:f}

PPL net: {:f}
"""
# Of `ngram -ppl v.txt -debug 2`, by SRILM's grammar; the numbers of words are as they were printed.
SRILM = """\
to the tv
	p( to | <s> ) 	= [2gram] {} [ -0.5655261 ]
	p( the | to ...) 	= [3gram] {} [ -1.010637 ]
	p( tv | the ...) 	= [4gram] {} [ -3.006673 ]
	p( </s> | tv ...) 	= [5gram] {} [ -1 ]
1 sentences, 3 words, 0 OOVs
0 zeroprobs, logprob= -5.582836 ppl= 24.8719 ppl1= 72.60146

zebra the
	p( <unk> | <s> ) 	= [2gram] {} [ -3.25 ]
	p( the | <unk> ...) 	= [3gram] {} [ -0.25 ]
	p( </s> | the ...) 	= [4gram] {} [ -0.5 ]
1 sentences, 2 words, 0 OOVs
0 zeroprobs, logprob= -4 ppl= 21.54435 ppl1= 100

file v.txt: 2 sentences, 5 words, 0 OOVs
0 zeroprobs, logprob= -9.582836 ppl= 23.38711 ppl1= 82.52152
"""


def record(words, log10_p, unknown=(), **others):
    """Return a sentence of words, separated by blanks, whose probabilities have these logarithms to base 10."""
    words = words.split()
    log_p = np.array(log10_p, np.float64) * math.log(10)
    return Scored(" ".join(words), words, [word in unknown for word in words], log_p, **others)


def of_kenlm(text):
    """Read what KenLM has printed: the records, the numbers of words, and what gives the lengths of n-grams."""
    records, numbers, lengths = [], {}, {}
    for line in text.splitlines():
        entries = [re.fullmatch(r"(.+)=(\d+) (\d+) (\S+)", part).groups() for part in line.split("\t")[:-1]]
        numbers |= {word: int(number) for word, number, *_ in entries if number != "0"}
        words = [word for word, *_ in entries[:-1]]
        unknown = {word for word, number, *_ in entries if number == "0"}
        records.append(record(" ".join(words), [np.float32(log_p) for *_, log_p in entries], unknown))
        lengths[tuple(words)] = [int(length) for _, _, length, _ in entries]
    return records, numbers, lambda words: lengths[tuple(words)]


def any_length(words):
    """Return lengths as a network has them."""
    return range(2, len(words) + 3)


def test_kenlm_sample():
    """Words, numbers, lengths, probabilities, totals and the summary are KenLM's to the byte."""
    found = of_kenlm(KENLM)
    everything, summary = "".join(kenlm(*found)), "".join(kenlm(*found, "0"))
    assert everything == KENLM + summary
    totals = [np.float32(total) for total in re.findall(r"Total: (\S+)", KENLM)]
    including, excluding, unknown, tokens = summary.splitlines()
    assert including.startswith("Perplexity including OOVs:\t")
    assert float(including.split("\t")[1]) == pytest.approx(10 ** (-sum(map(float, totals)) / 10))
    assert excluding.startswith("Perplexity excluding OOVs:\t")
    assert float(excluding.split("\t")[1]) == pytest.approx(10 ** (-(sum(map(float, totals)) + 4.997363) / 9))
    assert (unknown, tokens) == ("OOVs:\t1", "Tokens:\t10")


def test_levels_of_kenlm():
    """`-v word` has words alone, without any newline; 1 sentences and the summary, 0 the summary; each by its name."""
    found = of_kenlm(KENLM)
    word, sentence, both, summary = ("".join(kenlm(*found, level)) for level in ("word", "sentence", "1", "summary"))
    assert word == re.sub(r"Total.*\n", "", KENLM)
    assert sentence == "".join(re.findall(r"Total.*\n", KENLM))
    assert (both, summary) == (sentence + summary, "".join(kenlm(*found, "0")))
    assert "".join(kenlm([], {}, any_length, "0")).splitlines()[0] == "Perplexity including OOVs:\tNaN"


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (-2, "-2"),
        (-5.2059517, "-5.2059517"),
        (-1e-7, "-1e-7"),
        (-1.5e-7, "-1.5e-7"),
        (-1e-6, "-0.000001"),
        (1e21, "1e21"),
        (3e20, "300000000000000000000"),
        (0, "0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers_are_kenlms(number, written):
    """The shortest digits that read back, an exponent only below 1e-6 and from 1e21, as double-conversion writes."""
    assert shortest(np.float32(number)) == written


def test_doubles_are_kenlms():
    """Perplexities are written in the shortest digits of a double."""
    assert shortest(np.float64("335.5678489460036")) == "335.5678489460036"


def of_mikolov(text):
    """Read what Mikolov's rnnlm has printed."""
    rows = [line.split("\t") for line in text.split("---\n")[1].split("\n\n")[0].splitlines()]
    ends = [-1, *(at for at, row in enumerate(rows) if row[0] == "0"), len(rows)]
    records = []
    for before, end in pairwise(ends[:-1]):
        own = rows[before + 1 : end + 1]
        log10_p = [math.log10(float(row[1]) or 1) for row in own]
        records.append(record(" ".join(row[-1] for row in own[:-1]), log10_p, {"OOV"}))
    return records, {row[-1]: int(row[0]) for row in rows if row[0] != "-1"}


def test_mikolov_sample():
    """The table, unknown words in it, and the sums without them are Mikolov's."""
    records, ids = of_mikolov(MIKOLOV)
    known = [float(p) for p in re.findall(r"^\d+\t(\S+)\t", MIKOLOV, re.M)]
    total = sum(map(math.log10, known))
    expected = MIKOLOV.format(total, 10 ** (-total / len(known)))
    assert "".join(mikolov(records, ids, "six.txt", "a.text", independent=False)) == expected
    brief = "".join(mikolov(records, ids, "six.txt", "a.text", independent=True, level="1"))
    begin = "test file: six.txt\nSentences will be processed independently...\nrnnlm file: a.text\n\ntest log prob"
    assert brief.startswith(begin)
    assert brief.endswith(expected[expected.index("\ntest log") :])


def test_an_unknown_word_of_the_text_is_a_word_to_mikolov():
    """A `<unk>` that the text has itself is a word of the vocabulary, as it is in Mikolov's."""
    (line,) = [
        line
        for line in "".join(
            mikolov([record("<unk>", [-1, -1], {"<unk>"})], {"<unk>": 5, "</s>": 0}, "t", "m", True)
        ).splitlines()
        if line.endswith("<unk>")
    ]
    assert line == "5\t0.1000000000\t<unk>"


def test_srilm_sample():
    """Sentences, predictions and statistics are SRILM's with -unk; blank lines are skipped."""
    logs = [[-0.5655261, -1.010637, -3.006673, -1], [-3.25, -0.25, -0.5]]
    records = [record("to the tv", logs[0]), record("", [-2]), record("zebra the", logs[1], {"zebra"})]
    expected = SRILM.format(*(f"{10**value:.7g}" for value in (*logs[0], *logs[1])))
    assert "".join(srilm(records, "v.txt", any_length)) == expected
    assert "".join(srilm(records, "v.txt", any_length, "1")) == re.sub(r"\tp\(.*\n", "", expected)
    assert "".join(srilm(records, "v.txt", any_length, "0")) == expected[expected.index("file v.txt") :]
    nothing = "file v.txt: 0 sentences, 0 words, 0 OOVs\n0 zeroprobs, logprob= 0 ppl= undefined ppl1= undefined\n"
    assert "".join(srilm([], "v.txt", any_length)) == nothing


def test_srilm_tells_the_n_gram():
    """The tag before a probability says how long the n-gram is that it is of."""
    text = "".join(srilm([record("the cat", [-0.5, -0.25, -1])], "t", lambda words: [2, 1, 3]))
    assert re.findall(r"= (\[\S+\]) ", text) == ["[2gram]", "[1gram]", "[3gram]"]


def test_readers_of_srilm_find_their_fields():
    """compute-best-mix takes field 10, Mikolov's convert.c the number behind the first `]`."""
    (line, *_) = re.findall(r"^\tp\( .*$", "".join(srilm([record("the", [-0.5, -0.25])], "t", any_length)), re.M)
    words = line.split()
    assert words[0] == "p("
    assert float(words[9]) == -0.5  # counted from 1, field 10
    assert float(re.search(r"\] (\S+)", line).group(1)) == pytest.approx(10**-0.5, rel=1e-6)


def test_kaldi():
    """A key, a tab and the cost in nats, as awk prints it; keys end at the first blank."""
    records = [record("the cat", [-1, -0.5, -2], key="utt-1"), record("", [-1], key="utt-2")]
    assert "".join(kaldi(records)) == "utt-1\t8.05905\nutt-2\t2.30259\n"
    assert keyed(["utt-1 the  cat", "  utt-2", ""]) == (["utt-1", "utt-2", ""], ["the  cat", "", ""])


def test_faster_rnnlm():
    """log10 of each sentence, OOV where the vocabulary lacks a word; blank lines are skipped; the entropy is told."""
    told = []
    records = [record("the cat", [-1, -0.5, -2]), record("", [-1]), record("zebra", [-1, -1], {"zebra"})]
    assert "".join(faster_rnnlm(records, told.append)) == "-3.500000\nOOV\n"
    assert told == [f"Test entropy {3.5 * math.log2(10) / 3:f}"]
    "".join(faster_rnnlm([], told.append))
    assert told[1] == "Test entropy nan"


def test_own_rows():
    """Rows of sentences and words, with places and ranks where they are asked for."""
    others = {"spans": [(0, 3), (3, 6)], "ranks": np.array([3.0, 1, 2]), "entropies": np.array([1.0, 2, 3])}
    scored = record("the cat", [-1, -0.5, -2], {"cat"}, **others)
    assert "".join(sentence_rows([scored])) == "-3.500000\t3\t1\n"
    rows = "".join(word_rows([scored], "e", spans=True, ranks=True)).splitlines()
    assert rows[0].split("\t")[3:] == ["surprisal_nats", "unknown", "start", "end", "rank", "entropy_nats"]
    assert rows[2] == "1\t2\tcat\t1.151293\t1\t3\t6\t1\t2.000000"
    assert rows[3] == "1\t3\t</s>\t4.605170\t0\t6\t6\t2\t3.000000"


def test_words_are_added_up_to_blanks():
    """What no blank parts is one word: its surprisal the sum, unknown if a part is; the rest stays as it is."""
    parts = Scored(
        "don't go", ["do", "n't", "go"], [False, True, False], np.array([-1.0, -2, -3, -4]), [(0, 2), (2, 5), (6, 8)]
    )
    whole = summed(parts)
    assert (whole.words, whole.unknown, whole.log_p.tolist()) == (["don't", "go"], [True, False], [-3, -3, -4])
    assert whole.spans == [(0, 5), (6, 8)]
    plain = record("the cat", [-1, -1, -1])
    assert summed(plain) is plain
