"""The shape of the house: imports point down the levels, importing does nothing, help is quick."""

import ast
import graphlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wholegpt"

# Lowest first. A folder is one place: neighbours on a level may not import each other.
# Single files of a level may use those written above them.
LEVELS: list[list[str]] = [
    [
        "errors",
        "choices",
        "config",
        "mapping",
        "checks",
        "presets",
        "files",
        "interrupts",
        "console",
        "runtime",
        "protocols",
    ],
    ["tokenizers", "model", "losses", "metrics"],
    ["data", "baselines"],
    ["adapters", "checkpoint"],
    ["training", "generation"],
    ["evaluation"],
    ["pretraining", "masked_pretraining", "finetuning", "analysis", "planning", "interop"],
    ["language_model", "comparing", "loading", "conversion", "run_folder", "run", "start", "api", "ladder"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def place_of(path: Path) -> str:
    """The folder or single file of the package that ``path`` is in; the package's own init is ``''``."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py").replace("__init__", "")


def imported_places(path: Path) -> set[str]:
    """Places of the package that a file imports, at its top or inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wholegpt":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("wholegpt.")}
    return found


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_the_levels(path: Path) -> None:
    here = place_of(path)
    if here == "":
        return  # the package's own init names what it offers, lazily
    for there in imported_places(path) & LEVEL.keys():
        if there == here:
            continue
        single_files = (SOURCE / f"{here}.py").exists() and (SOURCE / f"{there}.py").exists()
        if LEVEL[there] == LEVEL[here] and single_files:
            names = LEVELS[LEVEL[here]]
            assert names.index(there) < names.index(here), (
                f"{here} imports {there}, which is written below it"
            )
        else:
            assert LEVEL[there] < LEVEL[here], f"{here} (L{LEVEL[here]}) imports {there} (L{LEVEL[there]})"


def test_every_place_has_a_level() -> None:
    places = {place_of(path) for path in SOURCE.rglob("*.py")} - {""}
    assert places == LEVEL.keys()


def module_name(path: Path) -> str:
    """The module that a file is."""
    return ".".join(("wholegpt", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def imported_first(path: Path, modules: set[str]) -> set[str]:
    """Modules of the package that have to be whole before a file is: those that it imports at its top."""
    found: set[str] = set()
    for node in ast.parse(
        path.read_text(encoding="utf-8")
    ).body:  # neither in functions nor for type checkers
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & modules | ({node.module} if inside - modules else set())
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & modules


def test_imports_make_no_circle() -> None:
    """Every module can be imported first."""
    paths = {module_name(path): path for path in SOURCE.rglob("*.py") if path.name != "__main__.py"}
    graph = {name: imported_first(path, set(paths)) for name, path in paths.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(
        paths
    )  # raises where there is one
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({**graph, "wholegpt.errors": {"wholegpt.runs.api"}}).prepare()


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    code = f"""
import importlib, logging, os, pathlib, random, sys, warnings
import matplotlib, torch, numpy, hashlib, cyclopts, tokenizers, safetensors.torch, jaxtyping, yaml, msgspec, rich
import torch.utils.checkpoint, urllib.request
def state():
    return (torch.get_num_threads(), torch.initial_seed(), torch.get_rng_state().tolist(), random.getstate(),
            numpy.random.get_state()[1].tolist(), torch.are_deterministic_algorithms_enabled(),
            torch.get_default_dtype(), torch.is_grad_enabled(), dict(os.environ), os.getcwd(),
            list(logging.getLogger().handlers), logging.getLogger().level, list(warnings.filters), list(sys.path))
written = []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        if not str(arguments[0]).endswith(".pyc") and "__pycache__" not in str(arguments[0]):
            written.append(arguments[0])
    if event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        if "__pycache__" not in str(arguments[0]):
            written.append((event, arguments))
before = state()
sys.addaudithook(watch)
root = pathlib.Path({str(SOURCE)!r})
for path in sorted(root.rglob("*.py")):
    if path.name != "__main__.py":
        name = ".".join(("wholegpt", *path.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        importlib.import_module(name)
assert state() == before, "importing changed the state of the process"
assert not written, written
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "" and result.stderr == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timed
def test_help_answers_quickly_without_torch() -> None:
    code = "import sys; from wholegpt.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    seconds: list[float] = []
    for _ in range(5):
        started = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        seconds.append(time.perf_counter() - started)
        assert result.returncode == 0, "torch was imported"
        assert "Let a model write." in result.stdout
    assert min(seconds) < 0.5


def test_import_wholegpt_is_lazy() -> None:
    code = "import sys, wholegpt; assert 'torch' not in sys.modules; wholegpt.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
