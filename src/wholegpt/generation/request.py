"""One text being written: what it has, how its tokens are drawn, and why it ended."""

import math
import time
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from wholegpt.generation.results import Completion, TokenChoice
from wholegpt.generation.sampling import NothingLeftError, Sampler
from wholegpt.generation.speculation import Drafter
from wholegpt.generation.stopping import StopSearch
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer


class GenerationRequest:
    """A prompt, its settings, and what has been written after it."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        config: GenerationConfig,
        tokenizer: Tokenizer,
        emit: Callable[[str], None] = lambda text: None,
        drafter: Drafter | None = None,
    ) -> None:
        """``emit`` gets the text piece by piece: never half a character, nor any part of a stop text.

        Raises ``ConfigError`` for settings out of range, or that this vocabulary cannot meet.
        """
        self.prompt_ids, self.config, self.emit = list(prompt_ids), config, emit
        self.sampler, self._drafter = Sampler(config, tokenizer, prompt_ids), drafter
        self.token_ids: list[int] = []
        self.unread = self.prompt_ids
        """What the model has not read yet, the last token drawn included."""
        self.finish_reason = "" if config.max_tokens else "length"
        """Empty while the text goes on."""
        self.error: Exception | None = None
        """What went wrong in this request, where that ended the text."""
        self.problem = ""
        """Why no further token is allowed, where that ended the text."""
        self._decoder = tokenizer.stream(prompt_ids[-1])
        self._stops = StopSearch(config.stop, config.min_tokens)
        self._pieces: list[str] = []
        self._choices: list[TokenChoice] = []
        self._tokenizer = tokenizer
        self._started = self._ended = time.perf_counter()

    def begin(self) -> None:
        """Start the clock of ``max_seconds``."""
        self._started = time.perf_counter()

    def guess(self, most: int) -> list[int]:
        """Up to ``most`` tokens that may come next, none that the limit of tokens would cut off."""
        most = min(most, self.config.max_tokens - len(self.token_ids) - 1)
        if self._drafter is None or most < 1:
            return []
        return self._drafter.guess([*self.prompt_ids, *self.token_ids], most)

    def fail(self, error: Exception) -> None:
        """End the text because of an exception in this request."""
        self.finish_reason, self.error, self._drafter = "error", error, None

    def cancel(self) -> None:
        """End the text as it is, because nobody wants the rest."""
        self._drafter = None
        self._finish("cancelled")

    def draw(self, logits: Float[Tensor, "T V"], guessed: Sequence[int]) -> int:
        """Draw one token, and one more after each that was ``guessed``; returns how many.

        Row t of the logits is of the token after t guesses. Raises whatever ``emit`` or the drafter does.
        """
        right = 0
        for guess in [*guessed, None]:
            try:
                token_id = self.sampler.draw(logits[right], self.token_ids)
                piece = self.accept(token_id)
            except NothingLeftError as error:
                self.problem = str(error)
                self._finish("forbidden")
                break
            if self.config.alternatives:
                self._choices.append(self._choice(logits[right], token_id, piece))
            if token_id != guess or self.finish_reason:
                break
            right += 1
        if self._drafter is not None:
            self._drafter.learn(len(guessed), right)
        if self.finish_reason:
            self._drafter = None  # and its memory
        return right + 1

    def _choice(self, logits: Float[Tensor, " V"], token_id: int, piece: str) -> TokenChoice:
        log_probabilities = torch.log_softmax(logits, dim=-1)
        likeliest = log_probabilities.topk(min(self.config.alternatives, len(logits)))
        others = zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
        return TokenChoice(
            token_id,
            piece,
            -float(log_probabilities[token_id]) / math.log(2),
            [(self._tokenizer.decode([other]), probability) for other, probability in others],
        )

    def accept(self, token_id: int) -> str:
        """Add a token that was drawn; sets ``finish_reason`` where the text ends with it. Returns what it adds."""
        self._ended = time.perf_counter()
        if self.sampler.ends(token_id):
            return self._finish("end_of_text") + self._tokenizer.decode([token_id])
        self.token_ids.append(token_id)
        self.unread = [token_id]
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
        """End the text; returns what of half a character is left, as U+FFFD."""
        left = ""
        # These may cut a character in two; half of a character is not shown.
        if reason not in ("length", "time", "forbidden", "cancelled"):
            left = self._decoder.finish()
            self._show(left)
        self.finish_reason = "stop" if self._stops.found else reason
        if not self._stops.found:
            self._pieces.append(self._stops.finish())
            self.emit(self._pieces[-1])
        return left

    def _show(self, text: str) -> None:
        # No stop text is looked for while a forced one is outstanding.
        owes = self.sampler.owes(self.token_ids)
        piece = self._stops.pass_over(text) if owes else self._stops.push(text)
        if piece:
            self._pieces.append(piece)
            self.emit(piece)

    def completion(self) -> Completion:
        """What has been written so far."""
        seconds = max(self._ended - self._started, 1e-9)
        rate = len(self.token_ids) / seconds
        reason = self.finish_reason or "interrupted"
        return Completion("".join(self._pieces), self.token_ids, reason, rate, self._choices)
