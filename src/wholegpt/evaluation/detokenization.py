"""Reversible detokenization of the published forms of WikiText and the Penn Treebank.

Both are lists of words separated by spaces: punctuation is separate, hyphens inside words are `` @-@ ``. A
model of plain text would be penalized for that, so the zero-shot results of Radford et al. (2019, section
3.1) remove these artifacts and are per word of the published form. Every change is recorded, so that the
original can be restored.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Published(StrEnum):
    """A published form of text."""

    none = "none"
    wikitext = "wikitext"
    ptb = "ptb"


@dataclass(frozen=True)
class Detokenized:
    """Detokenized text, and the changes that restore the original."""

    text: str
    words: int
    """Words of the published form, counting the end of each line as one: the tokens that its tables count."""
    changes: tuple[tuple[int, int, str], ...]
    """Position of each change in ``text``, the length of the new text, and the original text."""

    def restored(self) -> str:
        """Return the published form, character by character."""
        pieces: list[str] = []
        done = 0
        for start, length, original in self.changes:
            pieces += [self.text[done:start], original]
            done = start + length
        return "".join([*pieces, self.text[done:]])


_RULES: dict[Published, tuple[tuple[str, str], ...]] = {
    Published.wikitext: (
        (r" @([-,.])@ ", r"\1"),  # inside words and numbers: self @-@ made, 1 @,@ 000
        (r"(?m)^ | $", ""),  # each line has a space at both ends
        (r"(?<==) (?==)", ""),  # == headings ==, stored as = = headings = =
        (r" (?=[,.;:!?)\]}%](?: |$))", ""),
        (r"(?<=[(\[{$£€]) ", ""),
        (r" (?='(?:s|m|d|re|ve|ll|S)\b)", ""),
        (r"(?<=s) (?=' )", ""),  # the players ' names
        (r"(?<=n) (?='t\b)", ""),
    ),
    Published.ptb: (
        (r"(?m)^ | $", ""),
        (r" (?=[,.;:!?%](?: |$))", ""),
        (r"(?<=[$#]) ", ""),
        (r" (?='(?:s|m|d|re|ve|ll)?(?: |$))", ""),
        (r" (?=n't\b)", ""),
        (r"-lrb- ", "("),
        (r" -rrb-", ")"),
    ),
}


def plain_text(text: str, form: Published) -> Detokenized:
    """Return ``text`` of a published form as plain text; in WikiText, quotation marks alternately open and
    close.
    """
    if form is Published.none:
        return Detokenized(text, len(text.split()), ())
    words = len(text.split()) + text.count("\n")
    pieces: list[str] = []
    changes: list[tuple[int, int, str]] = []
    done = length = 0
    for start, end, replacement in _changes(text, form):
        if start < done:
            continue  # two rules match the same space
        kept = text[done:start]
        length += len(kept)
        changes.append((length, len(replacement), text[start:end]))
        pieces += [kept, replacement]
        length += len(replacement)
        done = end
    return Detokenized("".join([*pieces, text[done:]]), words, tuple(changes))


def _changes(text: str, form: Published) -> list[tuple[int, int, str]]:
    """Return start, end and replacement of each change, in order."""
    found = [
        (match.start(), match.end(), match.expand(replacement))
        for rule, replacement in _RULES[form]
        for match in re.finditer(rule, text)
    ]
    if form is Published.wikitext:
        found += _inside_quotes(text)
    return sorted(found)


def _inside_quotes(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield the spaces after an opening and before a closing quotation mark; each line starts with an opening
    one.
    """
    for line in re.finditer(r".+", text):
        opens = True
        for mark in re.finditer(r'(?<= )"(?= )', line[0]):
            start = line.start() + (mark.end() if opens else mark.start() - 1)
            yield start, start + 1, ""
            opens = not opens
