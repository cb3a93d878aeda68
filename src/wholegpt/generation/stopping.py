"""Where a text ends: stop texts, found across the borders of tokens."""

from collections.abc import Sequence

from wholegpt.tokenizers import Tokenizer


class StopSearch:
    """Looks for stop texts in a text that comes in pieces, and holds back what may yet turn out to begin one."""

    def __init__(self, stops: Sequence[str], after: int = 0) -> None:
        """In the first ``after`` pieces none is looked for."""
        self.stops, self.after = stops, after
        self.found = False
        self._held = ""

    def push(self, piece: str) -> str:
        """What can be shown now; nothing after the first stop text, nor of it."""
        if self.after > 0:
            return self.pass_over(piece)
        held = self._held + piece
        places = [place for stop in self.stops if (place := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def pass_over(self, piece: str) -> str:
        """What can be shown of a piece in which no stop text is looked for."""
        self.after -= 1
        return self.finish() + piece

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


def text_before_stop(
    tokenizer: Tokenizer, token_ids: Sequence[int], after: int, stops: Sequence[str], min_tokens: int
) -> tuple[str, bool]:
    """The text of ``token_ids``, which stand after the token ``after``, up to a stop text; and whether there was one.

    In the first ``min_tokens`` none is looked for. Half a character at the end is left out.
    """
    decoder, search, text = tokenizer.stream(after), StopSearch(stops, min_tokens), ""
    for token_id in token_ids:
        text += search.push(decoder.push(token_id))
        if search.found:
            return text, True
    return text + search.finish(), False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper beginning of ``stop`` that ``text`` ends with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
