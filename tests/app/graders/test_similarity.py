"""Similarity metrics agree with the public libraries called directly, in many scripts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz, utils
from rouge_score.rouge_scorer import RougeScorer

from app.graders.similarity import Metric, similarity, tokens

METRICS: tuple[Metric, ...] = (
    "fuzzy_match", "bleu", "gleu", "meteor",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
)  # fmt: skip
PAIRS = [
    ("The quick brown fox jumps over the lazy dog", "The quick brown dog jumps on the log."),
    (
        "It is a guide to action which ensures that the military",
        "It is a guide to action that ensures the military",
    ),
    ("identical words here are five", "identical words here are five"),
    ("completely different", "nothing alike whatsoever"),
    ("one", "one two three four"),
    ("two words", "two words"),
    ("running runs ran", "run runner running"),
    ("Order #4711-B", "order 4711 b"),
    ("", "something"),
    ("something", ""),
    ("", ""),
    ("!!!", "..."),
    ("Müller fährt nach Köln", "Mueller faehrt nach Köln"),
    ("Привет, мир", "привет мир"),
    ("我爱北京天安门", "我爱上海"),
    ("naïve café 🎉", "naive cafe 🎉"),
    ("שלום עולם", "שלום"),
    ("a\nb\tc  d", "a b c d"),
    ("the the the the the", "the cat sat on the mat"),
]


class _NoSynonyms:
    def synsets(self, word: str) -> list[object]:
        return []


def _reference_value(metric: str, text: str, reference: str) -> float:
    if metric == "fuzzy_match":
        return fuzz.WRatio(text, reference, processor=utils.default_process) / 100
    if metric.startswith("rouge"):
        kind = "rougeL" if metric == "rouge_l" else metric.replace("_", "")
        return float(RougeScorer([kind]).score(reference, text)[kind].fmeasure)
    ours, theirs = tokens(text), tokens(reference)
    if metric == "gleu":
        return float(sentence_gleu([theirs], ours))
    if metric == "meteor":
        return float(single_meteor_score(theirs, ours, wordnet=_NoSynonyms()))
    if not ours or not theirs:
        return 0.0
    smooth = SmoothingFunction().method3
    return float(sentence_bleu([theirs], ours, smoothing_function=smooth, auto_reweigh=True))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("text", "reference"), PAIRS)
def test_agrees_with_the_library(metric: Metric, text: str, reference: str) -> None:
    value = similarity(metric, text, reference)
    assert value == pytest.approx(_reference_value(metric, text, reference), abs=1e-12)
    assert 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        ("fuzzy_match", "Order 4711", "order 4711!", 1.0),
        ("rouge_1", "a b c d", "a b x y", 0.5),
        ("rouge_2", "a b c", "a b d", 0.5),
        ("rouge_l", "a x b y", "a b", 2 / 3),
        ("gleu", "a b", "a b", 1.0),
        # Two of three unigrams and one of two bigrams match; no trigram, so 1/2 (k = 1) of the only one.
        ("bleu", "a b x", "a b c", (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)),
        ("bleu", "a b", "a b", 1.0),
        # Precision 1, recall 1/2: F = .5 / (.9 + .05); one chunk of one match costs half.
        ("meteor", "a", "a b", 0.5 * 0.5 / (0.9 * 1 + 0.1 * 0.5)),
        # `runs` and `running` share a stem, and count as much as the word itself.
        ("meteor", "runs", "running", 0.5),
        ("meteor", "car", "automobile", 0.0),
    ],
)
def test_hand_worked(metric: Metric, text: str, reference: str, value: float) -> None:
    assert similarity(metric, text, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("Hello, world!", ["Hello", ",", "world", "!"]),
        ("我爱 GPU2", ["我", "爱", "GPU2"]),
        ("cafe\u0301", ["café"]),
        ("snake_case x", ["snake_case", "x"]),
        (" \n", []),
    ],
)
def test_tokens(text: str, split: list[str]) -> None:
    assert tokens(text) == split


@pytest.mark.parametrize("metric", ["bleu", "gleu", "meteor"])
def test_composed_and_decomposed_letters_are_the_same_word(metric: Metric) -> None:
    whole = similarity(metric, "café noir", "café noir")
    assert similarity(metric, "cafe\u0301 noir", "café noir") == whole > 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_hostile_lengths_are_graded(metric: Metric) -> None:
    # Stemmers that look back along runs of y, and rouge-score's own table, which would need gigabytes here.
    assert 0.0 <= similarity(metric, "y" * 20_000, "y" * 19_999) <= 1.0
    assert 0.0 < similarity(metric, "to be or not " * 2_000, "to be or not " * 2_001) <= 1.0


@settings(deadline=None)
@given(st.sampled_from(METRICS), st.text(max_size=40), st.text(max_size=40))
def test_any_two_texts_have_a_similarity_between_0_and_1(metric: Metric, text: str, reference: str) -> None:
    assert 0.0 <= similarity(metric, text, reference) <= 1.0
