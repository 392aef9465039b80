"""Sources of text, apart from what the rows of docs/formats.md say of them, which test_text.py holds."""

import os
import subprocess

import pytest

from rnnlm import sources
from rnnlm.sources import Source, plain_characters, spooled


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_are_spooled(tmp_path):
    """A pipe, such as a shell's process substitution, is kept like standard input."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"echo one two > '{pipe}'"]), spooled([pipe]) as paths:
        assert paths[0].name == str(pipe)
        for _ in range(2):
            assert [chunk.text for chunk in paths[0].chunks("utf-8")] == ["one two\n"]


def test_sources_compare_by_value(tmp_path):
    """A source is a name and a path."""
    assert Source("a", tmp_path) == Source("a", tmp_path)


def test_a_source_is_measured_once(tmp_path, monkeypatch):
    """The size of a source is asked of the system once, however often it is wanted."""
    path = tmp_path / "text"
    path.write_text("one two")
    source = Source.of(path)
    assert source.size == 7
    path.write_text("one two three")
    assert source.size == 7


@pytest.mark.parametrize(("lines", "expected"), [(True, "a b\n" * 3), (False, "a b\n" * 4 + "\n")])
def test_chunks_end_with_lines_or_paragraphs(tmp_path, monkeypatch, lines, expected):
    """A chunk ends at the first end of a line, or of a paragraph, after so many characters."""
    monkeypatch.setattr(sources, "CHUNK", 9)
    monkeypatch.setattr(sources, "CHUNK_LIMIT", 20)
    path = tmp_path / "text"
    path.write_text(("a b\n" * 4 + "\n") * 3)
    chunks = list(Source.of(path).chunks("utf-8", lines))
    assert chunks[0].text == expected
    assert "".join(chunk.text for chunk in chunks) == path.read_text()
    assert [chunk.last for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert sum(chunk.read for chunk in chunks) == path.stat().st_size


def test_plain_characters():
    """Control characters become blanks; line feeds stay."""
    assert plain_characters("a\r\nb\tc\x85d\ufdd0") == "a \nb c d "
