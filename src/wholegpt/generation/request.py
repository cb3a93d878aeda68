"""The state of one generation request: its tokens, how they are drawn, and why it ended."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.generation.results import Completion, TokenChoice
from wholegpt.generation.sampling import Draw, NothingLeftError, Sampler
from wholegpt.generation.speculation import Drafter
from wholegpt.generation.stopping import StopSearch
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer


class GenerationRequest:
    """A prompt, its settings, and the tokens generated after it."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        tokenizer: Tokenizer,
        emit: Callable[[str], None] = lambda text: None,
        drafter: Drafter | None = None,
    ) -> None:
        """Set up a request. ``emit`` receives the text piece by piece.

        Pieces never contain an incomplete character or any part of a stop text. Raises ``ConfigError`` for
        settings that are out of range or that this vocabulary cannot satisfy.
        """
        self.prompt_ids, self.config, self.emit = list(prompt_ids), config, emit
        self.sampler, self._drafter = Sampler(config, tokenizer, prompt_ids), drafter
        self.token_ids: list[int] = []
        self.drawn: list[Draw] = []
        """Each token drawn, end-of-text included."""
        self.pending = self.prompt_ids
        """Tokens that the model has not processed yet, including the last token drawn."""
        self.finish_reason = "" if config.max_tokens else "length"
        """Empty until the text ends."""
        self.error: Exception | None = None
        """The exception in this request that ended the text, if any."""
        self.problem = ""
        """Why no further token is allowed, if that ended the text."""
        self._decoder = tokenizer.stream(prompt_ids[-1])
        self._stops = StopSearch(config.stop, config.min_tokens)
        self._pieces: list[str] = []
        self._choices: list[TokenChoice] = []
        self._tokenizer = tokenizer
        self._started = self._ended = time.perf_counter()

    def start(self) -> None:
        """Start the clock of ``max_seconds``."""
        self._started = time.perf_counter()

    def propose(self, most: int) -> list[int]:
        """Return up to ``most`` draft tokens, none beyond the limit of ``max_tokens``."""
        most = min(most, self.config.max_tokens - len(self.token_ids) - 1)
        if self._drafter is None or most < 1:
            return []
        return self._drafter.propose([*self.prompt_ids, *self.token_ids], most)

    def fail(self, error: Exception) -> None:
        """End the text because of an exception in this request."""
        self.finish_reason, self.error, self._drafter = "error", error, None

    def cancel(self) -> None:
        """End the text as it is."""
        self._drafter = None
        self._finish("cancelled")

    def draw(self, logits: Float[Tensor, "T V"], drafted: Sequence[int], first: Draw | None = None) -> int:
        """Draw one token, and one more after each accepted draft token; return how many were drawn.

        Row t of the logits predicts the token after t draft tokens. ``first`` is the first token, if it was drawn
        already, together with those of other requests. Raises whatever ``emit`` or the drafter raises.
        """
        accepted = 0
        for draft_token in [*drafted, None]:
            before = self.token_ids[-1] if self.token_ids else self.prompt_ids[-1]
            try:
                drawn = first or self.sampler.draw(logits[accepted], self.token_ids)
                first, token_id = None, drawn.token_id
                self.drawn.append(drawn)
                piece = self.accept(token_id)
            except NothingLeftError as error:
                self.problem = str(error)
                self._finish("forbidden")
                break
            if self.config.alternatives:
                self._choices.append(self._choice(logits[accepted], token_id, piece, before))
            if token_id != draft_token or self.finish_reason:
                break
            accepted += 1
        if self._drafter is not None:
            self._drafter.update(len(drafted), accepted)
        if self.finish_reason:
            self._drafter = None  # frees its memory
        return accepted + 1

    def _choice(self, logits: Float[Tensor, " V"], token_id: int, piece: str, before: int) -> TokenChoice:
        log_probabilities = torch.log_softmax(logits, dim=-1)
        likeliest = log_probabilities.topk(min(self.config.alternatives, len(logits)))
        others = zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
        return TokenChoice(
            token_id,
            piece,
            -float(log_probabilities[token_id]) / math.log(2),
            [(self._tokenizer.decode([other], before), probability) for other, probability in others],
        )

    def accept(self, token_id: int) -> str:
        """Append a token that was drawn, and set ``finish_reason`` if the text ends with it. Return the text
        it adds.
        """
        self._ended = time.perf_counter()
        if self.sampler.ends(token_id):
            return self._finish("end_of_text") + self._tokenizer.decode([token_id])
        self.token_ids.append(token_id)
        self.pending = [token_id]
        piece = self._decoder.push(token_id)
        self._show(piece)
        if self._stops.found:
            self.finish_reason = "stop"
        elif self.sampler.complete(self.token_ids):
            self._finish("stop")
        elif self.config.max_seconds and self._ended - self._started > self.config.max_seconds:
            self._finish("time")
        elif len(self.token_ids) == self.config.max_tokens:
            self._finish("length")
        return piece

    def _finish(self, reason: str) -> str:
        """End the text; return the rest of an incomplete character, as U+FFFD."""
        left = ""
        # These may cut a character, and an incomplete one is not shown.
        if reason not in ("length", "time", "forbidden", "cancelled"):
            left = self._decoder.finish()
            self._show(left)
        self.finish_reason = "stop" if self._stops.found else reason
        if not self._stops.found:
            self._pieces.append(self._stops.finish())
            self.emit(self._pieces[-1])
        return left

    def _show(self, text: str) -> None:
        # Stop texts are not searched for until all forced texts have been generated.
        has_outstanding = self.sampler.has_outstanding(self.token_ids)
        piece = self._stops.skip(text) if has_outstanding else self._stops.push(text)
        if piece:
            self._pieces.append(piece)
            self.emit(piece)

    def completion(self) -> Completion:
        """Return the completion so far."""
        seconds = max(self._ended - self._started, 1e-9)
        rate = len(self.token_ids) / seconds
        reason = self.finish_reason or "interrupted"
        return Completion("".join(self._pieces), self.token_ids, reason, rate, self._choices)
