"""Words shaded by their surprisal, in HTML: in notebooks, and on the page that `rnnlm report` writes.

Shades differ in lightness, so that they are told apart without seeing color; each word says its bits when pointed at,
and to who has the page read aloud.
"""

from __future__ import annotations

import bisect

from rnnlm.sources import printable
from rnnlm.vocabulary import SENTENCE_END

EDGES = (1, 2, 4, 6, 8, 11, 14)  # bits at which a darker shade begins
# Of each shade, from sure to surprising, the background and the text on it: on light paper, and on dark.
LIGHT = (
    *(("#fff5eb", "#000"), ("#fee6ce", "#000"), ("#fdd0a2", "#000"), ("#fdae6b", "#000")),
    *(("#fd8d3c", "#000"), ("#f16913", "#000"), ("#d94801", "#000"), ("#7f2704", "#fff")),
)
DARK = (
    *(("#241c17", "#fff"), ("#3a2515", "#fff"), ("#552f10", "#fff"), ("#793d0b", "#fff")),
    *(("#a04d08", "#fff"), ("#cc650f", "#000"), ("#ee8a2c", "#000"), ("#ffc27a", "#000")),
)
SHOWN = 2000  # words that a notebook shows
LONGEST = 100  # characters of a word that are shown: a text may have one of millions


def shade(bits: float) -> int:
    """Return the number of a word's shade, from 0."""
    return bisect.bisect_right(EDGES, bits)


def clipped(word: str) -> str:
    """Return a word, or its beginning where it is very long."""
    return word if len(word) <= LONGEST else f"{word[: LONGEST - 1]}…"


class Surprisals(list[tuple[str, float]]):
    """Words of a text, each with its surprisal in bits: a list of pairs, which a notebook shows as shaded words."""

    def _repr_html_(self) -> str:
        """Return the words in HTML, a line for each sentence; none of them can be more than text there."""
        import html  # which brings along its table of entities

        parts = []
        for word, bits in self[:SHOWN]:
            back, front = LIGHT[shade(bits)]
            style = f"background:{back};color:{front};padding:0 .2em;border-radius:.2em"
            shown = html.escape(printable(clipped(word)))
            parts.append(f'<span style="{style}" title="{bits:.2f} bits">{shown}</span>')
            parts.append("<br>" if word == SENTENCE_END else " ")
        if len(self) > SHOWN:
            parts.append(f"and {len(self) - SHOWN:,} more")
        return f'<div dir="auto" style="line-height:1.8">{"".join(parts)}</div>'
