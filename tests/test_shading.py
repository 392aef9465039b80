"""Words shaded by their surprisal: what anybody can read, and what no text can break."""

import re
from html.parser import HTMLParser

import pytest

import test_cli
from rnnlm import load
from rnnlm.shading import DARK, EDGES, LIGHT, SHOWN, Surprisals, shade

run, corpus, model = test_cli.run, test_cli.corpus, test_cli.model  # fixtures


def light(color):
    """Return the relative luminance of a color, as WCAG defines it."""
    digits = color[1:] if len(color) == 7 else "".join(2 * digit for digit in color[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_every_shade_can_be_read(palette):
    """Text has the contrast of 4.5 that WCAG asks for, and shades go one way in lightness, for who sees no color."""
    assert len(palette) == len(EDGES) + 1
    backs = [light(back) for back, _ in palette]
    assert backs == sorted(backs, reverse=palette is LIGHT)
    for back, front in palette:
        low, high = sorted((light(back), light(front)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_shades_grow_with_surprisal():
    """A sure word has the first shade, one that cost infinitely much the last."""
    assert [shade(bits) for bits in (0, 0.99, 1, 13.9, 14, float("inf"))] == [0, 0, 1, 6, 7, 7]


def test_surprisals_of_a_model_are_a_list_that_notebooks_shade(model):
    """They stay a list of pairs; in HTML each word has its bits."""
    found = load(model).surprisals("the cat sleeps .")
    assert isinstance(found, list)
    assert found == list(found)
    assert repr(found) == repr(list(found))
    assert [word for word, _ in found] == ["the", "cat", "sleeps", ".", "</s>"]
    shown = found._repr_html_()
    assert re.findall(r'title="([\d.]+) bits"', shown) == [f"{bits:.2f}" for _, bits in found]


def test_a_word_is_text_whatever_it_holds():
    """Markup in a word, quotation marks and what would turn a line around are shown, and do nothing."""
    words = ["<script>alert(1)</script>", '" onmouseover="x', "&amp;", "\u202e", "</s>"]
    tags, texts = [], []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.append(tag)
            assert {name for name, _ in attrs} <= {"style", "title", "dir"}

        def handle_data(self, data):
            texts.append(data)

    Reader().feed(Surprisals((word, 1.0) for word in words)._repr_html_())
    assert set(tags) == {"div", "span", "br"}
    assert [text for text in texts if text.strip()] == [*words[:3], "\ufffd", "</s>"]


def test_a_long_text_is_cut():
    """A notebook is not filled with more words than anybody reads, nor with one of a million characters."""
    shown = Surprisals([("a", 1.0)] * (SHOWN + 1234))._repr_html_()
    assert shown.count("<span") == SHOWN
    assert "and 1,234 more" in shown
    assert len(Surprisals([("a" * 10**6, 1.0)])._repr_html_()) < 500
    assert Surprisals()._repr_html_().count("<span") == 0
