"""Shorter ways to what NLTK makes of plain words and plain ends of sentences, and a memory of what it made of others.

NLTK's word tokenizer is some twenty regular expressions, each applied to the whole sentence. Most of them look for one
character, some for two or three that stand together, and a few for the sentence's end; none changes what stands beyond
a blank. So a word that has none of the marks that act together is cut at each of its marks, whatever is around it.
Punkt asks of each place where a sentence may end; at most of them the answer does not depend on what it has learned.

NLTK is not needed here. Where a shortcut does not lead there, NLTK is asked.
"""

import re
from collections.abc import Callable, Collection
from typing import TypeVar

MEMORY = 2**16  # strings that are remembered at once
SHORT = 64  # longer ones are not: they seldom come again

Made = TypeVar("Made")

CLOSING_WORD = re.compile("[\\])}>\"'»”’`]+")
"""Matches a word through which NLTK looks back for the last stop of a sentence."""

_CUT_IN_TWO = re.compile(r"\b(?:cannot|gimme|gonna|gotta|lemme|wanna)\b", re.IGNORECASE)  # without an apostrophe
_OPENING_AT_END = re.compile("[“‘«‹]$")  # a stop before it may be a word
_CLOSING_MARKS = ')]}>"»”'  # what may follow the last stop

# Each of these marks is a word; of commas and colons, those that no digit follows.
_MARKS = '\\]\\[(){}>;@#$%&?!*"«“‘„»”\u2012-\u2015'
_PIECES = re.compile(f"[{_MARKS}]|[,:](?![0-9])|(?:[^{_MARKS},:]|[,:](?=[0-9]))+")

# Words of which this is so: not those with dashes, stops, commas or colons in a row, with quotation marks but the
# straight one, which must not seem to open, with apostrophes, or with <, as <unk> remains one word.
_SIMPLE = re.compile(r"""(?!.*(?:--|\.\.))(?:[^ <'’`",:]|[,:](?![,:]|[^\0-\x7f])|(?<=[^(\[{«“‘„])")+""")

_END_OF_WORD = r"[])};\"*:@'({\[‘’“”«»?!]"  # for Punkt
_WORD_AND_STOP = re.compile(rf"([^\W\d_]{{2,}})\.(?=\s+[^\s.]|{_END_OF_WORD})")  # no initial, no ellipsis, no number
_MARK_OF_END = re.compile(rf"[?!](?=\s+\S|{_END_OF_WORD})")


class Remembered(dict[str, Made]):
    """What a function makes of strings: of each short one it is asked once, until there are too many of them."""

    def __init__(self, function: Callable[[str], Made]) -> None:
        super().__init__()
        self._function = function

    def __missing__(self, text: str) -> Made:
        made = self._function(text)
        if len(text) <= SHORT:
            if len(self) >= MEMORY:
                self.clear()
            self[text] = made
        return made


def simply_cut(word: str) -> str:
    """Cut a word, with spaces, as NLTK does if another word follows; "" where that is not so simple."""
    if word.isascii() and word.isalnum():
        return "" if _CUT_IN_TWO.fullmatch(word) else word
    opening, rest = ("`` ", word[1:]) if word[:1] == '"' else ("", word)
    if not _SIMPLE.fullmatch(rest) or _CUT_IN_TWO.search(rest):
        return ""
    return opening + " ".join(_PIECES.findall(rest)).replace('"', "''")


def simply_cut_last(word: str) -> str:
    """Cut the last word of a sentence in the same way, and its stop from it."""
    stopped = word.rstrip(_CLOSING_MARKS)
    if stopped[-1:] != ".":
        return "" if _OPENING_AT_END.search(word) else simply_cut(word)
    cut = "" if ".." in stopped else simply_cut(stopped[:-1])
    return cut and " ".join((cut, ".", *word[len(stopped) :])).replace('"', "''")


def surely_ends(text: str, doubtful: Collection[str]) -> bool:
    """Say whether Punkt surely finds a sentence's end in a text of which it is asked that.

    `doubtful` are the words, in lower case, after which a stop may be something else for what Punkt has learned.
    """
    word = _WORD_AND_STOP.match(text)
    return (word is not None and word[1].lower() not in doubtful) or _MARK_OF_END.search(text) is not None
