"""The interface of all rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from wholegpt.data.chat.template import Conversation
from wholegpt.errors import shortened


@dataclass(frozen=True)
class Sample:
    """A completion of a prompt."""

    prompt: Conversation
    completion: str
    answer: str = ""
    """The right answer; empty if it is not known."""
    finished: bool = True
    """Whether the model ended the completion itself."""

    @property
    def asked(self) -> str:
        """Return the content of the last message of the prompt."""
        return self.prompt[-1].content

    def shown(self) -> str:
        """Return the completion and its prompt for messages."""
        return f"the completion '{shortened(self.completion)}' of the prompt '{shortened(self.asked)}'"


@runtime_checkable
class Reward(Protocol):
    """Gives each completion a number; a higher one is better."""

    name: str
    """The name of the reward in the log."""
    needs_answers: bool = False
    """Whether every sample must have a right answer."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the reward of each sample."""
        ...

    def check_prompts(self, prompts: Sequence[Conversation]) -> None:
        """Raise ``DataError`` for a prompt whose completions it cannot judge."""
