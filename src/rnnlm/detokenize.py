"""Words back to readable text."""

from collections.abc import Sequence

_SHOWN = {
    "``": '"',
    "''": '"',
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
}
_OPENING = set("([{`“‘„«$#")  # no blank after these
_CLOSING = set(")]},.;:!?%”’»")  # no blank before these
_SUFFIXES = {"'s", "'m", "'d", "'ll", "'re", "'ve", "n't"}
_CURLY_SUFFIXES = {"s", "m", "d", "ll", "re", "ve", "t"}
_SHORTENED = {"em", "tis", "twas", "twere", "twill", "twould", "twixt", "gainst", "til", "cause", "bout"}
_PAIRS = {
    ("can", "not"),
    ("d", "'ye"),
    ("gim", "me"),
    ("gon", "na"),
    ("got", "ta"),
    ("lem", "me"),
    ("more", "'n"),
    ("wan", "na"),
    ("'t", "is"),
    ("'t", "was"),
}


def detokenize(tokens: Sequence[str]) -> str:
    """Return words as readable text.

    Contractions and punctuation are joined to their words, quotation marks are straight, the Penn Treebank's
    brackets are brackets; nothing is capitalized. Cutting the text again gives the same words, with rare
    exceptions where a quotation mark's side cannot be told.
    """
    text = ""
    quoted: set[str] = set()  # the straight quotation marks now open
    joined = True  # nothing stands between the text so far and the next word
    for index, token in enumerate(tokens):
        left, right = _joins(tokens, index, quoted)
        shown = _shown(token)
        text += shown if joined or left else f" {shown}"
        joined = right
    return text


def _shown(token: str) -> str:
    return _SHOWN.get(token.upper()) or token.replace("\\/", "/").replace("\\*", "*")


def _joins(tokens: Sequence[str], index: int, quoted: set[str]) -> tuple[bool, bool]:
    """Tell whether a word joins what precedes it without a blank, and whether it so joins what follows."""
    token = tokens[index]
    before = tokens[index - 1] if index else ""
    after = tokens[index + 1] if index + 1 < len(tokens) else ""
    if token in ("``", "''"):
        return token == "''", token == "``"
    if token in ('"', "'"):
        return _straight_quote_joins(tokens, index, quoted)
    if token in ("—", "―"):
        return True, after not in ("``", '"')
    if token in ("–", "‒"):
        between_numbers = before[-1:].isdigit() and after[:1].isdigit()
        return between_numbers, between_numbers
    if token == "’":
        return True, after.lower() in _CURLY_SUFFIXES
    if token.lower() in _SUFFIXES:
        return before[-1:].isalnum() or before[-1:] in (".", ">"), False
    if (before.lower(), token.lower()) in _PAIRS:
        return True, False
    shown = _shown(token)
    return shown in _CLOSING or not shown.strip("."), shown in _OPENING


def _straight_quote_joins(tokens: Sequence[str], index: int, quoted: set[str]) -> tuple[bool, bool]:
    """Do the same for a mark that may open or close; `quoted` holds the marks that are open and is brought up to date.

    A single one may also be an apostrophe: of a plural (the dogs' bones) or of a word cut short ('twas, o' the).
    """
    token, before, rest = tokens[index], tokens[index - 1] if index else "", tokens[index + 1 :]
    if token in quoted:
        quoted.discard(token)
        return before != "'", False  # two single marks side by side would be read as a double one
    if token == "'":
        if rest and rest[0].lower() in _SHORTENED:
            return False, True
        after_word = before[-1:].isalnum()
        if after_word and (before.endswith("s") or token not in rest):
            return True, False
    quoted.add(token)
    return False, not rest or rest[0] != token
