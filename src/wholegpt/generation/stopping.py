"""Stop texts, found across the boundaries of tokens."""

from collections.abc import Sequence

from wholegpt.tokenizers import Tokenizer


class StopSearch:
    """Searches for stop texts in a text that arrives in pieces, and withholds a suffix that may start one."""

    def __init__(self, stops: Sequence[str], after: int = 0) -> None:
        """Search for ``stops``, but not in the first ``after`` pieces."""
        self.stops, self.after = stops, after
        self.found = False
        self._withheld = ""

    def push(self, piece: str) -> str:
        """Return the text that can be shown now, up to the first stop text."""
        if self.after > 0:
            return self.skip(piece)
        text = self._withheld + piece
        positions = [position for stop in self.stops if (position := text.find(stop)) >= 0]
        if positions:
            self.found, self._withheld = True, ""
            return text[: min(positions)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self._withheld = text[len(text) - keep :]
        return text[: len(text) - keep]

    def skip(self, piece: str) -> str:
        """Return the text that can be shown of a piece that is not searched."""
        self.after -= 1
        return self.finish() + piece

    def finish(self) -> str:
        """Return the withheld text."""
        text, self._withheld = self._withheld, ""
        return text


def text_before_stop(
    tokenizer: Tokenizer, token_ids: Sequence[int], after: int, stops: Sequence[str], min_tokens: int
) -> tuple[str, bool]:
    """Return the text of ``token_ids`` up to a stop text, and whether there was one.

    The tokens follow the token ``after``. The first ``min_tokens`` tokens are not searched. An incomplete
    character at the end is left out.
    """
    decoder, search, text = tokenizer.stream(after), StopSearch(stops, min_tokens), ""
    for token_id in token_ids:
        text += search.push(decoder.push(token_id))
        if search.found:
            return text, True
    return text + search.finish(), False


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper prefix of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
