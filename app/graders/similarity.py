"""text_similarity: how alike two texts are, 0 to 1. Each metric is a public library's, options stated here.

fuzzy_match  rapidfuzz `WRatio` / 100 with `default_process` (lower case, marks to spaces), passed explicitly
rouge_1..5   rouge-score `fmeasure`, its own tokenizer (lower case, a-z and 0-9 only), no stemmer
rouge_l      the same; rapidfuzz counts the longest common subsequence (rouge-score's table is quadratic)
bleu, gleu   nltk sentence scores on `tokens()`; bleu with smoothing method 3 (NIST) and `auto_reweigh`
meteor       nltk with exact and stem matching and no synonyms: WordNet cannot be fetched at run time

nltk and rouge-score are imported on first use: the web process starts without them. `cosine` is not here.
"""

import re
from functools import lru_cache
from typing import Any, Literal
from unicodedata import normalize

from rapidfuzz import fuzz, utils
from rapidfuzz.distance import LCSseq

Metric = Literal[
    "fuzzy_match", "bleu", "gleu", "meteor",
    "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l",
]  # fmt: skip

# Scripts written without spaces: one character is one token, or a whole sentence would be a single word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")


def similarity(metric: Metric, text: str, reference: str) -> float:
    """Return how alike `text` (the input) is to `reference`, 0 to 1; two empty texts score 0."""
    match metric:
        case "fuzzy_match":
            score = fuzz.WRatio(text, reference, processor=utils.default_process) / 100
        case "bleu":
            score = _bleu(tokens(text), tokens(reference))
        case "gleu":
            score = _gleu(tokens(text), tokens(reference))
        case "meteor":
            score = _meteor(tokens(text), tokens(reference))
        case "rouge_l":
            score = _rouge_l(text, reference)
        case _:
            score = _rouge_n(metric.removeprefix("rouge_"), text, reference)
    return min(max(float(score), 0.0), 1.0)


def tokens(text: str) -> list[str]:
    """Split into words, single marks and single characters of scripts without spaces, in normal form C.

    Case is kept: bleu and gleu tell `May` from `may`, meteor lowers both itself.
    """
    return _TOKEN.findall(normalize("NFC", text))


def _bleu(text: list[str], reference: list[str]) -> float:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    if not text or not reference:
        return 0.0
    smooth = SmoothingFunction().method3
    return float(sentence_bleu([reference], text, smoothing_function=smooth, auto_reweigh=True))


def _gleu(text: list[str], reference: list[str]) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([reference], text))


def _meteor(text: list[str], reference: list[str]) -> float:
    from nltk.translate.meteor_score import single_meteor_score

    return float(single_meteor_score(reference, text, wordnet=_NoSynonyms()))


def _rouge_n(order: str, text: str, reference: str) -> float:
    kind = f"rouge{order}"
    return float(_scorer(kind).score(reference, text)[kind].fmeasure)


def _rouge_l(text: str, reference: str) -> float:
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenize import tokenize

    ours, theirs = tokenize(text, None), tokenize(reference, None)
    if not ours or not theirs:
        return 0.0
    common = LCSseq.similarity(ours, theirs)
    return float(fmeasure(common / len(ours), common / len(theirs)))


@lru_cache(maxsize=8)
def _scorer(kind: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False)


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []
