"""The definition of a stage: how its runs are set up and opened. ``registry`` lists all of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wholegpt.checkpoint import ModelFolder, ModelMetadata
from wholegpt.console import Console
from wholegpt.data import PreparedData, Texts, TokenShards
from wholegpt.data.examples.files import examples_hash
from wholegpt.errors import DataError
from wholegpt.model import TokenModel
from wholegpt.settings.choices import Architecture, TaskKind
from wholegpt.settings.schema import Config
from wholegpt.tokenizers import Tokenizer
from wholegpt.training.stage import Stage


@dataclass(frozen=True)
class ParentModel:
    """The trained model that a run starts from."""

    name: str
    """As the user gave it."""
    folder: Path
    """Its model folder."""
    loaded: ModelFolder
    held_out_text: Callable[[], TokenShards]
    """Return the held-out text that it was pretrained beside. Raises ``DataError`` or ``RunError`` if it is gone."""


@dataclass(frozen=True)
class SetupRequest:
    """What a stage sets a new run up from."""

    config: Config
    """Checked, not yet resolved."""
    parent: ParentModel | None
    resolve: Callable[[Config, PreparedData], Config]
    """Resolve every setting that depends on the text and the machine."""
    console: Console
    texts: Texts | None = None
    """Documents in memory, instead of ``config.data.source``."""

    @property
    def parent_model(self) -> ModelFolder:
        """Return the loaded parent, of a stage that needs one."""
        assert self.parent
        return self.parent.loaded


@dataclass(frozen=True)
class RunSetup:
    """The contents of a new run."""

    config: Config
    """With the architecture and the number of steps."""
    tokenizer: Tokenizer
    source: dict[str, Any]
    """The entries of ``lineage.json`` about the data."""
    model: TokenModel | None = None
    """Saved as the checkpoint of step 0. None if the first step initializes the model from the seed."""
    metadata: ModelMetadata = field(default_factory=ModelMetadata)
    companions: Mapping[str, ModelFolder] = field(default_factory=dict)
    """Frozen models that the objective needs, by their role."""


@dataclass(frozen=True)
class NewRun:
    """A run that is ready to be written: its sources are open and checked."""

    name: str
    """The default name of its folder."""
    write: Callable[[Path], RunSetup]
    """Write its data into a folder."""


@dataclass(frozen=True)
class RunContents:
    """The records of a run that a stage is opened from."""

    path: Path
    config: Config
    data_hash: str
    """Of the data, in ``lineage.json``."""
    text_folder: Path
    """Where its prepared text is, if it has one."""
    metadata: Callable[[], ModelMetadata]
    """Return what the last good checkpoint says of its model."""
    companions: Callable[[], Mapping[str, ModelFolder]]
    """Load the companion models, checked to be those that the run started with."""
    just_written: bool = False
    """Whether this process wrote the run and has kept it locked since, so that tokens in its folder need no check."""

    def text(self) -> PreparedData:
        """Return the tokens, checked to be those that the run started with."""
        data = PreparedData.open(self.text_folder)
        if data.fingerprint != self.data_hash:
            raise DataError(
                f"{data.folder}: not the data that {self.path} started with; restore it, or start a new run"
            )
        if not (self.just_written and self.path in self.text_folder.parents):
            data.verify()
        return data

    def examples(self) -> Path:
        """Return the folder of the examples, checked to be those that the run started with."""
        folder = self.path / "data"
        if examples_hash(folder) != self.data_hash:
            raise DataError(f"{folder}: not the examples that the run started with; start a new run")
        return folder

    def tokenizer(self) -> Tokenizer:
        """Return the run's tokenizer."""
        return Tokenizer.load(self.path / "tokenizer.json")


@dataclass(frozen=True)
class NextStep:
    """A command to try after a run. ``{program}`` and ``{run}`` stand for the program's name and the run's folder."""

    command: str
    purpose: str


@dataclass(frozen=True)
class StageDefinition:
    """One way of training."""

    name: str
    tasks: tuple[TaskKind, ...]
    """The values of ``finetuning.task`` that select it."""
    architectures: tuple[Architecture, ...]
    """Of the models that it trains from random weights."""
    parents: tuple[Architecture, ...]
    """Architectures of the trained models that it starts from."""
    set_up: Callable[[SetupRequest], NewRun]
    """Open and check the sources of a new run."""
    open: Callable[[RunContents], Stage]
    """Open the stage over the folder of a run."""
    next_steps: Callable[[Config], list[NextStep]]
    """Return the commands that make use of a trained model."""
    recipe: str = ""
    """The default recipe of `finetune`; empty: the default settings."""
    files: tuple[str, ...] = ()
    """The files in a run's folder that only this stage writes."""
    fixed_dtype: bool = False
    """Whether its examples hold results of a model in the dtype of the run, so that others cannot be compared."""
    extendable: bool = True
    """Whether its runs can be trained for more steps than they were created with."""
