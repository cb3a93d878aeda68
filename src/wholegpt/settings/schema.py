"""Every setting of a run, as frozen dataclasses.

The same ``Config`` is made from a YAML file, from Python and from the command line, and a field's
docstring is its help text everywhere. A zero in a field that says so means "derived from the others";
``checks.complete_model`` and the start of training fill those in, so that a run's ``config.yaml``
holds no zero of that kind and repeats the run exactly.
"""

from dataclasses import dataclass, field

from wholegpt.settings.choices import (
    ActivationCheckpointing,
    Architecture,
    Attention,
    AttentionKernel,
    Bias,
    ClassWeights,
    Clean,
    Deduplicate,
    Determinism,
    Documents,
    Dtype,
    Embeddings,
    Execution,
    FeedForward,
    Initialization,
    Norm,
    Normalization,
    NormPlacement,
    OnBadLine,
    OnBadText,
    OptimizerKind,
    Positions,
    QueryKeyNorm,
    ScheduleKind,
    Split,
    TaskKind,
    TokenizerKind,
)


@dataclass(frozen=True)
class ModelConfig:
    """The architecture: a transformer of any kind, or what came before it."""

    architecture: Architecture = Architecture.transformer
    """A transformer; one that sees both sides and finds hidden tokens (encoder); both of them, from text to text
    (encoder_decoder); a recurrent network (elman, gru, lstm); or counts of runs of tokens (ngram)."""
    vocab_size: int = 0
    """V: tokens in the vocabulary. 0: the tokenizer's."""
    context_length: int = 256
    """τ: tokens the model can see at once."""
    n_layers: int = 4
    """L: number of blocks."""
    d_model: int = 256
    """D: width of the residual stream."""
    n_heads: int = 4
    """H: query heads in each attention layer."""
    n_kv_heads: int = 0
    """Key-value heads, shared by groups of query heads. 0: as many as n_heads."""
    d_head: int = 0
    """K: width of a head. 0: d_model / n_heads."""
    d_ff: int = 0
    """Width of the feed-forward layer. 0: 4·d_model; for swiglu 8/3·d_model, rounded up to a multiple of 64."""
    distinct_layers: int = 0
    """Blocks with weights of their own, which the layers use in turn. 0: as many as n_layers."""
    attention: Attention = Attention.full
    """What a position takes from those before it: from all (full), the last attention_window (sliding_window), these
    and every attention_window-th (strided), all in constant time a token (linear), or their mean (average)."""
    attention_window: int = 0
    """W of sliding_window and strided attention."""
    positions: Positions = Positions.rotary
    """How positions enter: a learned embedding, one of sines, a rotation of queries and keys, or not at all."""
    rotary_base: float = 10_000.0
    """Base of the rotary frequencies (rotary positions only)."""
    norm: Norm = Norm.rms_norm
    """Normalisation of the blocks."""
    norm_placement: NormPlacement = NormPlacement.pre
    """Before the sublayers (pre) or after the residual sums, as in GPT-1 (post)."""
    norm_epsilon: float = 1e-6
    """Added to the variance before its square root."""
    query_key_norm: QueryKeyNorm = QueryKeyNorm.rms_norm
    """Normalisation of queries and keys per head."""
    feed_forward: FeedForward = FeedForward.swiglu
    """Feed-forward layer: with exact GELU, its tanh approximation, ReLU, its square, or the gated SwiGLU."""
    n_experts: int = 0
    """Feed-forward layers of each block, of which a router gives every token some (Switch). 0: one, for all tokens."""
    experts_per_token: int = 1
    """Experts that a token goes through."""
    capacity_factor: float = 1.25
    """Tokens that an expert takes in training, over its share if all had as many; the rest is dropped by the layer."""
    bias: Bias = Bias.none
    """Biases in the linear layers."""
    embeddings: Embeddings = Embeddings.tied
    """Share the token embedding with the output projection."""
    dropout: float = 0.0
    """Probability of zeroing an attention weight, a residual branch's output, an embedding."""
    separator: int = -1
    """Id of the token between source and target of an encoder_decoder; that of its template where it is trained."""
    segments: int = 0
    """Segment embeddings of an encoder: 2, for the first and the second text of a task; or 0."""
    ngram_order: int = 5
    """Tokens of the longest runs that are counted (ngram): 1 is the unigram, 0 the uniform distribution."""
    ngram_discount: float = 0.0
    """What Kneser–Ney smoothing takes from every count. 0: estimated, from how many runs occur once and twice."""


@dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes token ids."""

    kind: TokenizerKind = TokenizerKind.bpe
    """Byte-level byte-pair encoding (GPT-2's), GPT-1's (lower-cased words with marked ends), one token a character, or
    one a byte."""
    vocab_size: int = 0
    """Entries to learn, end-of-text included (bpe). 0: by the amount of text, 1,024 for a megabyte."""
    merges: int = 40_000
    """Merges to learn, besides the text's own symbols (gpt1)."""
    normalization: Normalization = Normalization.none
    """Unicode form that text is brought into first: none, nfc (composed) or nfkc (compatibility characters too).
    gpt1 has its own."""
    lowercase: bool = False
    """Read text in lower case. gpt1 always does."""
    special_tokens: tuple[str, ...] = ()
    """Names of further tokens to reserve, which no text becomes, such as <|start|> <|delimiter|> <|classify|> of task
    formats. vocab_size counts them."""
    path: str = ""
    """A tokenizer.json, or a folder holding encoder.json and vocab.bpe; used instead of training one."""


@dataclass(frozen=True)
class DataConfig:
    """Where the text comes from and how it is split."""

    source: tuple[str, ...] = ()
    """Corpus names, text files, folders, tables (JSON lines, JSON, CSV, TSV, Parquet), web pages, notebooks, each
    perhaps compressed (gzip, bzip2, xz, zstd), `-` for standard input, hf:NAME for a dataset of the Hugging Face hub;
    or a folder made by `data prepare`."""
    text_field: str = ""
    """Field or column that holds the text. Empty: text or another likely name, else that with the longest text."""
    encoding: str = "utf-8"
    """Character encoding of text files."""
    on_bad_text: OnBadText = "stop"
    """Bytes that are no text: stop, replace them by U+FFFD, or skip the document (a very long one from there on)."""
    on_bad_line: OnBadLine = "stop"
    """Lines and records of tables that are broken, or are no examples for lack of a text or a label: stop, or skip
    them."""
    control: tuple[str, ...] = ()
    """Fields of the records, such as sentiment or domain, that stand as one line before each document's text, so that
    `generate --control` can ask for them. `length` (short, medium, long) is derived where records have none."""
    control_dropout: float = 0.1
    """Share of the documents that stand without this line, for `generate --guidance`, which compares both."""
    clean: Clean = "none"
    """Repair text as GPT-1's was (ftfy): characters decoded wrongly, curled quotes, ligatures, HTML entities."""
    deduplicate: Deduplicate = "none"
    """Leave out documents that are copies of earlier ones but for case and white space (exact), or nearly (near)."""
    near_threshold: float = 0.45
    """Similarity from which documents are nearly the same: the shared part of all their runs of near_words words."""
    near_words: int = 3
    """Words in a row that are compared; a changed word changes so many runs."""
    split: Split = Split.automatic
    """What is held out. automatic: whole documents where there are at least 50 and enough small ones, else the end of
    each source's text."""
    validation_fraction: float = 0.1
    """Share of the text that is held out: of its bytes in whole documents, or of its characters."""
    license: str = ""
    """Licence of the text, for its data card."""
    card: str = ""
    """SHA-256 that the data card gives for the data; a run writes it down. Where given, other data is warned of."""


@dataclass(frozen=True)
class WindowsConfig:
    """How the training text is cut into windows of context_length tokens."""

    documents: Documents = Documents.joined
    """joined: a window is a stretch of text, across the ends of documents. separate: the same, with a block-diagonal
    attention mask and restarted positions, so that documents do not see each other."""
    stride: int = 0
    """Tokens from the start of a window to that of the next. 0: context_length, so that no token comes twice."""
    truncation: float = 0.0
    """Probability that a window is cut at a random place into two that do not see each other."""
    weights: tuple[float, ...] = ()
    """How often windows come from each source, in the order of data.source, one number each. Empty: as often as it has
    text."""
    min_length: int = 0
    """Each step's windows are cut into equal ones of a length drawn from context_length, its half, its quarter and so
    on down to this. 0: context_length always."""


@dataclass(frozen=True)
class FinetuningConfig:
    """What a trained model is adapted to (Radford et al. 2018, section 3.2)."""

    task: TaskKind = TaskKind.pretraining
    """What the model learns."""
    model: str = ""
    """Run, model folder or preset that it begins from. Empty: nothing, with random weights."""
    initialization: Initialization = Initialization.trained
    """Begin with that model's weights, or with random ones in its place, to see what they are worth."""
    data: str = ""
    """Training examples: a table whose name ends in .csv, .tsv, .jsonl, .json or .parquet, compressed or not."""
    validation: str = ""
    """Held-out examples. Empty: data.validation_fraction of the training ones, of each label alike."""
    text_columns: tuple[str, ...] = ()
    """Columns of the text, or of the two texts; of choices the context and the question. Empty: detected."""
    answer_columns: tuple[str, ...] = ()
    """Of choices: the column with lists of answers, or one column for each answer. Empty: detected."""
    label_column: str = ""
    """Column of the label, the score, or the right answer. Empty: detected."""
    chat_template: str = ""
    """Of instruct: a file with the Jinja template that conversations are written by. Empty: the built-in one."""
    language_modeling: float = 0.5
    """Weight of the language-modelling loss of the examples' texts beside that of the task (lambda of E11)."""
    head_learning_rate: float = 0.0
    """Peak learning rate of the new head. 0: that of the rest."""
    unfreeze_every: int = 0
    """Train the head first, and one block more, from the last, each time so many steps are done. 0: all at once."""
    class_weights: ClassWeights = ClassWeights.equal
    """What an example of each class weighs in the loss."""
    reference_kl: bool = False
    """Keep the model of step 0 as a frozen reference, and log the KL divergence of the trained model from it, in nats
    per token (pretraining and instruct). A step takes about two thirds longer."""


@dataclass(frozen=True)
class LoraConfig:
    """A trained change of low rank beside frozen weights (LoRA)."""

    rank: int = 0
    """R, the rank of each layer's change. 0: none; all weights are trained."""
    alpha: float = 16.0
    """The change is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Probability of zeroing what a change reads."""
    targets: tuple[str, ...] = ("blocks.*",)
    """Which linear layers are changed, by name: * stands for anything, as in blocks.*.attention.*"""


@dataclass(frozen=True)
class TrainingConfig:
    """How much, and in what portions."""

    steps: int = 1000
    """Optimiser steps. 0: from epochs."""
    epochs: float = 0.0
    """Passes over the training text; used when steps is 0."""
    batch_size: int = 8
    """Windows of context_length tokens in one optimiser step."""
    initial_batch_size: int = 0
    """Windows in the first step, from where they grow evenly to batch_size. 0: batch_size from the start."""
    batch_growth_steps: int = 0
    """Steps over which the batch grows."""
    micro_batch_size: int = 0
    """Windows computed at once; their gradients add up to the step's. 0: as many as memory holds."""
    gradient_clip: float = 1.0
    """Largest global L2 norm of the gradient; longer ones are scaled down to it. 0: never."""
    ema_decay: float = 0.0
    """Decay of a running average of the weights, which then is what is measured, sampled and saved. 0: none."""
    balance_loss: float = 0.01
    """Weight of the loss that keeps the experts of a mixture alike in use."""
    router_z_loss: float = 0.001
    """Weight of the loss that keeps a router's logits small."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    """Gradient checkpointing: less memory, about a third more computation."""


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay on matrices (E9), or Muon for the matrices of the blocks."""

    kind: OptimizerKind = OptimizerKind.muon
    """AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the rest."""
    learning_rate: float = 0.0
    """Peak of the schedule. 0: 0.006 for muon, 0.002 for adamw."""
    beta1: float = 0.9
    """Decay of the mean of gradients."""
    beta2: float = 0.95
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the mean square."""
    weight_decay: float = 0.1
    """Decay of the weight matrices per step, in units of the learning rate. Vectors are never decayed."""
    momentum: float = 0.95
    """Decay of Muon's sum of gradients (muon only)."""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the steps (E10)."""

    kind: ScheduleKind = ScheduleKind.cosine
    """Shape after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear rise to the peak. 1: none. 0: a tenth of all steps, at most 20, which also replaces a warm-up
    that would last as long as the run."""
    final_fraction: float = 0.1
    """Where cosine and warmup_stable_decay end, as a share of the peak."""
    decay_fraction: float = 0.2
    """Share of the steps in which warmup_stable_decay goes down."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Measuring on held-out text while training."""

    every: int = 100
    """Steps between evaluations; one more follows the last step. 0: only that one."""
    tokens: int = 20_000
    """Validation tokens scored while training, in windows spread over the whole text. 0: all of them."""
    patience: int = 5
    """Evaluations without improvement after which training stops. 0: never."""


@dataclass(frozen=True)
class PrecisionConfig:
    """Choices that can change the last bits; fixed before step 1 and obeyed on resume."""

    dtype: Dtype = Dtype.automatic
    """Format of the large products. automatic: bfloat16 where the processor has it, else float32.
    float16 scales the loss up, so that small gradients do not vanish."""
    attention: AttentionKernel = AttentionKernel.automatic
    """automatic: blocked on a CPU (plain where compiled), fused on an accelerator."""
    execution: Execution = Execution.eager
    """Operation by operation, or compiled; eager where compiling fails, which is said."""


@dataclass(frozen=True)
class RuntimeConfig:
    """The machine's part; fixed before step 1 and obeyed on resume."""

    device: str = "automatic"
    """cpu, cuda, cuda:1, mps. automatic: an accelerator where there is one."""
    threads: int = 0
    """CPU threads. 0: PyTorch's choice."""
    seed: int = 1337
    """The one seed of everything random."""
    determinism: Determinism = Determinism.fast
    """strict: only operations that repeat bit for bit on accelerators, at some cost in speed and memory."""


@dataclass(frozen=True)
class CheckpointingConfig:
    """Saving the run."""

    every: int = 200
    """Steps between checkpoints; one more is written at the end and when interrupted. 0: only then."""
    keep: int = 2
    """Newest checkpoints kept; the best one is kept besides."""


@dataclass(frozen=True)
class LoggingConfig:
    """What is written down while training."""

    every: int = 10
    """Steps between lines in metrics.jsonl."""
    sample_every: int = 200
    """Steps between sample texts; one more follows the last step. 0: only that one."""
    sample_prompt: str = ""
    """What the samples continue. Empty: they start from end-of-text, or from a line break where the training text is
    one document, which has none."""
    sample_tokens: int = 120
    """Length of a sample in tokens."""


@dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    windows: WindowsConfig = field(default_factory=WindowsConfig)
    finetuning: FinetuningConfig = field(default_factory=FinetuningConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class GenerationConfig:
    """How text is drawn from a model."""

    max_tokens: int = 200
    """Most tokens to write."""
    temperature: float = 0.8
    """Divides the logits: 0 always takes the likeliest token, 1 samples the model's own distribution."""
    top_k: int = 0
    """Sample among the k likeliest tokens only. 0: all."""
    top_p: float = 1.0
    """Sample among the likeliest tokens whose probabilities first reach this sum."""
    min_p: float = 0.0
    """Sample among tokens that are at least this share as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Makes every token that the text or the prompt holds less likely: divides its logit, or multiplies one below 0."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time it was written."""
    presence_penalty: float = 0.0
    """Taken from a token's logit if it was written at all."""
    no_repeat_ngram: int = 0
    """Never write a run of so many tokens twice, the prompt's included. 0: no limit."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Token ids, each with what is added to its logit."""
    banned: tuple[str, ...] = ()
    """Texts that are never written, in whatever tokens."""
    forced: tuple[str, ...] = ()
    """Texts that are written at the latest when the limit of tokens leaves just room for them."""
    min_tokens: int = 0
    """Tokens to write before the text may end by itself or by a stop text."""
    stop: tuple[str, ...] = ()
    """Texts that end the completion; they are not part of it."""
    regex: str = ""
    """A regular expression that the whole text matches, in the syntax of Rust's regex."""
    json_schema: str = ""
    """A JSON schema, as JSON text; the text is JSON that it allows."""
    max_seconds: float = 0.0
    """Time after which the completion ends. 0: none."""
    alternatives: int = 0
    """For each token written, list so many of the likeliest with their probabilities."""
    seed: int = 1337
    """The same seed gives the same text."""
