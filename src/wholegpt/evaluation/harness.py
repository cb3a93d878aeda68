"""Adapter for ``lm-eval``, EleutherAI's evaluation harness."""

from typing import TYPE_CHECKING, Any

import torch

from wholegpt.console import QUIET, Console
from wholegpt.evaluation.likelihood import Request, score_continuations
from wholegpt.generation import encode_prompt, generate
from wholegpt.model.interface import CausalLanguageModel
from wholegpt.settings.choices import Dtype
from wholegpt.settings.schema import GenerationConfig
from wholegpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from lm_eval.api.model import TemplateLM

DEFAULT_MAX_TOKENS = 256
"""The harness's default, for tasks without a limit."""


def harness_model(
    model: CausalLanguageModel, tokenizer: Tokenizer, device: torch.device, dtype: Dtype, console: Console
) -> "TemplateLM":
    """Return a model for ``lm_eval.simple_evaluate(model=…)``, scored by the same code as wholegpt's own
    tasks.

    Requires the extra ``lm-eval``. Sampling follows the tasks' temperature, top-k and top-p; any other
    generation setting raises ``ValueError``.
    """
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    def scored(pairs: list[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        requests = [Request(tuple(context), tuple(continuation)) for context, continuation in pairs]
        likelihoods = score_continuations(model, requests, device, dtype, console)
        return [(-one.nats, one.greedy) for one in likelihoods]

    class HarnessModel(TemplateLM):
        """The harness's interface over ``score_continuations`` and ``generate``."""

        max_length = model.context_length
        max_gen_toks = DEFAULT_MAX_TOKENS

        @property
        def eot_token_id(self) -> int:
            return tokenizer.end_of_text_id

        @property
        def tokenizer_name(self) -> str:
            return tokenizer.sha256

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return tokenizer.encode(string, allow_special=True)

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            results = scored([(context, continuation) for _, context, continuation in requests])
            for (texts, _, _), result in zip(requests, results, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, result)
            return results

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            results: list[float] = []
            for request in requests:
                (text,) = request.args
                windows = get_rolling_token_windows(
                    self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
                )
                results.append(
                    sum(nats for nats, _ in scored([make_disjoint_window(one) for one in windows]))
                )
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, results[-1])
            return results

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            prompts: list[list[int]] = []
            configs: list[GenerationConfig] = []
            for request in requests:
                context, settings = request.args
                configs.append(generation_of(settings, self.max_gen_toks))
                room = self.max_length - configs[-1].max_tokens
                if room < 1:
                    raise ValueError(
                        f"the task generates up to {configs[-1].max_tokens} tokens; the model sees {self.max_length}"
                    )
                prompts.append(encode_prompt(model, tokenizer, "", context, True, QUIET)[-room:])
            completions = generate(model, tokenizer, prompts, configs, device, console)
            results = [completion.text for completion in completions]
            for request, result in zip(requests, results, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, result)
            return results

    return HarnessModel()


def generation_of(settings: dict[str, Any], max_tokens: int) -> GenerationConfig:
    """Convert a task's generation settings. Raises ``ValueError`` for an unsupported one."""
    from lm_eval.models.utils import normalize_gen_kwargs

    rest: dict[str, Any] = dict(normalize_gen_kwargs(settings, max_tokens))
    sampled = rest.pop("do_sample")
    temperature = rest.pop("temperature", 1.0)
    chosen = GenerationConfig(
        max_tokens=rest.pop("max_gen_toks"),
        temperature=temperature if sampled else 0.0,
        top_k=rest.pop("top_k", 0),
        top_p=rest.pop("top_p", 1.0),
        stop=tuple(text for text in rest.pop("until") if text),
    )
    if rest.pop("num_beams", 1) != 1 or rest:
        raise ValueError(f"generation settings that wholegpt does not have: {', '.join(rest) or 'num_beams'}")
    return chosen
