import ast
import contextlib
import gzip
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from random import Random

import pytest

from conftest import PROSE
from rnnlm import shortcuts, sources, text, workers
from rnnlm.checking import Unfit, restore
from rnnlm.detokenize import detokenize
from rnnlm.errors import SettingsError, TextError
from rnnlm.sources import Source
from rnnlm.text import TextSettings, Tokenizer

PLAIN = Tokenizer(TextSettings(pretokenized=True))
LINES = Tokenizer(TextSettings(lines=True))
PLAIN_LOWER = Tokenizer(TextSettings(pretokenized=True, lowercase=True))


def sentences(tokenizer, *texts, **options):
    """Return all sentences of some sources."""
    return list(tokenizer.sentences(texts, **options))


# Every row of docs/formats.md


def test_documented_cases_are_tested():
    """Each outcome in the tables of docs/formats.md is the first paragraph of some test's docstring, word for word."""
    page = Path(__file__).parents[1] / "docs" / "formats.md"
    tables = re.findall(r"\| case \| outcome \|\n\| --- \| --- \|\n((?:\|.*\n)+)", page.read_text("utf-8"))
    outcomes = {row.strip("|").split("|")[1].strip() for table in tables for row in table.splitlines()}
    assert len(outcomes) >= 29
    promises = set()
    for file in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = (ast.get_docstring(node) or "").split("\n\n")[0]
                promises.add(" ".join(first.split()))
    assert outcomes <= promises


def test_literal_unknown(write, raw):
    """A literal `<unk>` is the unknown word, in raw text too, where it remains one word whatever it touches."""
    assert sentences(PLAIN, write("the <unk> of <UNK>\n")) == [["the", "<unk>", "of", "<UNK>"]]
    text = 'The <unk>\'s cat, <unk>, saw foo<unk>bar "<unk>" (<unk>). And <unk>.'
    first, second = sentences(raw, write(text))
    assert " ".join(first) == "The <unk> 's cat , <unk> , saw foo <unk> bar `` <unk> '' ( <unk> ) ."
    assert second == ["And", "<unk>", "."]


def test_literal_unknown_is_folded_too(write):
    """With lower case, <UNK> is the unknown word, in raw text as well."""
    lower = Tokenizer.learn([write(PROSE)], TextSettings(lowercase=True))
    assert lower.prompt("The <UNK>.") == [["the", "<unk>", "."]]
    assert sentences(PLAIN_LOWER, write("The <UNK>\n")) == [["the", "<unk>"]]


@pytest.mark.parametrize("content", ["one two\nthree </s>\n", "one two\n</s> three", "one\n \t</s>\t"])
def test_literal_sentence_end(write, raw, content):
    """A literal `</s>` is an error that names file and line: as a word of pretokenized text, anywhere in raw text."""
    path = write(content)
    line = content[: content.index("<")].count("\n") + 1
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=rf"corpus\.txt, line {line}: '</s>' .*remove it"):
            sentences(tokenizer, path)
    within = write("one two\nthree</s>four\n")
    assert sentences(PLAIN, within)[1] == ["three</s>four"]
    with pytest.raises(TextError, match="line 2"):
        sentences(raw, within)


def test_literal_sentence_start(write, raw):
    """A literal `<s>` is an error that names file and line, under the same rule as `</s>`."""
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=r"corpus\.txt, line 3: '<s>'"):
            sentences(tokenizer, write("\n\n<s> one\n"))
    assert sentences(PLAIN, write("<S>\n")) == [["<S>"]]
    with pytest.raises(TextError, match="'<S>'"):
        sentences(PLAIN_LOWER, write("<S>\n"))


def test_blank_lines(write, raw):
    """A blank line ends a paragraph of raw text; in pretokenized text it is skipped."""
    content = "\n\none two\n \t \n\nthree\nfour\n\n"
    assert sentences(PLAIN, write(content)) == [["one", "two"], ["three"], ["four"]]
    assert sentences(raw, write(content)) == [["one", "two"], ["three", "four"]]


def test_crlf(write, raw):
    """CR LF ends a line just as LF does; a CR elsewhere is a blank."""
    for tokenizer in (PLAIN, raw):
        with_lf = sentences(tokenizer, write("one two\nthree.\n\nFour\n"))
        assert sentences(tokenizer, write("one two\r\nthree.\r\n\r\nFour\r\n")) == with_lf
    assert sentences(PLAIN, write("one\rtwo\r\n")) == [["one", "two"]]


def test_other_line_ends(write):
    """Form feed, vertical tab, NEL, U+2028 and U+2029 end no line."""
    (sentence,) = sentences(PLAIN, write("a\fb\vc\x85d\u2028e\u2029f\n"))
    assert sentence == ["a", "b", "c", "d\u2028e\u2029f"]


def test_missing_last_newline(write, raw):
    """The last line counts whether or not a newline ends it."""
    for tokenizer in (PLAIN, raw):
        assert sentences(tokenizer, write("one.\n\ntwo")) == sentences(tokenizer, write("one.\n\ntwo\n"))
        assert len(sentences(tokenizer, write("one.\n\ntwo"))) == 2


@pytest.mark.parametrize("content", ["", "\n", " \t\r\n\n", "\ufeff", gzip.compress(b"", mtime=0)])
def test_empty_file(write, raw, content):
    """A file without a single word is an error that names the file."""
    good = write("word\n", "good.txt")
    for tokenizer in (PLAIN, raw):
        with pytest.raises(TextError, match=r"corpus\.txt has no words"):
            sentences(tokenizer, good, write(content), good)


def test_gigantic_line(write, raw):
    """A sentence of more than 65,536 characters is cut at blanks; a line of any length costs bounded memory."""
    words = [f"word{number}" for number in range(30_000)]
    for tokenizer in (PLAIN, LINES, raw):
        found = sentences(tokenizer, write(" ".join(words) if tokenizer is PLAIN else "\u3000".join(words)))
        assert [word for sentence in found for word in sentence] == words
        assert len(found) == 5
        assert all(len(" ".join(sentence)) <= text.SENTENCE_LIMIT for sentence in found)


def test_gigantic_line_goes_through_in_chunks(write, monkeypatch):
    """No chunk is longer than its limit, and none is lost, when a line is longer than a chunk."""
    monkeypatch.setattr(sources, "CHUNK", 100)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 200)
    monkeypatch.setattr(sources, "READ_BLOCK", 64)
    words = [f"word{number}" for number in range(300)]
    blocks = list(PLAIN.blocks([write(" ".join(words))]))
    assert len(blocks) > 10
    assert max(map(len, blocks)) <= 200
    assert " ".join(blocks).split() == words


# Settings and pretokenized text


def test_pretokenized_blanks(write):
    """Words are parted by blanks and tabs; other blanks of Unicode belong to words, as other tools count them."""
    assert sentences(PLAIN, write("  a \t b\u00a0c  \u3000 d\n")) == [["a", "b\u00a0c", "\u3000", "d"]]


def test_pretokenized_loads_no_nltk(write):
    """Pretokenized text is tokenized without NLTK being loaded."""
    program = f"""
        import sys
        from rnnlm.sources import Source
        from rnnlm.text import TextSettings, Tokenizer
        source = Source.of({write("a b").name!r})
        tokenizer = Tokenizer.learn([source], TextSettings(pretokenized=True))
        assert list(tokenizer.sentences([source])) == [["a", "b"]]
        assert tokenizer.prompt("a  b") == [["a", "b"]]
        assert not [name for name in sys.modules if name.startswith("nltk")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)


def test_lowercase(write, raw):
    """Lower case is applied to words after they were found."""
    assert sentences(PLAIN_LOWER, write("The CAT\n")) == [["the", "cat"]]
    lower = Tokenizer(TextSettings(lowercase=True), raw.punkt)
    path = write(PROSE)
    assert sentences(lower, path) == [[word.lower() for word in sentence] for sentence in sentences(raw, path)]


# Raw text


def test_raw_sentences(write, raw):
    """Sentences end where they should: not after learned abbreviations, at the marks, and with their closing quotes."""
    found = [" ".join(sentence) for sentence in sentences(raw, write(PROSE))]
    assert found == [
        "Dr. Brown met Mr. Jones on Friday .",
        "They talked about the weather , as Dr. Brown always does .",
        "Did Mr. Jones listen ?",
        "He did not !",
        "`` I was asleep , '' said Mr. Jones .",
        "`` Dr. Brown talks , and I sleep . ''",
        "The wet garden was very wet .",
        "The cats , who do n't like rain , were in the house .",
        "Mr. Jones went home .",
        "Dr. Brown stayed in the garden .",
        "Who knows why ?",
        "I do n't .",
    ]


def test_quotation_mark_after_a_line_break(write, raw):
    """A quotation mark that opens at the start of a wrapped line opens, as it does within a line."""
    assert sentences(raw, write('He said\n"go" to me.\n')) == sentences(raw, write('He said "go" to me.\n'))


def test_prompt(raw):
    """A prompt is cut into sentences and words like a text, whether or not its last sentence is whole."""
    assert raw.prompt("Speak to me. Where is") == [["Speak", "to", "me", "."], ["Where", "is"]]
    assert raw.prompt("Dr. Brown\nsaid: \"Don't") == [["Dr.", "Brown", "said", ":", "``", "Do", "n't"]]
    assert LINES.prompt("To me. Where\n\nis") == [["To", "me.", "Where"], ["is"]]
    assert PLAIN.prompt("two\nlines\0 me.") == [["two"], ["lines", "me."]]
    for tokenizer in (raw, LINES, PLAIN):
        assert tokenizer.prompt("") == tokenizer.prompt(" \n\t\n\n \0") == []
        with pytest.raises(TextError, match="'</s>' is the model's own mark"):
            tokenizer.prompt("and </s>")
        with pytest.raises(TextError, match=r"the prompt has half of a surrogate pair, U\+DCFF.*encoding"):
            tokenizer.prompt("caf\udcff")


def test_typographic_apostrophes(write, raw):
    """A typographic apostrophe within a word parts it just as a straight one does, and stays what it is.

    One that stands at the end of a word, or closes a quotation, is a word of its own.
    """
    for content in (
        "It isn’t the dog’s, they’ll say; I’m sure you’d, we’ve, they’re, CAN’T and shan’t.",
        "O’Brien and l’homme at five o’clock, rock’n’roll.",
        "He said, \"isn’t it\" and ''it’s'' so.",
        "The dogs’ bones’, and the Joneses’.",
        "<unk>’s and <unk>n’t <unk>’",
        "’tis d’ye more’n ’em the ’90s (it’s) “it’s”’s",
    ):
        curly, straight = LINES.prompt(content), LINES.prompt(content.replace("’", "'"))
        assert [[word.replace("’", "'") for word in words] for words in curly] == straight
        assert "".join(curly[0]).replace("``", '"').replace("''", '"') == content.replace(" ", "").replace("''", '"')
    assert (
        " ".join(raw.prompt("‘So’ isn’t ‘dogs’’ (‘so’), “‘it’s’”.")[0])
        == "‘ So ’ is n’t ‘ dogs ’ ’ ( ‘ so ’ ) , “ ‘ it ’s ’ ” ."
    )
    assert sentences(raw, write("It isn’t."))[0] == ["It", "is", "n’t", "."]


def test_lines(write, raw, monkeypatch):
    """`--lines` takes every line of raw text as a sentence, whose words are found as in other raw text."""
    content = 'Dr. Brown met me. He didn\'t\n \n\n  "go" \u00a0 on.\nStop'
    expected = [["Dr.", "Brown", "met", "me.", "He", "did", "n't"], ["``", "go", "''", "on", "."], ["Stop"]]
    assert sentences(LINES, write(content)) == LINES.prompt(content) == expected
    learned = Tokenizer.learn([Source.of("not-read.txt")], TextSettings(lines=True, lowercase=True))
    assert learned.punkt is None
    assert stored(learned) == learned
    assert learned.prompt("STOP.") == [["stop", "."]]
    monkeypatch.setattr(sources, "CHUNK", 10)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 50)
    assert sentences(LINES, write("It is so.\n" * 9)) == [["It", "is", "so", "."]] * 9
    with pytest.raises(SettingsError, match="--pretokenized takes a line as a sentence already; leave --lines out"):
        TextSettings(pretokenized=True, lines=True)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "Er kam heim. „Gehst du heute?“, fragt der Koch. „Nein.“ Sie lacht. „Ich bleibe hier.“ Er geht.",
            [
                "Er kam heim.",
                "„Gehst du heute?“, fragt der Koch.",
                "„Nein.“",
                "Sie lacht.",
                "„Ich bleibe hier.“",
                "Er geht.",
            ],
        ),
        (
            "Nous allons la voir. « As-tu bien dormi ? » demande Paul. « Non. » Elle rit.",
            ["Nous allons la voir.", "« As-tu bien dormi ? »", "demande Paul.", "« Non. »", "Elle rit."],
        ),
        (
            "He left. “I am here,” he said. “Go.” She ran. (She did.) It is.",
            ["He left.", "“I am here,” he said.", "“Go.”", "She ran.", "(She did.)", "It is."],
        ),
    ],
)
def test_quotation_marks_of_other_languages(write, raw, content, expected):
    """Closing quotation marks of German, French and English stay with their sentences."""
    found = [detokenize(words) for words in sentences(raw, write(content))]
    assert [line.replace(" ", "") for line in found] == [line.replace(" ", "") for line in expected]


def test_a_german_quotation_ends_with_a_word_and_a_full_stop():
    """The full stop before a closing quotation mark is a word of its own, whichever language writes the mark."""
    for content in ("„Ich komme.“", "»Ich komme.«", "‚Ich komme.‘", "“Ich komme.”"):
        assert LINES.prompt(content)[0][-3:-1] == ["komme", "."]


def stored(tokenizer):
    """Return what a file gives back of a tokenizer."""
    return restore(Tokenizer, json.loads(json.dumps(asdict(tokenizer))), "tokenizer")


def test_json_round_trip(write, raw):
    """A tokenizer restored from JSON is equal."""
    lower = Tokenizer(TextSettings(lowercase=True, encoding="latin-1"), raw.punkt)
    for tokenizer in (PLAIN, LINES, raw, lower):
        assert stored(tokenizer) == tokenizer
    assert raw.punkt.abbreviations == ("dr", "mr")
    before = asdict(raw)
    sentences(raw, write("Mr. Unheard came. Nobody. Dr. Unseen left."))
    assert asdict(raw) == before


def test_every_punkt_parameter_matters(write):
    """Collocations, sentence starters and use of capitals survive the trip and decide where sentences end."""
    base = text.PunktParameters((), (), (), {})
    path = write("It was number 5. Then it ended etc. The end.")

    def count(**learned):
        parameters = text.PunktParameters(**{**base.__dict__, **learned})
        tokenizer = stored(Tokenizer(TextSettings(), parameters))
        return len(sentences(tokenizer, path))

    assert count() == 3
    assert count(collocations=(("##number##", "then"),)) == 2
    assert count(abbreviations=("etc",)) == 2
    assert count(abbreviations=("etc",), sentence_starters=("the",)) == 3
    assert count(abbreviations=("etc",), orthography={"the": 1 << 5}) == 3


@pytest.mark.parametrize(
    "value",
    [
        {},
        None,
        {"settings": {}},
        {"settings": {"color": 1}, "punkt": None},
        {"settings": {}, "punkt": {}},
        {"settings": {}, "punkt": {"abbreviations": [], "collocations": [3]}},
    ],
)
def test_damaged_json(value):
    """Anything that is no tokenizer is an error that names the field."""
    with pytest.raises(Unfit, match=r"^tokenizer.* is .*, where .* must stand$"):
        restore(Tokenizer, value, "tokenizer")


def test_settings_and_parameters_go_together(raw):
    """Raw text needs Punkt's parameters, and text with a sentence on each line has none."""
    for settings, punkt in ((TextSettings(), None), (TextSettings(lines=True), raw.punkt)):
        with pytest.raises(Unfit, match=r"^punkt is .*, where parameters if"):
            Tokenizer(settings, punkt)


def test_learning_is_repeatable(write):
    """What is learned does not depend on the order in which Python keeps sets of words."""
    names = ["Dr", "Mr", "Mrs", "St", "No", "vs", "etc", "Prof", "Gen", "Capt", "Col", "Sen", "Gov", "Jan", "Feb"]
    content = " ".join(
        f"It was {name}. {other} Smith, {name}. and no. {n}. The {other}."
        for n, name in enumerate(names)
        for other in names
    )
    path = write(content)
    program = f"""
        import json
        from dataclasses import asdict
        from rnnlm.sources import Source
        from rnnlm.text import TextSettings, Tokenizer
        print(json.dumps(asdict(Tokenizer.learn([Source.of({path.name!r})], TextSettings()))))
    """
    learned = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", textwrap.dedent(program)]
        learned.add(subprocess.check_output(command, env={**os.environ, "PYTHONHASHSEED": seed}))
    assert len(learned) == 1
    assert b'"mr"' in learned.pop()


def test_learning_stops_in_time(write, monkeypatch):
    """Punkt learns from the start of a corpus only, and reads no further."""
    monkeypatch.setattr(sources, "CHUNK", 300)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 600)
    monkeypatch.setattr(sources, "READ_BLOCK", 300)
    monkeypatch.setattr(text, "LEARNING_LIMIT", 1200)
    read = []
    learned = Tokenizer.learn([write(PROSE * 8 + "\xff\n", "a"), write(b"\xff", "b")], TextSettings(), read.append)
    assert learned.punkt.abbreviations == ("dr", "mr")
    assert 1200 <= sum(read) < 3000


def test_learning_from_odd_texts(write):
    """Punkt learns from next to nothing, and from nothing but punctuation, without complaint."""
    for content in ("", "\n", ".", "a", "...", "1.", "A. B. C.", "!?", ". . .", "a.\n\nb.", "1. 2. 3.\n4."):
        tokenizer = Tokenizer.learn([write(content)], TextSettings())
        if content.strip():
            words = [word for sentence in sentences(tokenizer, write(content)) for word in sentence]
            assert "".join(words) == "".join(content.split())


@pytest.mark.parametrize("seed", range(8))
def test_odd_texts(write, raw, seed):
    """Whatever a file holds, it is cut into words or refused in one sentence."""
    random = Random(seed)
    marks = [
        *".,:;!?'\"`’‘“”„‚«»–—()[]{}<>@#$%&*\\ \n\r\t\x85\u2028\u00a0\ufeff\u202e\ufdd0İ",
        "''",
        "``",
        "n’t",
        "<unk>",
        "a",
    ]
    for _ in range(12):
        content = "".join(random.choices(marks, k=random.choice((1, 9, 400)))).encode()
        if random.random() < 0.5:
            content = gzip.compress(content)[: random.choice((None, -1, 30))]
        if random.random() < 0.3:
            content = random.randbytes(40)
        for settings in (TextSettings(), TextSettings(lines=True), TextSettings(encoding="utf-16")):
            with contextlib.suppress(TextError):
                tokenizer = Tokenizer.learn([write(content)], settings)
                for words in tokenizer.sentences([write(content)]):
                    assert "".join(words).split() == ["".join(words)] != [""]
                    tokenizer.prompt(detokenize(words))
        with contextlib.suppress(TextError):
            raw.prompt(content.decode("utf-8", "surrogateescape"))


def test_slow_text_is_named(write, monkeypatch):
    """When NLTK runs out of its own patience the error names the place and what to do."""
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktTrainer

    def give_up(*_, **__):
        raise TimeoutError("regex timed out")

    path = write(PROSE)
    tokenizer = Tokenizer.learn([path], TextSettings())
    monkeypatch.setattr(NLTKWordTokenizer, "tokenize", give_up)
    monkeypatch.setattr(PunktTrainer, "train", give_up)
    with pytest.raises(TextError, match=r"corpus\.txt, after line 1: NLTK took too long .*--pretokenized"):
        sentences(tokenizer, path)
    with pytest.raises(TextError, match="NLTK took too long"):
        Tokenizer.learn([path], TextSettings())


# Chunks and processes


def test_chunks_depend_on_the_text_alone(write, monkeypatch, raw):
    """The blocks are the same whatever the size of reads, and paragraphs stay whole where they fit."""
    content = "".join(f"It is number {n}. Mr. Jones said so.\n{'And more. ' * (n % 7)}\n\n" for n in range(150))
    path = write(content)
    whole = sentences(raw, path)
    monkeypatch.setattr(sources, "CHUNK", 1000)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 2000)
    for tokenizer in (raw, PLAIN):
        blocks = []
        for block in (10, 999, 100_000):
            monkeypatch.setattr(sources, "READ_BLOCK", block)
            blocks.append(list(tokenizer.blocks([path])))
        assert blocks[0] == blocks[1] == blocks[2]
        assert len(blocks[0]) > 5
    assert sentences(raw, path) == whole


def test_line_numbers_across_chunks(write, monkeypatch, raw):
    """An error far into a text names the right line however it was cut."""
    monkeypatch.setattr(sources, "CHUNK", 1000)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 2000)
    content = "".join(f"It is number {n}.\n" + "\n" * (n % 3) for n in range(400)) + "here <s> is\n"
    line = content.count("\n")
    for block in (64, 4096):
        monkeypatch.setattr(sources, "READ_BLOCK", block)
        for tokenizer in (raw, PLAIN):
            with pytest.raises(TextError, match=f"line {line}: '<s>'"):
                sentences(tokenizer, write(content))


@pytest.fixture
def many_chunks(write, monkeypatch, raw):
    """Make small chunks, let processes pay at once, and return two files' paths and their sentences."""
    monkeypatch.setattr(sources, "CHUNK", 2000)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 4000)
    monkeypatch.setattr(text, "PROCESSES_PAY", 1)
    numbered = "".join(PROSE.replace("garden", f"garden{n}") for n in range(60))
    paths = [write(numbered), write("A last one. It's short.", "last.txt")]
    return paths, sentences(raw, *paths)


def test_any_number_of_processes(many_chunks, raw):
    """The sentences are the same, in the same order, for any number of processes, and none is left behind."""
    paths, alone = many_chunks
    assert len(alone) > 600
    told = []
    assert sentences(raw, *paths, processes=3, progress=told.append) == alone
    assert sum(told) == sum(path.size for path in paths)
    assert sentences(raw, paths[1], processes=2) == alone[-2:]  # more processes than chunks
    assert multiprocessing.active_children() == []


def test_errors_with_processes(many_chunks, raw, write):
    """Errors keep their file and line when others tokenize, and no process outlives them."""
    path = write(PROSE * 30 + "<s>", "bad.txt")
    with pytest.raises(TextError, match=rf"bad\.txt, line {PROSE.count(chr(10)) * 30 + 1}: '<s>'"):
        sentences(raw, path, processes=2)
    with pytest.raises(TextError, match=r"empty\.txt has no words"):
        sentences(raw, many_chunks[0][0], write("", "empty.txt"), processes=2)
    assert multiprocessing.active_children() == []


def test_killed_process(many_chunks, raw):
    """A process that dies, as for want of memory, is an error and not an endless wait."""
    blocks = raw.blocks(many_chunks[0], processes=2)
    next(blocks)
    max(multiprocessing.active_children(), key=lambda worker: worker.pid).kill()
    with pytest.raises(TextError, match=r"corpus\.txt, after line \d+: a process that tokenized it was killed"):
        list(blocks)
    assert multiprocessing.active_children() == []


def test_small_texts_start_no_processes(write, monkeypatch, raw):
    """Where processes would not pay, none is started; pretokenized text must be longer for it."""
    monkeypatch.setattr(workers, "_started", None)
    path = write(PROSE)
    assert sentences(raw, path, processes=4)
    monkeypatch.setattr(text, "PROCESSES_PAY", 1)
    assert sentences(PLAIN, path, processes=4)


def test_pretokenized_text_in_any_number_of_processes(write, monkeypatch):
    """Pretokenized text has the same blocks when processes share the work."""
    monkeypatch.setattr(sources, "CHUNK", 500)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 1000)
    monkeypatch.setattr(text, "PLAIN_PROCESSES_PAY", 1)
    path = write("".join(f" the  word\t{number} \n\n" for number in range(300)))
    alone = list(PLAIN.blocks([path]))
    assert len(alone) > 5
    assert alone == list(PLAIN.blocks([path], processes=2))
    assert "".join(alone) == "".join(f"the word {number}\n" for number in range(300))


# The same words and sentences as NLTK's

PIECES = [
    *"«“‘„`\"'([{<»”’.])}>:,;@#$%&‒—?!*-_/\\|~^+=éıſK٣中，\u00ad\u200b\u0301‹›‚✓Σ3ab",
    *("--", "..", "...", "''", "``", "'s", "’s", "N'T", "n’t", "'ll", "can", "not", "cannot", "Gonna", "wanna", "d'ye"),
    *("more'n", "'tis", "’tis", "<unk>", "<UNK>", "3,000", "10:30", "Dr.", "U.S.", '."', ".)", ".”", '?"', "word", "I"),
]


@pytest.mark.parametrize("seed", range(6))
def test_words_are_cut_one_by_one_as_in_their_sentence(seed):
    """Whatever stands in a sentence, the words of it that are remembered are those of NLTK's rules for all of it."""
    choice = random.Random(seed)
    settings = TextSettings(lines=True, lowercase=seed % 2 == 1)
    quick, whole = text._word_splitter(settings), text._whole_splitter(settings)
    for _ in range(250):
        pieces = choice.sample(PIECES, choice.choice((2, 5, 20)))
        words = ["".join(choice.choices(pieces, k=choice.choice((1, 1, 2, 3, 5)))) for _ in range(choice.randint(1, 8))]
        for sentence in (" ".join(words), " ".join(words) + " "):
            assert quick(sentence) == whole(sentence), sentence


@pytest.mark.parametrize("seed", range(4))
def test_sentences_end_where_punkt_ends_them(seed, monkeypatch):
    """Ends of sentences that are plain to see are those that Punkt finds, whatever it has learned."""
    choice = random.Random(seed)
    words = [
        "the",
        "The",
        "Dr",
        "etc",
        "U.S",
        "I",
        "5",
        "3.5",
        "...",
        ". . .",
        "--",
        "St",
        "é",
        "ΛΟΓΟΣ",
        "x_y",
        "isn’t",
    ]
    lower = [word.lower() for word in words]
    flags = {word: choice.choice((2, 4, 16, 64)) for word in choice.sample(lower, 8)}
    pairs = tuple((choice.choice(lower), choice.choice(lower)) for _ in range(9))
    parameters = text.PunktParameters(tuple(choice.sample(lower, 3)), pairs, tuple(choice.sample(lower, 3)), flags)
    marks = ["", ".", ".", ".", "?", "!", ",", ")", "(", '"', "“", "”", "’", "»", "*", "-", ". ", "\n"]
    texts = [
        "".join(choice.choice(words) + choice.choice(marks) + choice.choice(["", " ", " ", "\n"]) for _ in range(30))
        for _ in range(150)
    ]
    quick = [list(text._sentence_splitter(parameters)(content)) for content in texts]
    monkeypatch.setattr(text, "surely_ends", lambda *_: False)
    assert quick == [list(text._sentence_splitter(parameters)(content)) for content in texts]


def test_other_versions_of_nltk_are_asked_everything(write, raw, monkeypatch):
    """Where NLTK's rules are not those that are known, none of the shorter ways is taken."""
    if text.nltk_version() == "3.10.4":
        assert text._rules_are_known()
    content = PROSE + 'He said, "It is 3,000." (So it is.) And it isn\'t!\n'
    expected = sentences(raw, write(content))
    monkeypatch.setattr(text, "KNOWN_RULES", 0)
    for name in ("simply_cut", "simply_cut_last", "surely_ends"):
        monkeypatch.setattr(text, name, None)
    assert sentences(raw, write(content)) == expected


def test_what_is_remembered_is_bounded(monkeypatch):
    """Words are remembered up to a number of them; then they are forgotten, and found again. Long ones never are."""
    monkeypatch.setattr(shortcuts, "MEMORY", 3)
    remembered = shortcuts.Remembered(str.upper)
    for _ in range(2):
        assert [remembered[word] for word in "abcdefg"] == list("ABCDEFG")
        assert len(remembered) <= 3
    assert remembered["x" * 100] == "X" * 100
    assert "x" * 100 not in remembered


def test_learning_is_punkts(write):
    """What is learned, with types of words remembered, is what Punkt learns."""
    from nltk.tokenize.punkt import PunktTrainer

    content = PROSE * 3 + "He has no. 5... and -3,5 (approx. 1.5) etc.\nIt is U.S. No. It is.\n"
    trainer = PunktTrainer()
    trainer.train(content)
    expected, learned = trainer.get_params(), Tokenizer.learn([write(content)], TextSettings()).punkt
    assert set(learned.abbreviations) == expected.abbrev_types
    assert set(learned.collocations) == expected.collocations
    assert set(learned.sentence_starters) == expected.sent_starters
    assert learned.orthography == dict(expected.ortho_context)


def test_plain_sentences_are_cut_as_nltk_cuts_them():
    """Letters, digits and a last stop take a shorter way to the same words, contractions among them."""
    from nltk.tokenize.destructive import NLTKWordTokenizer

    choice, tokenizer = random.Random(1), Tokenizer(TextSettings(lines=True))
    words = [
        "a",
        "I",
        "cannot",
        "Gonna",
        "wannabe",
        "gimme",
        "gotta",
        "lemme",
        "more",
        "n",
        "tis",
        "twas",
        "dye",
        "7",
        "3x",
    ]
    for _ in range(500):
        sentence = " ".join(choice.choices(words, k=choice.randint(1, 5))) + choice.choice(["", "."])
        assert tokenizer.prompt(sentence) == [NLTKWordTokenizer().tokenize(sentence)], sentence
