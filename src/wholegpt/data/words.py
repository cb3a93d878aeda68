"""Words for the comparison of texts."""

import re

# Scripts without spaces: Thai, Lao, Myanmar, Khmer, kana, ideographs.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Return the words of ``text`` in lower case, without punctuation; each character in scripts without
    spaces.
    """
    return _WORD.findall(text.lower())
