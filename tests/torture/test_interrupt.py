"""Ctrl-C during native code: the process ends soon, with exit code 130 and no partial output."""

import random
import signal
import string
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

SOON_SECONDS = 10.0
"""On a busy machine; on an idle one it takes tenths of a second. The interrupted work takes minutes."""


def listen_to_ctrl_c() -> None:
    """Reset SIGINT, which background jobs of a shell, and thus their children, ignore."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted(program: list[str], arguments: list[str | Path], after: str, pause: float) -> str:
    """Return the last line of a command that receives Ctrl-C ``pause`` seconds after it printed ``after``."""
    command = [sys.executable, *program, *map(str, arguments)]
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    ) as process:
        assert process.stderr
        assert any(after in line for line in process.stderr), "ended before"
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        try:
            _, error = process.communicate(timeout=SOON_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail("Ctrl-C had no effect")
        assert process.returncode == 130, error
        assert time.monotonic() - started < SOON_SECONDS
        return error.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with long, distinct words, whose vocabulary takes minutes to train."""
    generator, path = random.Random(0), tmp_path_factory.mktemp("words") / "words.txt"
    letters = generator.choices(string.ascii_letters + " ", weights=[1] * 52 + [1], k=6_000_000)
    path.write_text("".join(letters))
    return path


@pytest.mark.parametrize("verb", ["tokenizer train", "data prepare", "train"])
def test_interrupt_while_training_a_tokenizer(verb: str, words: Path, tmp_path: Path) -> None:
    size = "--vocab-size" if verb == "tokenizer train" else "--tokenizer.vocab-size"
    out = tmp_path / "out"
    arguments = [*verb.split(), words, size, "60000", "--out", out]
    message = interrupted(["-m", "wholegpt.cli"], arguments, "training a vocabulary", 1.0)
    if verb == "data prepare":
        assert "finished parts are kept, and the same command continues" in message
        assert [path.name for path in tmp_path.iterdir()] == [".unfinished-out"]
    else:
        assert "interrupted; nothing was saved; run the same command to start again" in message
        assert list(tmp_path.iterdir()) == []


def test_interrupt_during_a_long_first_step(text_file: Path, tmp_path: Path) -> None:
    """Before the first step is done there is nothing to save, so the process does not wait for it."""
    program = (
        "import sys, torch\n"
        "import wholegpt.runs.train as run\n"
        "from wholegpt.cli import main\n"
        "def slow(*arguments):\n"
        "    print('in the first step', file=sys.stderr, flush=True)\n"
        "    while True:\n"
        "        torch.ones(500, 500) @ torch.ones(500, 500)\n"
        "run.run_loop = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["train", text_file, "--tokenizer.kind", "byte", "--out", tmp_path / "run", "--device", "cpu"]
    message = interrupted(["-c", program], arguments, "in the first step", 0.1)
    assert f"continue with `wholegpt train --resume {tmp_path / 'run'}`" in message
    assert (tmp_path / "run" / "config.yaml").exists()


def test_interruptible_call_returns_and_raises() -> None:
    from wholegpt.interrupts import interruptible

    assert interruptible(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        interruptible(lambda: 1 // 0)
    seen: list[bool] = []
    thread = threading.Thread(
        target=lambda: seen.append(interruptible(threading.current_thread) is threading.current_thread())
    )
    thread.start()
    thread.join()
    assert seen == [True]
