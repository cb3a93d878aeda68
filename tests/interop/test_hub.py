"""Import by model name from the Hugging Face hub, which is a local server here."""

import functools
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from wholegpt.checkpoint import load_model
from wholegpt.errors import CheckpointError
from wholegpt.interop.hub import _needed
from wholegpt.tokenizers import byte_tokenizer

COMMIT = "0" * 39 + "1"
NAME = "someone/tiny-gpt2"


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's interface that a download needs: model information, file list and files."""

    def __init__(self, folder: Path, asked: list[str], *arguments: object) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*arguments)  # pyright: ignore[reportArgumentType]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(f"{self.command} {path}")
        files = sorted(self.folder.iterdir())
        if path in (
            f"/api/models/{NAME}",
            f"/api/models/{NAME}/revision/main",
            f"/api/models/{NAME}/revision/{COMMIT}",
        ):
            siblings = [{"rfilename": file.name} for file in files]
            self._json({"id": NAME, "modelId": NAME, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/api/models/{NAME}/tree/"):
            self._json(
                [
                    {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": _sha1(file)}
                    for file in files
                ]
            )
        elif path.startswith(f"/{NAME}/resolve/") and (self.folder / Path(path).name).is_file():
            self._file(self.folder / Path(path).name)
        else:
            self._send(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, file: Path) -> None:
        self._send(200, file.read_bytes(), {"ETag": f'"{_sha1(file)}"', "X-Repo-Commit": COMMIT})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 (the name of the base class)
        """Print nothing."""


def _sha1(file: Path) -> str:
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield the address of a hub with one model, its folder, and a list of the requests it received."""
    folder, asked = tmp_path / "hub", list[str]()
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Hub, folder, asked))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", folder, asked
    server.shutdown()
    thread.join()
    server.server_close()


def imported(address: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``wholegpt import`` in a process that uses ``address`` as the hub."""
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    for name in ("HF_HUB_OFFLINE", "HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "wholegpt", "import", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=home)


def test_model_is_downloaded_by_name(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, folder, asked = hub
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=16, n_embd=16, n_layer=1, n_head=2, bos_token_id=256, eos_token_id=256
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(folder)
    byte_tokenizer().save(folder / "tokenizer.json")
    (folder / "README.md").write_text("not downloaded")
    (folder / "consolidated.safetensors").write_bytes(b"not downloaded")
    (folder / "pytorch_model.bin").write_bytes(b"not downloaded")
    home = tmp_path / "home"
    home.mkdir()
    run = imported(address, home, NAME)
    assert run.returncode == 0, run.stderr
    assert f"downloading {NAME} from the Hugging Face hub" in run.stderr
    token_ids = torch.tensor([[1, 2, 3]])
    ours = load_model(home / "models" / "tiny-gpt2").model.eval()
    with torch.inference_mode():
        assert torch.allclose(ours(token_ids), theirs(token_ids).logits, atol=1e-5)
    got = {one.rpartition("/")[2] for one in asked if one.startswith("GET") and "/resolve/" in one}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= got
    assert not got & {"README.md", "pytorch_model.bin", "consolidated.safetensors"}
    again = imported("http://127.0.0.1:9", home, NAME, "--out", "again")  # from the cache, without the hub
    assert again.returncode == 0, again.stderr


def test_only_needed_files_are_downloaded() -> None:
    other = ["config.json", "tokenizer.json", "README.md", "onnx/model.onnx", "fp16/model.safetensors"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = "model.safetensors.index.json"
    needed = ["config.json", "tokenizer.json"]
    assert _needed("a/b", [*other, *shards, index, "consolidated.safetensors"]) == [*shards, *needed, index]
    assert _needed("a/b", [*other, "pytorch_model.bin"]) == ["pytorch_model.bin", *needed]
    with pytest.raises(CheckpointError, match=r"download one of its GGUF files and import it: x\.gguf"):
        _needed("a/b", [*other, "x.gguf"])


def test_model_that_is_not_on_the_hub(hub: tuple[str, Path, list[str]], tmp_path: Path) -> None:
    address, _, _ = hub
    missing = imported(address, tmp_path, "someone/else")
    assert missing.returncode == 2 and missing.stderr.count("\n") == 2
    assert (
        "wholegpt: someone/else: is not here, and the Hugging Face hub does not give it: " in missing.stderr
    )


@pytest.mark.slow
def test_unreachable_hub(tmp_path: Path) -> None:
    closed = imported("http://127.0.0.1:9", tmp_path, "someone/else", "--quiet")
    assert closed.returncode == 2 and closed.stderr.startswith("wholegpt: someone/else: is not here")
    assert closed.stderr.count("\n") == 1
