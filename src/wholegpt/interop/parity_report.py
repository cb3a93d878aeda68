"""Parity reports: measure on a fixed text that an export is the same model."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.console import Console
from wholegpt.errors import CheckpointError
from wholegpt.losses import negative_log_likelihood
from wholegpt.metrics import perplexity
from wholegpt.tokenizers import Tokenizer

TEXT = """\
The ferry left the harbour a little after seven, when the fog had begun to lift from the water. On board were
forty passengers, two dogs and a crate of oranges that nobody had claimed. "We shall be late," said the captain,
but he did not seem to mind; he had made the crossing 3,214 times and had been late for most of them. By noon the
wind had turned, the sea was grey and uneven, and the children counted the gulls that followed in the wake.

HARBOUR NOTICE No. 7: don't wait, THEY'LL sail at 07:45, £12.50 (1234567890 seats).
\tName:        Zoë Müller-Straße\r\n\tcafé, cafe\u0301, ﬁne, Ⅷ, ½, ２, ＡＢ, İstanbul, Å, Å   \n\n\n
{"a": [1, -2.5e10]};  if (x != y) { return   x_1; }    // 東京 → Москва 🙂👩\u200d🚢 नमस्ते
"""
"""The fixed text contains what tokenizers treat differently: capitals, composed and decomposed characters,
and more.
"""
CONTINUED_TOKENS = 50
PROMPT_TOKENS = 16
MOST_TOKENS = 1024
"""Maximum tokens of the text that are compared; a model's whole context could exceed memory."""
Logits = Callable[[list[int]], Float[Tensor, "T V"]]
"""A model in any program: token ids in, the logits after each of them out."""


@dataclass(frozen=True)
class ForeignModel:
    """A model as opened by some program."""

    program: str
    """Its name and version."""
    logits: Logits
    encode: Callable[[str], list[int]] | None
    """The program's own tokenizer, parsing special tokens in a text; ``None`` if it only reads the weights."""


@dataclass(frozen=True)
class ParityReport:
    """A measured comparison of a model with its export."""

    opened_by: str
    """The program that opened the export, with its version."""
    tokens: int
    """Number of compared tokens of the fixed text."""
    equal_token_ids: bool | None
    """Whether its tokenizer gives the same ids for the text and all added tokens; ``None`` if it has none."""
    largest_logit_difference: float
    mean_logit_difference: float
    largest_logit: float
    """Largest absolute logit of the original, for scale."""
    perplexity: float
    """exp of the original's mean nats per token on the text."""
    export_perplexity: float
    """The same of the export."""
    equal_greedy_tokens: int
    """Number of greedy tokens after the start of the text before the first difference."""
    greedy_tokens: int
    tolerance: float
    """Largest allowed logit difference, as a share of the largest logit or of 1, whichever is larger."""

    @property
    def holds(self) -> bool:
        """Return whether ids are equal and logits within the tolerance; ``False`` if a logit is NaN."""
        allowed = self.tolerance * max(1.0, self.largest_logit)
        return self.equal_token_ids is not False and self.largest_logit_difference <= allowed

    def to_json(self) -> dict[str, float | int | str | bool]:
        """Return plain values."""
        return {**dataclasses.asdict(self), "holds": self.holds}

    def describe(self) -> str:
        """Return one line of text."""
        return (
            f"opened by {self.opened_by}: logits differ by at most {self.largest_logit_difference:.2g} (mean "
            f"{self.mean_logit_difference:.2g}, largest logit {self.largest_logit:.3g}) over {self.tokens} tokens; "
            f"perplexity {self.perplexity:.6g} here, {self.export_perplexity:.6g} there; "
            f"{self.equal_greedy_tokens} of {self.greedy_tokens} greedy tokens equal"
            + {True: "; token ids equal", False: "; token ids differ", None: ""}[self.equal_token_ids]
        )


def compare(
    original: Logits,
    export: ForeignModel,
    tokenizer: Tokenizer,
    context_length: int,
    tolerance: float,
    console: Console,
) -> ParityReport:
    """Measure how far an export is from the original, in the logits of a fixed text and in greedy decoding.

    ``tolerance`` bounds the largest difference of two logits, as a share of the largest logit or of 1. Raises
    ``CheckpointError`` beyond it, and for a tokenizer that gives other ids.
    """
    text = _text_for(tokenizer)
    all_ids = tokenizer.encode(text)
    token_ids = all_ids[:context_length]
    ours, theirs = original(token_ids).double(), export.logits(token_ids).double()
    difference = (ours - theirs).abs()
    prompt = token_ids[: max(1, min(PROMPT_TOKENS, context_length // 2))]
    length = min(CONTINUED_TOKENS, context_length - len(prompt))
    with console.progress(f"comparing with {export.program}", 2 * length) as progress:
        continued = [_greedy(model, prompt, length, progress.advance) for model in (original, export.logits)]
    pairs = zip(*continued, strict=True)
    report = ParityReport(
        opened_by=export.program,
        tokens=len(token_ids),
        equal_token_ids=None if export.encode is None else _equal_ids(tokenizer, export.encode, text),
        largest_logit_difference=float(difference.max()),
        mean_logit_difference=float(difference.mean()),
        largest_logit=float(ours.abs().max()),
        perplexity=_perplexity(ours, token_ids),
        export_perplexity=_perplexity(theirs, token_ids),
        equal_greedy_tokens=next((i for i, (a, b) in enumerate(pairs) if a != b), length),
        greedy_tokens=length,
        tolerance=tolerance,
    )
    if not report.holds:
        raise CheckpointError(f"the export is not the same model: {report.describe()}")
    return report


def _text_for(tokenizer: Tokenizer) -> str:
    """Return the part of the fixed text that the tokenizer can encode; if that is short, all its entries in
    order.
    """
    known = tokenizer.known_part(TEXT)
    if len(known) >= len(TEXT) / 2:
        return known
    return tokenizer.known_part(tokenizer.decode(range(tokenizer.vocab_size)))


def _equal_ids(tokenizer: Tokenizer, encode: Callable[[str], list[int]], text: str) -> bool:
    """Return whether both tokenizers give the same ids for the text, and with every added token in it."""
    added = [tokenizer.name_of(token_id) for token_id in tokenizer.added_ids]
    between = tokenizer.known_part(" a") or text[:1]
    texts = [text, between.join(["", *added, ""]), "".join(added)]
    return all(encode(one) == encoder(tokenizer)(one) for one in texts)


def encoder(tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    """Return a function from text to ids that parses special tokens, as other programs do."""
    return partial(tokenizer.encode, allow_special=True)


def _greedy(model: Logits, prompt: list[int], length: int, advance: Callable[[], None]) -> list[int]:
    token_ids = list(prompt)
    for _ in range(length):
        token_ids.append(int(model(token_ids)[-1].argmax()))
        advance()
    return token_ids[len(prompt) :]


def _perplexity(logits: Float[Tensor, "T V"], token_ids: list[int]) -> float:
    if len(token_ids) < 2:
        return math.nan
    targets = torch.tensor(token_ids[1:])
    return perplexity(float(negative_log_likelihood(logits[None, :-1], targets[None]).mean()))
