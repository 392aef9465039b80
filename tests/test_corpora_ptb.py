"""The Penn Treebank, which cannot be part of the project: its counts are known from fifteen years of papers."""

import os
from pathlib import Path

import pytest

from rnnlm.batches import windows
from rnnlm.corpus import encode, prepare
from rnnlm.sources import Source
from rnnlm.text import TextSettings
from rnnlm.vocabulary import SENTENCE_END, UNKNOWN, VocabularySettings

PTB = Path(os.environ.get("RNNLM_PTB", ""))

pytestmark = pytest.mark.skipif(
    not (os.environ.get("RNNLM_PTB") and (PTB / "ptb.train.txt").is_file()),
    reason="set RNNLM_PTB to the folder that holds ptb.train.txt and ptb.valid.txt",
)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return the training part, encoded as everyone encodes it."""
    folder = tmp_path_factory.mktemp("ptb")
    settings = TextSettings(pretokenized=True)
    return folder, prepare([Source.of(PTB / "ptb.train.txt")], folder, settings, VocabularySettings(vocab_size=10_000))


def test_training_part(prepared):
    """The training part has the counts that every paper has."""
    train, vocabulary = prepared[1].train, prepared[1].vocabulary
    assert (train.sentences, train.words, train.predictions, train.types) == (42_068, 887_521, 929_589, 9_999)
    assert len(vocabulary) == 10_000
    assert vocabulary.words[:6] == [SENTENCE_END, "the", UNKNOWN, "N", "of", "to"]
    assert vocabulary.counts[:3].tolist() == [42_068, 50_770, 45_020]
    assert train.unknown == 45_020


def test_validation_part(prepared):
    """The validation part gives 73,760 predictions, all of them in an epoch of windows."""
    folder, ready = prepared
    valid = encode([Source.of(PTB / "ptb.valid.txt")], folder, ready.tokenizer, ready.vocabulary)
    assert (valid.sentences, valid.words, valid.predictions) == (3_370, 70_390, 73_760)
    assert sum(int((piece.targets >= 0).sum()) for piece in windows(valid, 20, 35)) == 73_760
