"""Words back to readable text."""

import re
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
_OPENING = set("([{`“‘„$#")  # no blank after these
_STOPS = set(".,;:!?")
_CLOSING = _STOPS | set(")]}%”’")  # no blank before these
_LOW = {"“": "„", "‘": "‚", "”": "„", "’": "‚"}  # what opened the quotation, where one of these closes a German one
_SUFFIXES = {"'s", "'m", "'d", "'ll", "'re", "'ve", "n't"}
_CURLY_SUFFIXES = {"s", "m", "d", "ll", "re", "ve", "t"}
_SHORTENED = re.compile("em|tis|twas|twere|twill|twould|twixt|gainst|til|cause|bout|[0-9]0s", re.IGNORECASE)
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
_MAILBOX, _HOST = re.compile(r"[\w.+-]*\w"), re.compile(r"\w[\w-]*(\.[\w-]+)+\.?")
_ESCAPED_BYTE = re.compile("[0-9A-Fa-f]{2}")  # after a percent sign within a link


def detokenize(tokens: Sequence[str]) -> str:
    """Return words as readable text.

    Contractions and punctuation are joined to their words, quotation marks are straight where they were, the Penn
    Treebank's brackets are brackets, links and names are whole; nothing is capitalized. Cutting the text again gives
    the same words, with rare exceptions where a quotation mark's side cannot be told.
    """
    joiner, pieces = _Joiner(tokens), []
    joined = True  # nothing stands between the text so far and the next word
    for index, token in enumerate(tokens):
        left, right = joiner.joins(index)
        if not (joined or left):
            pieces.append(" ")
        pieces.append(_shown(token))
        joined = right
    return "".join(pieces)


def _shown(token: str) -> str:
    return _SHOWN.get(token.upper()) or token.replace("\\/", "/").replace("\\*", "*")


class _Joiner:
    """Tells which words join their neighbors, asked in order, and remembers what is open: quotation marks, a link."""

    def __init__(self, tokens: Sequence[str]) -> None:
        self.tokens = tokens
        self.open: set[str] = set()  # quotation marks: straight and low ones
        self.link = False  # the word before joins the next, or may, as part of a link
        self.last_single = max((index for index, token in enumerate(tokens) if token == "'"), default=-1)

    def joins(self, index: int) -> tuple[bool, bool]:
        """Tell whether a word joins what precedes it without a blank, and whether it so joins what follows."""
        token = self.tokens[index]
        before = self.tokens[index - 1] if index else ""
        after = self.tokens[index + 1] if index + 1 < len(self.tokens) else ""
        if self._in_link(before, token, after):
            return True, True
        if token in ("``", "''"):
            return token == "''", token == "``"
        if token in ('"', "'"):
            return self._straight_quote_joins(index, before, after)
        if token == "’" and after.lower() in _CURLY_SUFFIXES:
            return True, True
        if token == "’" and _SHORTENED.fullmatch(after):
            return False, True
        if token in ("—", "―"):
            return True, after not in ("``", '"')
        if token in ("–", "‒"):
            between_numbers = before[-1:].isdigit() and after[:1].isdigit()
            return between_numbers, between_numbers
        straight = token.lower().replace("’", "'")
        if straight in _SUFFIXES:
            return before[-1:].isalnum() or before[-1:] in (".", ">", "”"), False
        if (before.lower(), straight) in _PAIRS:
            return True, False
        if token == "@":
            mail = bool(_MAILBOX.fullmatch(before) and _HOST.fullmatch(after))
            return mail, mail or after[:1].isalpha() or after[:1] == "_"
        return self._mark_joins(token, after)

    def _in_link(self, before: str, token: str, after: str) -> bool:
        """Tell whether a word stands between two parts of a link, such as http://example.org/a?b=c."""
        starts = token == ":" and before.isalpha() and after.startswith("//")
        within = self.link and (
            (token in ("?", "&") and "=" in after)
            or (token == "#" and after[:1].isalnum())
            or (token == "%" and _ESCAPED_BYTE.match(after) is not None)
            or (token == "@" and before.endswith("/"))
        )
        joining = starts or within
        self.link = joining or (self.link and before in (":", "?", "&", "#", "%", "@"))
        return joining

    def _mark_joins(self, token: str, after: str) -> tuple[bool, bool]:
        """Do the same for brackets, stops and quotation marks that are not straight."""
        if token == "„" or (token.startswith("‚") and len(token) > 1):
            self.open.add(token[0])
        elif token in _LOW:
            ends = token in "“‘" and (not after or after in _STOPS)  # what it would open is not there
            if _LOW[token] in self.open or ends:
                self.open.discard(_LOW[token])
                return True, False
        shown = _shown(token)
        return shown in _CLOSING or not shown.strip("."), shown in _OPENING

    def _straight_quote_joins(self, index: int, before: str, after: str) -> tuple[bool, bool]:
        """Do the same for a mark that may open or close.

        A single one may also be an apostrophe: of a plural (the dogs' bones) or of a word cut short ('twas, o' the).
        """
        token = self.tokens[index]
        if token in self.open:
            self.open.discard(token)
            return before != "'", False  # two single marks side by side would be read as a double one
        if token == "'":
            if _SHORTENED.fullmatch(after):
                return False, True
            after_word = before[-1:].isalnum()
            if after_word and (before.endswith("s") or index == self.last_single):
                return True, False
        self.open.add(token)
        return False, after != token
