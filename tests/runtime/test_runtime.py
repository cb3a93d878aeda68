"""Threads of a process, and the warning if other programs use the cores."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from wholegpt import runtime
from wholegpt.runtime import threads

SPIN = "import os, wholegpt; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("given", "code", "expected"),
    [
        ({}, SPIN, "2000"),
        ({"GOMP_SPINCOUNT": "7"}, SPIN, "7"),
        ({"OMP_WAIT_POLICY": "active"}, SPIN, "None"),
        ({}, f"import torch; {SPIN}", "None"),
    ],
)
def test_threads_spin_briefly_unless_configured_otherwise(
    given: dict[str, str], code: str, expected: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | given, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == expected


def test_overload_warning_states_the_cores_used_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "cores_used_by_others", lambda: 2.25)
    assert threads.overload(4).startswith("other programs use 2.2 of 4 cores, so 4 threads wait")
    assert "--threads 1" in threads.overload(3)
    assert threads.overload(2) == "" and threads.overload(1) == ""


def test_cores_used_by_others_excludes_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other programs use two cores, while this process works all the time."""
    clock = {"elapsed": 0.0, "own": 5.0}

    def work(seconds: float) -> None:
        clock["elapsed"] += seconds
        clock["own"] += seconds

    monkeypatch.setattr(threads, "_busy_seconds", lambda: 100 + 3 * clock["elapsed"])
    monkeypatch.setattr(time, "sleep", work)
    monkeypatch.setattr(time, "process_time", lambda: clock["own"])
    monkeypatch.setattr(time, "perf_counter", lambda: clock["elapsed"])
    assert runtime.cores_used_by_others(0.5) == pytest.approx(2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells how busy it is")
def test_busy_seconds_grow_with_work() -> None:
    before, until = threads._busy_seconds(), time.process_time() + 0.2
    while time.process_time() < until:
        pass
    assert threads._busy_seconds() - before >= 0.15


COMPILE_SOFTMAX = """
import torch
from wholegpt.runtime import separate_compiled_code

def attend(x):
    return (x.sin().softmax(-1) * x).sum(-1)

separate_compiled_code()
x = torch.linspace(-3, 3, 287, dtype=torch.float64).view(7, 41)
torch.testing.assert_close(torch.compile(attend)(x), attend(x), rtol=1e-12, atol=1e-12)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    " " in torch.__file__, reason="PyTorch's compiler cannot link where its own path holds a space"
)
def test_compiled_code_is_not_shared_between_vector_units(tmp_path: Path) -> None:
    for capability in ({}, {"ATEN_CPU_CAPABILITY": "default"}):
        environment = {
            **{name: text for name, text in os.environ.items() if name != "ATEN_CPU_CAPABILITY"},
            **capability,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path),
        }
        program = [sys.executable, "-W", "ignore", "-c", COMPILE_SOFTMAX]
        result = subprocess.run(program, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, (capability, result.stderr)


def test_runs_do_not_inherit_the_thread_count_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread count that the user sets in PyTorch is kept."""
    number = {"now": 3}
    monkeypatch.setattr(torch, "get_num_threads", lambda: number["now"])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: number.update(now=threads))
    monkeypatch.setattr(threads, "_set", {})
    for given, expected in ((0, 3), (1, 1), (0, 3), (2, 2), (1, 1)):
        threads.set_threads(given)
        assert number["now"] == expected and threads.default_threads() == 3
    number["now"] = 4
    assert threads.default_threads() == 4
    threads.set_threads(0)
    assert number["now"] == 4
