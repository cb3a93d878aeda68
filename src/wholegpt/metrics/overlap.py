"""Similarity of a generated text to references: BLEU by sacreBLEU, ROUGE by its reference package."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

ROUGE = ("rouge1", "rouge2", "rougeL")


ORDERS = 4
"""BLEU counts n-grams of up to four words."""


def bleu_counts(text: str, references: Sequence[str]) -> Float[np.ndarray, " 10"]:
    """Return BLEU's statistics of one text: matched and total n-grams for n from 1 to 4, and both lengths."""
    import sacrebleu

    score = sacrebleu.sentence_bleu(text, list(references))
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=np.float64)


def bleu(counts: Float[np.ndarray, "N 10"]) -> float:
    """Compute corpus BLEU from 0 to 100 (Papineni et al. 2002) of texts with these ``bleu_counts``.

    Uses sacreBLEU's default tokenization and smoothing: exp(Σₙ ln pₙ / 4) times a penalty for texts shorter
    than the references, where pₙ is the share of matched n-grams.
    """
    from sacrebleu.metrics.bleu import BLEU

    total = counts.sum(axis=0).astype(int).tolist()
    score = BLEU.compute_bleu(
        total[:ORDERS], total[ORDERS : 2 * ORDERS], total[-2], total[-1], smooth_method="exp"
    )
    return float(score.score)


def rouge(text: str, references: Sequence[str]) -> dict[str, float]:
    """Compute ROUGE-1, ROUGE-2 and ROUGE-L F-measures from 0 to 1 (Lin 2004) for the best reference, with
    stemming.
    """
    scorer = _rouge_scorer()
    scores = scorer.score_multi(list(references), text)
    return {name: float(scores[name].fmeasure) for name in ROUGE}


def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)
