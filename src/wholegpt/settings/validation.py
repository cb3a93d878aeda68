"""Every check of the settings, each with an error that names the field, and what follows from them."""

import dataclasses
import math

from wholegpt.errors import ConfigError
from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    Attention,
    ClassWeights,
    Documents,
    Execution,
    FeedForward,
    OptimizerKind,
    Positions,
    TaskKind,
)
from wholegpt.settings.schema import (
    Config,
    DataConfig,
    FinetuningConfig,
    GenerationConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TokenizerConfig,
    WindowsConfig,
)

LEAST_WEIGHT = 1e-5
"""Share of the windows of a source that is used at all."""


TRANSFORMERS = (Architecture.transformer, Architecture.encoder, Architecture.encoder_decoder)
NGRAM = ("ngram_order", "ngram_discount")
WHOLE = ("distinct_layers", "n_experts")
"""Settings of a single stack of layers."""
OWN = {
    "segments": Architecture.encoder,
    "separator": Architecture.encoder_decoder,
    **dict.fromkeys(NGRAM, Architecture.ngram),
}
"""Settings of the model that one architecture alone has."""
USED = {
    **dict.fromkeys(
        (Architecture.elman, Architecture.gru, Architecture.lstm),
        ("vocab_size", "context_length", "n_layers", "d_model", "embeddings", "dropout"),
    ),
    Architecture.ngram: ("vocab_size", "context_length", *NGRAM),
}
"""Settings of the model that architectures other than the transformer have."""
BLOCKWISE = (Architecture.transformer, Architecture.encoder)
"""Whose blocks can be compiled, and computed anew in the backward pass."""
MOST_ORDER = 20
LARGEST_SIZE, MOST_LAYERS = 2**24, 10_000
"""Of any size of a model, and of layers; a config may come from anywhere."""
WINDOWED = (Attention.sliding_window, Attention.strided)
"""Kinds of attention that have a W."""
RECURRENT = (Attention.linear, Attention.average)
"""Those that keep a sum in place of keys and values."""
MOST_ADDED = 1e6
"""To a logit; more would leave no differences between the others in 32 bits."""

# Limits of generation, all in one place (docs/generation.md lists them). They bound memory and the time of one token.
MOST_GENERATED = 2**20
"""max_tokens."""
MOST_PROMPT_TOKENS = 2**20
MOST_WAITING = 2**16
"""Requests in the engine's queue."""
MOST_BEAMS = 256
MOST_LISTED = 100
"""alternatives."""
MOST_TEXTS = 1000
"""Texts in each of stop, banned and forced."""
MOST_LISTED_TOKENS = 10**7
"""alternatives times max_tokens."""
LONGEST_TEXT = 1000
"""Characters of a text in stop, banned or forced."""
MOST_BIASES = 100_000
MOST_NGRAM = 1000
LARGEST_TOP_K = 2**24
LARGEST_SEED = 2**63 - 1
MOST_CHARACTERS = 25_000
"""Characters of a regular expression or schema; the slowest take 0.6 s to read or refuse, growing with the square."""


def complete_model(model: ModelConfig) -> ModelConfig:
    """``model`` with its zeros replaced by what they stand for, checked. Raises where ``vocab_size`` is unknown."""
    if model.vocab_size == 0:
        raise ConfigError("model.vocab_size is 0; set it, or let the tokenizer set it by training from text")
    return derive_sizes(model)


def derive_sizes(model: ModelConfig) -> ModelConfig:
    """``model`` checked, with every zero but that of ``vocab_size`` replaced by what it stands for."""
    check_model(model)
    if model.architecture not in TRANSFORMERS:
        return model
    d_ff = 4 * model.d_model
    if model.feed_forward is FeedForward.swiglu:
        d_ff = -(-8 * model.d_model // (3 * 64)) * 64
    return dataclasses.replace(
        model,
        n_kv_heads=model.n_kv_heads or model.n_heads,
        d_head=model.d_head or model.d_model // model.n_heads,
        d_ff=model.d_ff or d_ff,
    )


LEARNING_RATES = {OptimizerKind.muon: 6e-3, OptimizerKind.adamw: 2e-3}


def complete_optimizer(optimizer: OptimizerConfig) -> OptimizerConfig:
    """``optimizer`` with a learning rate of 0 replaced by what it stands for."""
    return dataclasses.replace(
        optimizer, learning_rate=optimizer.learning_rate or LEARNING_RATES[optimizer.kind]
    )


WARMUP_SHARE, MOST_WARMUP_STEPS = 0.1, 20


def complete_schedule(schedule: ScheduleConfig, steps: int) -> ScheduleConfig:
    """``schedule`` for a run of so many ``steps``, whose rate reaches its peak and comes down from it.

    A warm-up of 0, and one that leaves no step with a lower rate than the peak, is replaced by a tenth of the steps, at
    most 20.
    """
    warmup = schedule.warmup_steps
    if warmup == 0 or warmup >= max(steps - 1, 2):
        warmup = min(int(WARMUP_SHARE * steps), MOST_WARMUP_STEPS)
    return dataclasses.replace(schedule, warmup_steps=warmup)


def check_seed(name: str, seed: int) -> None:
    """Raise ``ConfigError`` for a seed that random number generators do not take."""
    _require(name, seed, 0 <= seed <= LARGEST_SEED, f"of at least 0 and at most {LARGEST_SEED}")


def check_max_seconds(name: str, seconds: float | None) -> None:
    """Raise ``ConfigError`` for a time limit that is not above 0."""
    if seconds is not None:
        _require(name, seconds, seconds > 0, "above 0")


def check(config: Config) -> None:
    """Raise ``ConfigError``, naming the field, where settings make no sense by themselves or together."""
    check_model(config.model)
    data, training, optimizer = config.data, config.training, config.optimizer
    schedule, evaluation, logging = config.schedule, config.evaluation, config.logging
    _require("data.near_threshold", data.near_threshold, 0 < data.near_threshold <= 1, "above 0, at most 1")
    _at_least("data.near_words", data.near_words, 1)
    _require(
        "data.validation_fraction",
        data.validation_fraction,
        0 < data.validation_fraction < 1,
        "above 0 and below 1",
    )
    _check_control(data)
    _check_tokenizer(config.tokenizer)
    _check_windows(config.windows, config.model.context_length)
    if config.windows.documents is Documents.separate or config.windows.truncation:
        check_separable(config.model, "windows.documents separate and windows.truncation")
    kind, execution = config.model.architecture, config.precision.execution
    if kind not in BLOCKWISE:
        for name, value, usual in (
            ("precision.execution", execution, Execution.eager),
            (
                "training.activation_checkpointing",
                training.activation_checkpointing,
                ActivationCheckpointing.none,
            ),
        ):
            if value is not usual:
                raise ConfigError(
                    f"{name} is {value}, which is for the blocks of a transformer or an encoder, not {kind}; "
                    f"leave it {usual}"
                )
    if config.finetuning.task is TaskKind.instruct:
        check_separable(config.model, "finetuning.task instruct, which packs conversations,")
    _check_finetuning(config)
    _at_least("training.steps", training.steps, 0)
    _at_least("training.epochs", training.epochs, 0)
    if (training.steps == 0) == (training.epochs == 0):
        raise ConfigError(
            f"training.steps is {training.steps} and training.epochs is {training.epochs:g}; "
            "set exactly one of them and leave the other 0"
        )
    _at_least("training.batch_size", training.batch_size, 1)
    _at_least("training.micro_batch_size", training.micro_batch_size, 0)
    _at_least("training.batch_growth_steps", training.batch_growth_steps, 0)
    first = training.initial_batch_size
    _require(
        "training.initial_batch_size",
        first,
        0 <= first <= training.batch_size,
        f"from 0 to training.batch_size, {training.batch_size}",
    )
    if bool(first) != bool(training.batch_growth_steps):
        raise ConfigError(
            f"training.initial_batch_size is {first} and training.batch_growth_steps is "
            f"{training.batch_growth_steps}; a batch that grows needs both, any other neither"
        )
    average = training.ema_decay
    _require("training.ema_decay", average, 0 <= average < 1, "at least 0 and below 1")
    for name in ("gradient_clip", "balance_loss", "router_z_loss"):
        _at_least(f"training.{name}", getattr(training, name), 0)
    _at_least("optimizer.learning_rate", optimizer.learning_rate, 0)
    for name in ("beta1", "beta2", "momentum"):
        value = getattr(optimizer, name)
        _require(f"optimizer.{name}", value, 0 <= value < 1, "at least 0 and below 1")
    _require("optimizer.epsilon", optimizer.epsilon, optimizer.epsilon > 0, "above 0")
    _at_least("optimizer.weight_decay", optimizer.weight_decay, 0)
    _at_least("schedule.warmup_steps", schedule.warmup_steps, 0)
    for name in ("final_fraction", "decay_fraction"):
        value = getattr(schedule, name)
        _require(f"schedule.{name}", value, 0 <= value <= 1, "from 0 to 1")
    for name in ("every", "tokens", "patience"):
        _at_least(f"evaluation.{name}", getattr(evaluation, name), 0)
    _at_least("runtime.threads", config.runtime.threads, 0)
    check_seed("runtime.seed", config.runtime.seed)
    _at_least("checkpointing.every", config.checkpointing.every, 0)
    _at_least("checkpointing.keep", config.checkpointing.keep, 1)
    _at_least("logging.every", logging.every, 1)
    _at_least("logging.sample_every", logging.sample_every, 0)
    _at_least("logging.sample_tokens", logging.sample_tokens, 0)


def _check_control(data: DataConfig) -> None:
    names = data.control
    if len(set(names)) < len(names) or not all(
        name.strip() and len(name.splitlines()) == 1 for name in names
    ):
        raise ConfigError(
            f"data.control is {list(names)}; expected different names of fields, none empty, each on one line"
        )
    omitted = data.control_dropout
    _require("data.control_dropout", omitted, 0 <= omitted < 1, "at least 0 and below 1")
    if data.text_field in names:
        raise ConfigError(f"data.control names '{data.text_field}', which is the text itself; leave it out")


def _check_finetuning(config: Config) -> None:
    settings, lora = config.finetuning, config.lora
    for name in ("language_modeling", "head_learning_rate", "unfreeze_every"):
        value = getattr(settings, name)
        _require(f"finetuning.{name}", value, 0 <= value < math.inf, "of 0 or more, and finite")
    check_lora(lora)
    if lora.rank and settings.unfreeze_every:
        raise ConfigError(
            "finetuning.unfreeze_every cannot go with lora.rank: LoRA freezes the blocks for good"
        )
    if lora.rank and not settings.model:
        raise ConfigError("lora.rank needs a trained model to change; leave it 0, or name finetuning.model")
    headless = settings.task in (TaskKind.pretraining, TaskKind.instruct)
    if settings.unfreeze_every and headless:
        raise ConfigError(
            f"finetuning.unfreeze_every begins with the head, which {settings.task} has none of; leave it 0"
        )
    if settings.class_weights is ClassWeights.balanced and (headless or settings.task is TaskKind.choice):
        raise ConfigError(f"finetuning.class_weights is for labels, which {settings.task} has none of")
    _check_unused(config, headless)
    if settings.reference_kl and not (headless and settings.model):
        raise ConfigError(
            "finetuning.reference_kl compares with the model that training starts from, in continued pretraining and "
            "instruction tuning; leave it out"
        )
    pairs = config.model.architecture is Architecture.encoder_decoder
    if settings.task is TaskKind.pretraining and not pairs:
        return
    _check_example_data(config)
    if not settings.model and not pairs:
        raise ConfigError(
            f"finetuning.task is {settings.task}; name the model to begin from, finetuning.model"
        )
    if config.training.batch_growth_steps:
        raise ConfigError("training.batch_growth_steps is for pretraining; tasks have batches of one size")


def _check_example_data(config: Config) -> None:
    """Raise ``ConfigError`` for settings of text that tables of examples do not have."""
    names = ["text_field", "control", "clean", "deduplicate", "split"]
    names += ["validation_fraction"] if config.finetuning.validation else []
    for name in names:
        if getattr(config.data, name) != getattr(DataConfig(), name):
            why = "held-out examples are given" if name == "validation_fraction" else "it is for text"
            raise ConfigError(
                f"data.{name} changes nothing for examples of {config.finetuning.task}: {why}; leave it out"
            )


def _check_unused(config: Config, headless: bool) -> None:
    """Raise ``ConfigError`` for settings of other tasks than the one that is asked for."""
    task = config.finetuning.task
    pairs = config.model.architecture is Architecture.encoder_decoder
    of_text = task is TaskKind.pretraining and not pairs
    meaningless = [
        *(["answer_columns"] if task is not TaskKind.choice else []),
        *(["chat_template"] if task is not TaskKind.instruct else []),
        *(["head_learning_rate", "language_modeling"] if headless else []),
        *(["data"] if task is TaskKind.pretraining else []),
        *(["validation", "text_columns", "label_column"] if of_text else []),
    ]
    default = FinetuningConfig()
    for name in meaningless:
        if getattr(config.finetuning, name) != getattr(default, name):
            raise ConfigError(f"finetuning.{name} means nothing for {task}; leave it out")
    if not config.lora.rank and config.lora != LoraConfig():
        raise ConfigError(
            "lora is set, and lora.rank is 0, which is none; give a rank, or leave the rest out"
        )


def _check_tokenizer(tokenizer: TokenizerConfig) -> None:
    names = tokenizer.special_tokens
    least = 257 + len(names)
    entries = tokenizer.vocab_size
    expected = f"of 0, or at least {least} for the bytes and the special tokens"
    _require("tokenizer.vocab_size", entries, entries == 0 or entries >= least, expected)
    _at_least("tokenizer.merges", tokenizer.merges, 1)
    if len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ConfigError(f"tokenizer.special_tokens are {list(names)}; expected different names, none empty")


def _check_windows(windows: WindowsConfig, context_length: int) -> None:
    _at_least("windows.stride", windows.stride, 0)
    _require("windows.truncation", windows.truncation, 0 <= windows.truncation <= 1, "from 0 to 1")
    weights = windows.weights
    if weights and (min(weights) < 0 or not 0 < sum(weights) < math.inf):
        raise ConfigError(
            f"windows.weights are {weights}; expected numbers of 0 or more, at least one above 0"
        )
    if any(0 < weight < sum(weights) * LEAST_WEIGHT for weight in weights):
        raise ConfigError(
            f"windows.weights are {weights}; expected each to be 0, or {LEAST_WEIGHT:g} of all or more"
        )
    _at_least("windows.min_length", windows.min_length, 0)
    times, rest = divmod(context_length, windows.min_length or context_length)
    if rest or times & (times - 1):
        raise ConfigError(
            f"windows.min_length is {windows.min_length}; expected model.context_length, {context_length}, "
            "halved some times over, or 0"
        )


def check_lora(lora: LoraConfig) -> None:
    """``check`` for the settings of LoRA."""
    _at_least("lora.rank", lora.rank, 0)
    _require("lora.alpha", lora.alpha, 0 < lora.alpha < math.inf, "above 0, and finite")
    _require("lora.dropout", lora.dropout, 0 <= lora.dropout < 1, "at least 0 and below 1")


def check_generation(generation: GenerationConfig) -> None:
    """``check`` for the settings of generation."""
    for name, most in (
        ("max_tokens", MOST_GENERATED),
        ("min_tokens", MOST_GENERATED),
        ("top_k", LARGEST_TOP_K),
        ("no_repeat_ngram", MOST_NGRAM),
        ("alternatives", MOST_LISTED),
    ):
        value = getattr(generation, name)
        _require(name, value, 0 <= value <= most, f"from 0 to {most:,}")
    check_seed("seed", generation.seed)
    listed = generation.alternatives * generation.max_tokens
    if listed > MOST_LISTED_TOKENS:
        raise ConfigError(
            f"alternatives times max_tokens is {listed:,}; expected at most {MOST_LISTED_TOKENS:,}; lower either"
        )
    if len(generation.logit_bias) > MOST_BIASES:
        raise ConfigError(
            f"logit_bias has {len(generation.logit_bias):,} entries; expected at most {MOST_BIASES:,}"
        )
    _require(
        "temperature",
        generation.temperature,
        0 <= generation.temperature < math.inf,
        "of 0 or more, and finite",
    )
    _require("top_p", generation.top_p, 0 < generation.top_p <= 1, "above 0 and at most 1")
    _require("min_p", generation.min_p, 0 <= generation.min_p <= 1, "from 0 to 1")
    penalty = generation.repetition_penalty
    _require("repetition_penalty", penalty, 1e-3 <= penalty <= 1e3, "from 0.001 to 1,000")
    added = {name: getattr(generation, name) for name in ("frequency_penalty", "presence_penalty")}
    for name, value in [*added.items(), *(("logit_bias", bias) for _, bias in generation.logit_bias)]:
        _require(name, value, abs(value) <= MOST_ADDED, f"from -{MOST_ADDED:g} to {MOST_ADDED:g}")
    _at_least("max_seconds", generation.max_seconds, 0)
    if generation.min_tokens > generation.max_tokens:
        raise ConfigError(
            f"min_tokens is {generation.min_tokens}, more than max_tokens, {generation.max_tokens}"
        )
    for name in ("stop", "banned", "forced"):
        texts = getattr(generation, name)
        if len(texts) > MOST_TEXTS:
            raise ConfigError(f"{name} has {len(texts):,} texts; expected at most {MOST_TEXTS:,}")
        if (longest := max(map(len, texts), default=0)) > LONGEST_TEXT:
            raise ConfigError(
                f"{name} holds a text of {longest:,} characters; expected at most {LONGEST_TEXT:,}"
            )
        if "" in texts:
            raise ConfigError(f"{name} holds an empty text, which every text holds; leave it out")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise ConfigError(f"{name} holds a lone surrogate, which is not a character")
    forms = [name for name in ("regex", "json_schema") if getattr(generation, name)]
    others = [name for name in ("forced", "stop", "min_tokens") if getattr(generation, name)]
    if forms and (against := forms[1:] + others):
        raise ConfigError(
            f"{against[0]} cannot go with {forms[0]}, which alone says what is written and when it ends; "
            "leave one out"
        )


def check_model(model: ModelConfig) -> None:
    """The checks of ``check`` that concern the architecture."""
    _check_architecture(model)
    for name in ("context_length", "n_layers", "d_model", "n_heads"):
        _at_least(f"model.{name}", getattr(model, name), 1)
    for name in ("vocab_size", "n_kv_heads", "d_head", "d_ff"):
        _at_least(f"model.{name}", getattr(model, name), 0)
    for name in (
        "context_length",
        "d_model",
        "n_heads",
        "vocab_size",
        "n_kv_heads",
        "d_head",
        "d_ff",
        "n_experts",
    ):
        value = getattr(model, name)
        _require(f"model.{name}", value, value <= LARGEST_SIZE, f"of at most {LARGEST_SIZE:,}")
    _require("model.n_layers", model.n_layers, model.n_layers <= MOST_LAYERS, f"of at most {MOST_LAYERS:,}")
    _require("model.dropout", model.dropout, 0 <= model.dropout < 1, "at least 0 and below 1")
    if model.architecture not in TRANSFORMERS:
        return
    _require("model.norm_epsilon", model.norm_epsilon, model.norm_epsilon > 0, "above 0")
    _require("model.rotary_base", model.rotary_base, model.rotary_base > 1, "above 1")
    if model.d_head == 0 and model.d_model % model.n_heads:
        raise ConfigError(
            f"model.d_model is {model.d_model}, which model.n_heads = {model.n_heads} does not divide; "
            f"try d_model {model.d_model // model.n_heads * model.n_heads or model.n_heads}"
        )
    _check_layers(model)
    _check_attention(model)
    _check_experts(model)
    kv_heads = model.n_kv_heads or model.n_heads
    if model.n_heads % kv_heads:
        raise ConfigError(
            f"model.n_kv_heads is {kv_heads}, which does not divide model.n_heads = {model.n_heads}"
        )
    d_head = model.d_head or model.d_model // model.n_heads
    if model.positions is Positions.rotary and d_head % 2:
        raise ConfigError(
            f"model.d_head is {d_head}; rotary positions turn pairs of numbers, so it must be even"
        )


def _check_architecture(model: ModelConfig) -> None:
    """Settings that the architecture does not have."""
    kind, used, default = model.architecture, USED.get(model.architecture), ModelConfig()
    for name in (field.name for field in dataclasses.fields(model)):
        meant = OWN.get(name, kind) is kind if used is None else name in used
        meant = meant and not (kind is Architecture.encoder_decoder and name in WHOLE)
        if name != "architecture" and not meant and getattr(model, name) != getattr(default, name):
            raise ConfigError(f"model.{name} means nothing for {kind}; leave it out")
    _require("model.segments", model.segments, model.segments in (0, 2), "of 0 or 2")
    encodes = kind in (Architecture.encoder, Architecture.encoder_decoder)
    if encodes and model.attention is not Attention.full:
        raise ConfigError(
            f"model.attention is {model.attention}, which looks back only; of {kind} it is full"
        )
    order, discount = model.ngram_order, model.ngram_discount
    _require("model.ngram_order", order, 0 <= order <= MOST_ORDER, f"from 0 to {MOST_ORDER}")
    _require("model.ngram_discount", discount, 0 <= discount < 1, "at least 0 and below 1")


def check_separable(model: ModelConfig, what: str) -> None:
    """Raise ``ConfigError`` where the documents of a window cannot be kept from seeing each other."""
    summed = model.attention in RECURRENT
    if summed or model.architecture not in TRANSFORMERS:
        kind = f"{model.attention} attention" if summed else model.architecture
        raise ConfigError(
            f"{what} keep the documents of a window apart, which {kind} cannot: its past is one sum"
        )


def _check_layers(model: ModelConfig) -> None:
    distinct = model.distinct_layers
    if distinct < 0 or distinct > model.n_layers or (distinct and model.n_layers % distinct):
        raise ConfigError(
            f"model.distinct_layers is {distinct}; expected 0 or a divisor of model.n_layers, {model.n_layers}"
        )


def _check_experts(model: ModelConfig) -> None:
    _at_least("model.n_experts", model.n_experts, 0)
    default = ModelConfig()
    if not model.n_experts:
        for name in ("experts_per_token", "capacity_factor"):
            if getattr(model, name) != getattr(default, name):
                raise ConfigError(
                    f"model.{name} is set, and model.n_experts is 0, which is none; set both or neither"
                )
        return
    if model.distinct_layers:
        raise ConfigError("model.n_experts are chosen layer by layer; leave model.distinct_layers 0")
    chosen, expected = model.experts_per_token, f"from 1 to model.n_experts, {model.n_experts}"
    _require("model.experts_per_token", chosen, 1 <= chosen <= model.n_experts, expected)
    _require(
        "model.capacity_factor",
        model.capacity_factor,
        0 < model.capacity_factor < math.inf,
        "above 0, and finite",
    )


def _check_attention(model: ModelConfig) -> None:
    """The checks of what attention sees."""
    pattern, window = model.attention, model.attention_window
    if pattern in WINDOWED:
        expected = f"from 2 to model.context_length, {model.context_length}, for {pattern} attention"
        _require("model.attention_window", window, 2 <= window <= model.context_length, expected)
    elif window:
        raise ConfigError(
            f"model.attention_window is {window}, and {pattern} attention has none; leave it 0, or set model.attention "
            f"to {' or '.join(WINDOWED)}"
        )
    if pattern in RECURRENT and model.positions is Positions.rotary:
        raise ConfigError(
            f"model.positions are rotary, and {pattern} attention has no product of query and key to turn; try none, "
            "learned or sinusoidal"
        )


def _at_least(name: str, value: float, least: float) -> None:
    _require(name, value, value >= least, f"at least {least}")


def _require(name: str, value: float, holds: bool, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; expected a value {expected}")
