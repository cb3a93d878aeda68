"""The structure of the package: allowed imports, package sizes, and the cost of importing."""

import ast
import graphlib
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "wholegpt"
ORDER = [
    *(
        "version",
        "errors",
        "files",
        "seeds",
        "console",
        "interrupts",
        "settings",
        "runtime",
        "tokenizers",
        "losses",
        "metrics",
        "model",
    ),
    *(
        "data",
        "checkpoint",
        "training",
        "generation",
        "evaluation",
        "stages",
        "interop",
        "planning",
        "analysis",
    ),
    *("language_model", "runs", "experiments", "cli"),
]
"""The packages and root modules in order. Each may import those before it and its own modules."""
ROOT_MODULES = {"__main__", "version", "errors", "files", "seeds", "console", "interrupts", "language_model"}
MOST_MODULES = 18
"""The maximum per package; each subpackage counts as one."""


def module_name(path: Path) -> str:
    """Return the dotted name of a module inside the package; empty for the package itself."""
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


PATHS = {module_name(path): path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__main__.py"}


def imported_modules(path: Path) -> set[str]:
    """Return the package's modules that a file imports: at the top, in functions, or for type checkers only.

    The root itself is the empty name. Raises ``ValueError`` for a relative import.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            raise ValueError(f"{path}, line {node.lineno}: a relative import")
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "wholegpt":
            module = node.module.removeprefix("wholegpt").removeprefix(".")
            names = {f"{module}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= names & PATHS.keys() | ({module} if names - PATHS.keys() else set())
        if isinstance(node, ast.Import):
            found |= {
                one.name.removeprefix("wholegpt").removeprefix(".")
                for one in node.names
                if one.name.split(".")[0] == "wholegpt"
            }
    return found


IMPORTS = {name: imported_modules(path) for name, path in PATHS.items() if name}
"""Without the root module, which lists the public names and imports them lazily."""


def test_modules_import_only_earlier_packages() -> None:
    rank = {name: number for number, name in enumerate(ORDER)}
    upward = [
        f"{importer} imports {imported}"
        for importer, modules in IMPORTS.items()
        for imported in sorted(modules)
        if imported and rank[imported.split(".")[0]] > rank[importer.split(".")[0]]
    ]
    assert not upward


def test_every_package_is_in_the_order() -> None:
    assert {name.split(".")[0] for name in IMPORTS} == {*ORDER}
    assert {path.stem for path in SOURCE.glob("*.py")} == ROOT_MODULES | {"__init__"}


def test_no_package_is_too_large() -> None:
    packages = Counter(name.rpartition(".")[0] for name in IMPORTS if "." in name)
    assert not {package: modules for package, modules in packages.items() if modules > MOST_MODULES}


def test_no_module_imports_the_root() -> None:
    """Its names are imported from modules of any rank when they are used."""
    assert not [name for name, modules in IMPORTS.items() if "" in modules]


def test_imports_have_no_cycle() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises ``CycleError`` if there is a cycle


def members_of(package: str, imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """What each module and subpackage of a package imports of the others; a subpackage is all of its modules."""
    inside = f"{package}." if package else ""

    def member(module: str) -> str:
        return module.removeprefix(inside).split(".")[0] if module.startswith(inside) else ""

    found: dict[str, set[str]] = {}
    for importer, modules in imports.items():
        if name := member(importer):
            found.setdefault(name, set()).update(map(member, modules))
    return {name: others - {name, ""} for name, others in found.items()}


PACKAGES = sorted({name.rpartition(".")[0] for name in IMPORTS})


@pytest.mark.parametrize("package", PACKAGES)
def test_subpackages_have_no_cycle(package: str) -> None:
    graphlib.TopologicalSorter(members_of(package, IMPORTS)).prepare()


def test_structure_checks_detect_violations(tmp_path: Path) -> None:
    for name, import_of in (
        ("relative", "from ..runs import api"),
        ("root", "import wholegpt as wg"),
        ("lazy", "from wholegpt import load"),
    ):
        path = tmp_path / f"{name}.py"
        path.write_text(f"def f():\n    {import_of}\n")
        if name == "relative":
            with pytest.raises(ValueError, match="line 2: a relative import"):
                imported_modules(path)
        else:
            assert "" in imported_modules(path)
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter({**IMPORTS, "errors": {"runs.api"}}).prepare()
    upward = {**IMPORTS, "model.layers.linear": {"model.transformer"}}
    with pytest.raises(graphlib.CycleError):
        graphlib.TopologicalSorter(members_of("model", upward)).prepare()
    assert "settings.schema" in IMPORTS["cli.options"], "imports at the top"
    assert "settings.presets" in imported_modules(SOURCE / "__init__.py"), "imports for type checkers"
    assert "language_model" in imported_modules(SOURCE / "cli" / "generation.py"), "imports for type checkers"


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    code = f"""
import importlib, logging, os, pathlib, random, sys, warnings
import torch, numpy, hashlib, cyclopts, tokenizers, safetensors.torch, jaxtyping, yaml, msgspec, rich
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
        assert "Generate text with a model." in result.stdout
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", [["data", "list"], ["data", "stats", "text.txt"], ["recipes"]])
def test_commands_on_text_start_without_torch(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    code = f"import sys; from wholegpt.cli import main; main({command}); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_import_wholegpt_is_lazy() -> None:
    code = "import sys, wholegpt; assert 'torch' not in sys.modules; wholegpt.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
