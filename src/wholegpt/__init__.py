"""The whole life of a GPT language model, from text to use.

Everything below is imported when it is first used, so ``import wholegpt`` costs nothing.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from wholegpt.version import __version__ as __version__

if TYPE_CHECKING:
    from wholegpt.errors import WholeGPTError
    from wholegpt.interop.conversion import export_model, import_model
    from wholegpt.language_model import LanguageModel
    from wholegpt.runs.api import align, finetune, plan, resume, train
    from wholegpt.runs.compare import compare
    from wholegpt.runs.load import load
    from wholegpt.runs.train import Run
    from wholegpt.settings.presets import configure, preset, recipe
    from wholegpt.settings.schema import Config
    from wholegpt.training.events import Callback, StepMetrics
    from wholegpt.training.state import TrainingState

# GNU OpenMP reads this when torch is imported. By default a waiting thread spins for milliseconds, which makes a step
# many times slower where another program holds a core (docs/decisions.md, "Threads").
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

_HOMES = {
    "Callback": "training.events",
    "Config": "settings.schema",
    "LanguageModel": "language_model",
    "Run": "runs.train",
    "StepMetrics": "training.events",
    "TrainingState": "training.state",
    "WholeGPTError": "errors",
    "compare": "runs.compare",
    "configure": "settings.presets",
    "export_model": "interop.conversion",
    "align": "runs.api",
    "finetune": "runs.api",
    "import_model": "interop.conversion",
    "load": "runs.load",
    "plan": "runs.api",
    "preset": "settings.presets",
    "recipe": "settings.presets",
    "resume": "runs.api",
    "train": "runs.api",
}

__all__ = [
    "Callback",
    "Config",
    "LanguageModel",
    "Run",
    "StepMetrics",
    "TrainingState",
    "WholeGPTError",
    "align",
    "compare",
    "configure",
    "export_model",
    "finetune",
    "import_model",
    "load",
    "plan",
    "preset",
    "recipe",
    "resume",
    "train",
]


if not TYPE_CHECKING:  # a type checker sees the imports above, and so reports a misspelled name

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'wholegpt' has no attribute '{name}'")
        return getattr(import_module(f"wholegpt.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
