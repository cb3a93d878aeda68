"""Text generation: functions over any causal language model."""

from wholegpt.generation.beam import beam_search
from wholegpt.generation.decoding import encode_prompt, generate, generate_ids, stream
from wholegpt.generation.engine import Engine
from wholegpt.generation.request import GenerationRequest
from wholegpt.generation.results import Completion, Hypothesis, InterruptedGeneration, TokenChoice
from wholegpt.generation.sampling import Sampler
from wholegpt.generation.scheduler import Scheduler
from wholegpt.generation.streams import CompletionStream

__all__ = [
    "Completion",
    "CompletionStream",
    "Engine",
    "GenerationRequest",
    "Hypothesis",
    "InterruptedGeneration",
    "Sampler",
    "Scheduler",
    "TokenChoice",
    "beam_search",
    "encode_prompt",
    "generate",
    "generate_ids",
    "stream",
]
