"""A hypothesis has the score of its sentence, whatever stands beside it; the best of a list is what the rule says."""

import random
import sys
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pytest

import rnnlm.nbest
import rnnlm.rescoring
from rnnlm.api import Model
from rnnlm.checkpoint import Origin, SavedModel
from rnnlm.errors import ModelError, SettingsError, TextError
from rnnlm.model import CELLS, LanguageModel, ModelSettings, Workspace, initialize
from rnnlm.nbest import NBestFile
from rnnlm.rescoring import Rescored, look, rescore
from rnnlm.scoring import sentence_losses, word_losses
from rnnlm.settings import RescoringSettings, TextSettings
from rnnlm.sources import Source
from rnnlm.text import Tokenizer
from rnnlm.tuning import tune
from rnnlm.vocabulary import Vocabulary

WORDS = ("</s>", "a", "<unk>", "b", "c", "d", "e", "f")
VOCABULARY = Vocabulary(WORDS, [9, 8, 7, 6, 5, 4, 3, 2])
KINDS: list[dict[str, Any]] = [
    *({"cell": cell, "layers": 2, "tied": cell in ("gru", "lstm")} for cell in CELLS),
    {"cutoffs": (2, 5)},
    {"carry_state": True},
]
Write = Callable[..., Source]


def small_model(**kind: Any) -> Model:
    """Return a model for which much depends on what was read."""
    generator = np.random.default_rng(6)
    settings = ModelSettings(words=len(WORDS), hidden=7, **kind)
    model = initialize(settings, np.ones(len(WORDS)), generator, np.float64)
    for parameter in model.parameters.values():
        parameter[...] = generator.normal(0, 1, parameter.shape)
    return Model(SavedModel(model, VOCABULARY, Tokenizer(), cast(Origin, None)))  # scores ask not where it is from


def some_lists(lists: int = 7, seed: int = 3) -> list[list[list[str]]]:
    """Draw lists whose hypotheses differ in places; some are equal, some empty, one is long."""
    choose = random.Random(seed)
    made = []
    for number in range(lists):
        sentence = choose.choices(WORDS[1:], k=choose.randrange(1, 9))
        hypotheses = [sentence, sentence, []] if number % 2 else [sentence * 9]
        for _ in range(choose.randrange(12)):
            edited = list(sentence)
            edited[choose.randrange(len(edited))] = choose.choice(["a", "b", "unheard"])
            hypotheses.append(edited[: choose.randrange(1, len(edited) + 1)])
        made.append(hypotheses)
    return made


def file_of(lists: Sequence[Sequence[Sequence[str]]], write: Write) -> NBestFile:
    """Write lists as Mikolov's program reads them."""
    lines = (" ".join((f"u{number}", *words)) for number, group in enumerate(lists) for words in group)
    return NBestFile.of(write("".join(f"{line}\n" for line in lines), "lists"), "mikolov")


def nats(rescored: Sequence[Rescored]) -> list[float]:
    """Return all scores, in nats."""
    return [score * one.file.format.unit for one in rescored for score in one.scores]


def alone(model: LanguageModel, words: Sequence[str]) -> float:
    """Return the log-probability of one sentence read by itself."""
    ids = np.append(VOCABULARY.encode(words), 0).astype(np.int32)
    return -float(sentence_losses(model, ids, Workspace()).sum())


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("group", [1, 3, 4096])
def test_a_hypothesis_is_scored_as_its_sentence(
    kind: dict[str, Any], group: int, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree gives each what it has alone, whatever is walked together and for whichever network."""
    monkeypatch.setattr(rnnlm.rescoring, "GROUP", group)
    lm, lists = small_model(**kind), some_lists()
    found = list(rescore([file_of(lists, write)], lm, RescoringSettings()))
    expected = [alone(lm.saved.model, words) for hypotheses in lists for words in hypotheses]
    np.testing.assert_allclose(nats(found), expected, rtol=1e-12)
    assert [len(one.hypotheses) for one in found] == [len(hypotheses) for hypotheses in lists]


def test_large_vocabularies_are_asked_in_parts(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many positions meet the output layer at once changes no score."""
    lm, lists = small_model(), some_lists()
    whole = list(rescore([file_of(lists, write)], lm, RescoringSettings()))
    monkeypatch.setattr("rnnlm.scoring.WINDOW_NUMBERS", 3 * len(WORDS))
    monkeypatch.setattr(rnnlm.rescoring, "GROUP_NUMBERS", 20)
    np.testing.assert_allclose(nats(list(rescore([file_of(lists, write)], lm, RescoringSettings()))), nats(whole))


def test_equal_hypotheses_have_equal_scores(write: Write) -> None:
    """Not only nearly: and words that the model does not know are all read as <unk>."""
    group = [["a", "b"], ["a"], ["a", "zyzzyva", "b"], ["a", "b"], ["a", "<unk>", "b"], ["a", "other", "b"]]
    (found,) = rescore([file_of([group], write)], small_model(), RescoringSettings())
    assert found.scores[0] == found.scores[3]
    assert found.scores[2] == found.scores[4] == found.scores[5]
    assert len(set(found.scores)) == 3


def test_words_are_folded_as_the_training_text_was(write: Write) -> None:
    """A model of lower-case text reads a list in lower case."""
    lm = small_model()
    folding = Tokenizer(TextSettings(pretokenized=True, lowercase=True))
    folded = Model(SavedModel(lm.saved.model, VOCABULARY, folding, lm.saved.origin))
    file = file_of([[["A", "B", "x"], ["a", "b", "x"]]], write)
    ((one, other),) = (found.scores for found in rescore([file], folded, RescoringSettings()))
    assert one == other
    assert look(file, folded, set()).unknown == 2
    ((one, other),) = (found.scores for found in rescore([file], lm, RescoringSettings()))
    assert one != other


def test_the_first_of_equal_totals_is_the_best(write: Write) -> None:
    """Where several have the greatest total, it is the one that stands first."""
    lists = [[["a"], ["c"], ["a"], ["c"]], [["c"], ["a"], ["c"]]]
    found = list(rescore([file_of(lists, write)], small_model(), RescoringSettings()))
    for one in found:
        assert one.best == one.scores.index(max(one.scores))
    equal = list(rescore([file_of([[["a"], ["c"], ["d"]]], write)], small_model(), RescoringSettings(weight=0.0)))
    assert equal[0].best == 0


def test_the_word_penalty_is_added_for_each_word(write: Write) -> None:
    """A great one makes the longest hypothesis the best, a low one the shortest."""
    file = file_of([[["a", "b"], ["a", "b", "c", "d"], ["a"], []]], write)
    assert next(rescore([file], small_model(), RescoringSettings(word_penalty=1000.0))).best == 1
    assert next(rescore([file], small_model(), RescoringSettings(word_penalty=-1000.0))).best == 3


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists_are_read_on_from_the_best_before(kind: dict[str, Any], write: Write) -> None:
    """With context, a hypothesis has the score that it has as the end of the text of all the best ones before it."""
    lm, lists = small_model(**{**kind, "carry_state": True}), some_lists(5)
    before: list[int] = []
    for one in rescore([file_of(lists, write)], lm, RescoringSettings(context="previous")):
        for hypothesis, score in zip(one.hypotheses, nats([one]), strict=True):
            ids = np.array([*before, *VOCABULARY.encode(hypothesis.words), 0], np.int32)
            losses = word_losses(lm.saved.model, ids, Workspace())[len(before) :]
            np.testing.assert_allclose(score, -losses.sum(), rtol=1e-6)  # those are float32
        before += [*VOCABULARY.encode(one.hypotheses[one.best].words).tolist(), 0]


class Uniform:
    """A scorer that is no model of ours, and counts what it is asked."""

    lowercase = False

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def log_probs(self, sentences: Sequence[Sequence[str]]) -> list[Any]:
        """Give each word and </s> the probability 1/e."""
        self.asked += map(tuple, sentences)
        return [np.full(len(words) + 1, -1.0) for words in sentences]

    def unknown(self, words: Sequence[str]) -> list[bool]:
        """Know every word."""
        return [False] * len(words)


def test_other_scorers_are_asked_once_for_each_different_hypothesis(write: Write) -> None:
    """A mixture gives its own log-probabilities; it has no state to read on from."""
    scorer, lists = Uniform(), some_lists()
    file = file_of(lists, write)
    found = list(rescore([file], scorer, RescoringSettings()))
    np.testing.assert_allclose(nats(found), [-len(words) - 1 for group in lists for words in group])
    assert len(scorer.asked) == len(set(scorer.asked))
    assert look(file, scorer, set()).unknown == 0


def test_what_carries_no_state_reads_no_list_on(write: Write) -> None:
    """A mixture, or a model that begins each sentence anew, is refused, and the way out named."""
    file = file_of(some_lists(), write)
    for lm, told in ((Uniform(), "a mixture"), (small_model(), "begin each sentence anew")):
        with pytest.raises(SettingsError, match=f"{told}.*--carry-state"):
            list(rescore([file], lm, RescoringSettings(context="previous")))


def test_what_is_seen_before_scoring_is_counted(write: Write) -> None:
    """Lists, hypotheses, words and unknown words are those of the file."""
    found = look(file_of([[["a", "b"], ["x", "<unk>", "c"]], [[]]], write), small_model(), set())
    assert (found.lists, found.hypotheses, found.words, found.unknown) == (2, 3, 5, 2)


def test_small_files_are_parsed_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists read again are the same; those of a small file are the very ones, and of a large one none is kept."""
    for kept, the_same in ((10_000, True), (100, False)):
        monkeypatch.setattr(rnnlm.nbest, "KEPT", kept)
        file = file_of(some_lists(), write)
        first, again = list(file.lists()), list(file.lists())
        assert first == again
        assert [one is other for one, other in zip(first, again, strict=True)] == [the_same] * len(first)


def test_a_model_that_has_left_the_numbers_is_told(write: Write) -> None:
    """NaN is no score."""
    lm = small_model(carry_state=True)
    lm.saved.model.parameters["c"][...] = np.nan
    for context in ("none", "previous"):
        with pytest.raises(ModelError, match="no longer numbers"):
            list(rescore([file_of([[["a"]]], write)], lm, RescoringSettings(context=context)))


def moses_of(lists: Sequence[Sequence[tuple[str, float]]], write: Write) -> NBestFile:
    """Write hypotheses with totals as Moses does."""
    rows = ((number, *row) for number, group in enumerate(lists) for row in group)
    lines = (f"{number} ||| {words} ||| TM= 1 ||| {total}\n" for number, words, total in rows)
    return NBestFile.of(write("".join(lines), "moses"))


def test_tuned_weights_make_errors_fewer(write: Write) -> None:
    """The weights told make as many word errors as are told, which are no more than before."""
    pytest.importorskip("rapidfuzz")
    lm = small_model()
    sentences = [["a", "b"], ["c"], ["a", "a", "f"], ["d", "e", "b", "a"]]
    lists = [
        [(" ".join([*words[:-1], "e"]), -1.0), (" ".join(words), -1.5), ("c c c c c", -1.1)] for words in sentences
    ]
    file = moses_of(lists, write)
    source = write("".join(f"{' '.join(words)}\n" for words in sentences), "references")
    found = tune([file], lm, source)
    assert found.words == 10
    assert found.first == 4
    assert found.fewest == 0
    assert found.tuned <= found.first
    settings = RescoringSettings(
        weight=found.weights.model, old_weight=found.weights.old, word_penalty=found.weights.penalty
    )
    chosen = [one.hypotheses[one.best].words for one in rescore([file], lm, settings)]
    levenshtein = pytest.importorskip("rapidfuzz.distance").Levenshtein.distance
    assert found.tuned == sum(map(levenshtein, sentences, chosen))
    assert found.rate(found.first) == pytest.approx(0.4)


def test_a_score_that_knows_the_truth_is_found(write: Write) -> None:
    """Where the model is right and the list's own total wrong, the model's weight leaves no error."""
    pytest.importorskip("rapidfuzz")
    lists = [[("a b c", 0.0), ("a b", -7.5)], [("d e f", 0.0), ("d", -15.0)]]  # each word costs 1 nat
    found = tune([moses_of(lists, write)], Uniform(), write("a b\nd\n", "references"))
    assert (found.first, found.tuned) == (3, 0)
    assert found.weights.model * 1 - found.weights.penalty > 7.5


def test_steps_find_what_lies_between_the_grids_weights(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word must cost between 0.3 and 0.4, which no weights of the grid give: the steps from its best find it."""
    pytest.importorskip("rapidfuzz")
    lists = [[("a b c", 0.0), ("a b", -0.3)]] * 3 + [[("d e f", 0.0), ("d e", -cost)] for cost in (0.4, 0.6, 1.5, 3.0)]
    file, source = moses_of(lists, write), write("a b\n" * 3 + "d e f\n" * 4, "references")
    found = tune([file], Uniform(), source)
    assert (found.first, found.tuned, found.fewest) == (3, 0, 0)
    assert 0.3 < found.weights.model - found.weights.penalty < 0.4
    monkeypatch.setattr("rnnlm.tuning.LEAST_STEP", 1)  # no step
    assert tune([file], Uniform(), source).tuned == 1


def test_references_must_be_there(write: Write) -> None:
    """A list without a reference, an ID that is there twice, and references without words are refused."""
    pytest.importorskip("rapidfuzz")
    file = moses_of([[("a", 0.0)], [("b", 0.0)]], write)
    with pytest.raises(TextError, match="lack line 2"):
        tune([file], Uniform(), write("a\n", "references"))
    with pytest.raises(TextError, match="no words"):
        tune([file], Uniform(), write("\n\n", "references"))
    plain = file_of([[["a"]]], write)
    with pytest.raises(TextError, match="line 2: the ID 'u0' is there twice"):
        tune([plain], Uniform(), write("u0 a\nu0 b\n", "references"))
    with pytest.raises(TextError, match="lack a line `u0 WORDS` for that list"):
        tune([plain], Uniform(), write("u1 a\n", "references"))


def test_a_missing_package_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rapidfuzz, a sentence says what to install."""
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(SettingsError, match=r"pip install 'rnnlm-numpy\[rescore\]'"):
        tune([file_of([[["a"]]], write)], Uniform(), write("u0 a\n", "references"))
