"""Documents on disk, in the form that all later steps read in any order, for a corpus of any size."""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from wholegpt.data.control_codes import AttributeIndex, Attributes, header
from wholegpt.data.reading.decoding import Piece
from wholegpt.errors import DataError
from wholegpt.files import read_json, sync_file, write_json_atomic

PIECE = np.dtype(
    [("end", "<u8"), ("characters", "<u4"), ("begins", "?"), ("source", "<u4"), ("attributes", "<u4")]
)
"""Record of a piece: end of its UTF-8 bytes, its characters, whether it starts a document, its source, and
the index of its attributes.
"""
BUFFERED_PIECES = 10_000
OMISSION_SEED = 1
EXCERPT_CHARACTERS = 80


def write_documents(folder: Path, pieces: Iterable[Piece], omitted: float = 0.0) -> "DocumentStore":
    """Write ``pieces`` to three files in ``folder``, with little of them in memory.

    A share of ``omitted`` documents, drawn with a fixed seed, is stored without its attributes.
    """
    # A seed other than the split's: otherwise the validation documents would be the ones without attributes.
    end, numbers, generator = 0, AttributeIndex(), np.random.default_rng(OMISSION_SEED)
    buffer: list[tuple[int, int, bool, int, int]] = []
    with (folder / "documents.bin").open("wb") as texts, (folder / "pieces.bin").open("wb") as index:
        for piece in pieces:
            content = piece.text.encode()
            texts.write(content)
            end += len(content)
            number = numbers.number(piece.attributes)
            if number and generator.random() < omitted:
                number = 0
            buffer.append((end, len(piece.text), piece.begins, piece.source, number))
            if len(buffer) == BUFFERED_PIECES:
                index.write(np.array(buffer, dtype=PIECE).tobytes())
                buffer.clear()
        index.write(np.array(buffer, dtype=PIECE).tobytes())
    for name in ("documents.bin", "pieces.bin"):
        sync_file(folder / name)
    write_json_atomic(folder / "attributes.json", numbers.attributes)
    return DocumentStore(folder)


class DocumentStore:
    """Pieces of documents by index."""

    def __init__(self, folder: Path) -> None:
        path = folder / "pieces.bin"
        empty = path.stat().st_size == 0
        self.pieces: np.ndarray = np.empty(0, PIECE) if empty else np.memmap(path, PIECE, mode="r")
        # Copied into memory, since single fields of a mapped file are slow to read.
        self._ends = np.concatenate([[0], self.pieces["end"].astype(np.int64)])
        path = folder / "documents.bin"
        if not path.exists() or path.stat().st_size != self._ends[-1]:
            raise DataError(f"{path}: damaged or missing; the same call starts over")
        self._texts = path.open("rb")
        self.attributes: list[Attributes] = [
            tuple((name, value) for name, value in pairs) for pairs in read_json(folder / "attributes.json")
        ]
        """The attributes of documents, by index."""

    def __len__(self) -> int:
        return len(self.pieces)

    def __enter__(self) -> "DocumentStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._texts.close()

    @property
    def bytes(self) -> int:
        """Return the bytes of all texts together."""
        return int(self._ends[-1])

    @property
    def headed_bytes(self) -> int:
        """Return the bytes of all texts and their headers."""
        headers = np.array([len(header(attributes).encode()) for attributes in self.attributes])
        return self.bytes + int(headers[self.pieces["attributes"]].sum())

    def piece_bytes(self, number: int) -> int:
        """Return the bytes of one piece."""
        return int(self._ends[number + 1] - self._ends[number])

    def text(self, number: int) -> str:
        """Return the text of one piece."""
        self._texts.seek(int(self._ends[number]))
        return self._texts.read(self.piece_bytes(number)).decode()

    def header(self, number: int) -> str:
        """Return the header before the text of one piece in training."""
        return header(self.attributes[self.pieces["attributes"][number]])

    def texts(self) -> Iterator[str]:
        """Return all pieces in order, with their headers."""
        return (self.header(number) + self.text(number) for number in range(len(self)))

    @cached_property
    def document_starts(self) -> np.ndarray:
        """Return the index of the first piece of each document."""
        return np.flatnonzero(self.pieces["begins"])

    def excerpt(self, document: int) -> str:
        """Return the start of a document, on one line."""
        return " ".join(self.text(int(self.document_starts[document]))[: 2 * EXCERPT_CHARACTERS].split())[
            :EXCERPT_CHARACTERS
        ]

    def documents(self) -> Iterator[Iterator[str]]:
        """Yield the pieces of each document."""
        for first, after in pairwise([*self.document_starts.tolist(), len(self)]):
            yield (self.text(number) for number in range(first, after))
