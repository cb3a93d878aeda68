"""Training, saving and loading tokenizers, special tokens, and text outside the vocabulary."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import tokenizers as library

from tests.helpers import text_of
from wholegpt.data.text.vocabulary import make_tokenizer
from wholegpt.errors import TokenizerError
from wholegpt.settings.choices import TokenizerKind
from wholegpt.settings.schema import TokenizerConfig
from wholegpt.tokenizers import (
    CLASSIFY,
    DELIMITER,
    END_OF_TEXT,
    PADDING,
    START,
    Tokenizer,
    byte_tokenizer,
    gpt2_tokenizer,
    open_tokenizer,
    train_bpe,
    train_character,
)


@pytest.mark.parametrize(
    "made", [byte_tokenizer(), train_bpe([text_of(4000)], 300), train_character(["abc def"])]
)
def test_saved_files_load_here_and_in_the_tokenizers_library(made: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    made.save(path)
    again, foreign = Tokenizer.load(path), library.Tokenizer.from_file(str(path))
    text = "a bad cafe fed" if made.vocab_size > 20 else "bad cafe fed"
    ids = made.encode(text)
    assert again.encode(text) == ids == foreign.encode(text).ids
    assert foreign.decode(ids) == text == again.decode(ids)
    assert again.sha256 == made.sha256
    assert foreign.token_to_id(END_OF_TEXT) == made.end_of_text_id == made.vocab_size - 1


def test_first_merges_are_the_most_frequent_pairs() -> None:
    """Equation E1 by hand on words without punctuation: count adjacent pairs, merge the most frequent, repeat."""
    text = text_of(3000).replace(".\n", " ").strip()
    words = Counter(tuple(("Ġ" if i else "") + w) for i, w in enumerate(text.split(" ")))
    merges: list[tuple[str, str]] = []
    for _ in range(20):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, count in words.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best, most = pairs.most_common(1)[0]
        if sum(count == most for count in pairs.values()) > 1:
            break  # a tie, which the library resolves by its own rule
        merges.append(best)
        joined: Counter[tuple[str, ...]] = Counter()
        for word, count in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == best else 1
                parts.append("".join(word[i : i + step]))
                i += step
            joined[tuple(parts)] += count
        words = joined
    made = train_bpe([text], 257 + len(merges))
    learned = [tuple(merge) for merge in json.loads(made.to_json())["model"]["merges"]]
    assert learned == merges and len(merges) >= 5


def test_training_twice_gives_the_same_vocabulary() -> None:
    text = text_of(5000)
    assert train_bpe([text], 350).sha256 == train_bpe([text], 350).sha256


def test_special_tokens_in_text_are_plain_unless_allowed() -> None:
    for made in (byte_tokenizer(), train_bpe([text_of(3000)], 300), train_character([END_OF_TEXT + "ab"])):
        assert made.end_of_text_id not in made.encode(f"a{END_OF_TEXT}b")
        assert made.encode(f"a{END_OF_TEXT}b", allow_special=True)[1] == made.end_of_text_id
        assert made.decode(made.encode(f"a{END_OF_TEXT}b")) == f"a{END_OF_TEXT}b"


@pytest.mark.parametrize("kind", ["bpe", "gpt1", "character", "byte"])
def test_special_tokens_are_reserved(kind: str) -> None:
    """Special tokens have the last ids, and text is encoded as one only if that is allowed."""
    names = (START, DELIMITER, CLASSIFY, PADDING)
    config = TokenizerConfig(TokenizerKind(kind), vocab_size=300, merges=20, special_tokens=names)
    text = text_of(2000) + "".join(names)
    made = make_tokenizer(config, lambda: [text], len(text))
    size = made.vocab_size
    assert [made.id_of(name) for name in names] == list(range(size - 4, size))
    assert kind != "bpe" or size == 300
    ids = made.encode(START)
    assert max(ids) < size - 4 and made.decode(ids).replace(" ", "") == START
    assert [one.tolist() for one in made.encode_all([START])] == [ids]
    assert made.encode(f"{START}the", allow_special=True)[0] == size - 4
    assert made.text_sizes[size - 4 :].tolist() == [[0, 0]] * 4
    with pytest.raises(TokenizerError, match="is already in the vocabulary"):
        made.with_special_tokens([PADDING])


def test_byte_ids_are_the_bytes() -> None:
    assert byte_tokenizer().encode("aé\n") == list("aé\n".encode())


def test_unknown_character_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"character 'é' \(U\+00E9\) at position 3 is not among the 5"):
        train_character(["abc d"]).encode("a bé")


def test_lone_surrogate_is_named() -> None:
    with pytest.raises(TokenizerError, match=r"position 1 contains a lone surrogate \(U\+D800\)"):
        byte_tokenizer().encode("a\ud800")


def test_incomplete_characters_are_not_streamed() -> None:
    made = byte_tokenizer()
    decoder = made.stream()
    assert [decoder.push(token_id) for token_id in made.encode("é🙂")] == ["", "é", "", "", "", "🙂"]
    assert decoder.finish() == ""


def test_invalid_tokenizer_files_are_rejected(tmp_path: Path) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
        open_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="cannot be read"):
        open_tokenizer(tmp_path / "missing.json")
    with pytest.raises(TokenizerError, match=r"expected encoder\.json and vocab\.bpe"):
        gpt2_tokenizer(tmp_path)
    no_end = library.Tokenizer(library.models.WordLevel({"a": 0}, unk_token="a"))
    no_end.pre_tokenizer = library.pre_tokenizers.Split(library.Regex(r"[\s\S]"), "isolated")
    broken.write_text(no_end.to_str())
    with pytest.raises(TokenizerError, match=r"has no <\|endoftext\|> token"):
        _ = open_tokenizer(tmp_path).end_of_text_id
