"""Training on a folder with a file of each type."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.reading.test_documents import BOOK, ONE, write_docx, write_epub, write_pdf
from tests.data.reading.test_message_files import many, read
from tests.helpers import TINY
from wholegpt.cli import main


def write_everything(folder: Path) -> dict[str, str]:
    """Write a file of each type; return the first words of each file's text."""
    pyarrow: Any = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet")
    folder.mkdir()
    write_docx(folder / "a.docx")
    write_epub(folder / "b.epub", BOOK)
    (folder / "c.html").write_text(f"<h1>A page</h1><p>{ONE}</p>")
    cells = [{"cell_type": "markdown", "source": f"# A notebook\n\n{ONE}"}]
    (folder / "d.ipynb").write_text(json.dumps({"cells": cells, "nbformat": 4}))
    many(folder / "e.jsonl")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["A row"], "n": [1]}), folder / "f.parquet")
    write_pdf(folder / "g.pdf")
    (folder / "h.csv.gz").write_bytes(gzip.compress(b"text,n\nA cell,1\n"))
    (folder / "i.txt").write_text("Plain text")
    return {
        "docx": "A title\n\nThe first",
        "epub": "First\n\nIt was dark",
        "html": f"A page\n\n{ONE}",
        "ipynb": f"# A notebook\n\n{ONE}",
        "jsonl": "<|system|>Be brief.<|user|>Draw the sea 0<|assistant|>Me.",
        "parquet": "A row",
        "pdf": f"A heading\n\n{ONE}",
        "gz": "A cell",
        "txt": "Plain text",
    }


def test_training_on_a_folder_of_all_file_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = tmp_path / "folder", tmp_path / "run"
    starts = write_everything(folder)
    documents, report = read(folder)
    firsts = [*documents[:5], *documents[-4:]]
    assert len(documents) == 108 and report.files == 9 and not report.skipped
    for document, start in zip(firsts, starts.values(), strict=True):
        assert document.startswith(start)
    assert main(["train", str(folder), "--out", str(run), *TINY]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(run), str(folder / "g.pdf"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bits_per_byte"] > 0
