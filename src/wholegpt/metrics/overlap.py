"""How much a written text shares with a reference: BLEU by sacreBLEU, ROUGE by its reference package."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

ROUGE = ("rouge1", "rouge2", "rougeL")


ORDERS = 4
"""BLEU counts n-grams of up to four words."""


def bleu_counts(written: str, references: Sequence[str]) -> Float[np.ndarray, " 10"]:
    """What BLEU needs of one text: its n-grams found in a reference and all it has, n from 1 to 4, and both lengths."""
    import sacrebleu

    score = sacrebleu.sentence_bleu(written, list(references))
    return np.array([*score.counts, *score.totals, score.sys_len, score.ref_len], dtype=np.float64)


def bleu(counts: Float[np.ndarray, "N 10"]) -> float:
    """Corpus BLEU from 0 to 100 (Papineni et al. 2002) of texts with these ``bleu_counts``.

    sacreBLEU's default tokenisation and smoothing: exp(Σₙ ln pₙ / 4) times a penalty for texts shorter than the
    references, pₙ the share of n-grams found.
    """
    from sacrebleu.metrics.bleu import BLEU

    total = counts.sum(axis=0).astype(int).tolist()
    score = BLEU.compute_bleu(
        total[:ORDERS], total[ORDERS : 2 * ORDERS], total[-2], total[-1], smooth_method="exp"
    )
    return float(score.score)


def rouge(written: str, references: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L F-measures from 0 to 1 (Lin 2004) against the best of the references, stemmed."""
    scorer = _rouge_scorer()
    scores = scorer.score_multi(list(references), written)
    return {name: float(scores[name].fmeasure) for name in ROUGE}


def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), use_stemmer=True)
