"""Documents on disk as they were read: what all later steps work on, in any order, whatever the corpus size."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np

from wholegpt.data.formats import Piece

PIECE = np.dtype([("end", "<u8"), ("characters", "<u4"), ("begins", "?")])
"""Of each piece: where its UTF-8 bytes end, its characters, and whether a document begins with it."""
BUFFERED_PIECES = 10_000


def write_documents(folder: Path, pieces: Iterable[Piece]) -> "DocumentStore":
    """Write ``pieces`` to two files in ``folder``, holding little of them in memory."""
    end = 0
    buffer: list[tuple[int, int, bool]] = []
    with (folder / "documents.bin").open("wb") as texts, (folder / "pieces.bin").open("wb") as index:
        for piece in pieces:
            content = piece.text.encode()
            texts.write(content)
            end += len(content)
            buffer.append((end, len(piece.text), piece.begins))
            if len(buffer) == BUFFERED_PIECES:
                index.write(np.array(buffer, dtype=PIECE).tobytes())
                buffer.clear()
        index.write(np.array(buffer, dtype=PIECE).tobytes())
    return DocumentStore(folder)


class DocumentStore:
    """Pieces of documents by number."""

    def __init__(self, folder: Path) -> None:
        path = folder / "pieces.bin"
        empty = path.stat().st_size == 0
        self.pieces: np.ndarray = np.empty(0, PIECE) if empty else np.memmap(path, PIECE, mode="r")
        self._texts = (folder / "documents.bin").open("rb")

    def __len__(self) -> int:
        return len(self.pieces)

    def __enter__(self) -> "DocumentStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._texts.close()

    @property
    def bytes(self) -> int:
        """Of all texts together."""
        return int(self.pieces["end"][-1]) if len(self) else 0

    def piece_bytes(self, number: int) -> int:
        """Of one piece."""
        return int(self.pieces["end"][number]) - self._start(number)

    def text(self, number: int) -> str:
        """The text of one piece."""
        start = self._start(number)
        self._texts.seek(start)
        return self._texts.read(int(self.pieces["end"][number]) - start).decode()

    def texts(self) -> Iterator[str]:
        """All pieces in order."""
        return (self.text(number) for number in range(len(self)))

    def documents(self) -> Iterator[Iterator[str]]:
        """The pieces of each document."""
        borders = [*np.flatnonzero(self.pieces["begins"]).tolist(), len(self)]
        for first, after in pairwise(borders):
            yield (self.text(number) for number in range(first, after))

    def _start(self, number: int) -> int:
        return int(self.pieces["end"][number - 1]) if number else 0
