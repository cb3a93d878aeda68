"""The named choices that settings have."""

from enum import StrEnum
from typing import Literal

OnBadText = Literal["stop", "replace", "skip"]
OnBadLine = Literal["stop", "skip"]
Deduplicate = Literal["none", "exact", "near"]
Clean = Literal["none", "ftfy"]


class Architecture(StrEnum):
    """What kind of model predicts tokens."""

    transformer = "transformer"
    encoder = "encoder"
    encoder_decoder = "encoder_decoder"
    elman = "elman"
    gru = "gru"
    lstm = "lstm"
    ngram = "ngram"


class Positions(StrEnum):
    """How a token's place in the sequence reaches the model."""

    learned = "learned"
    sinusoidal = "sinusoidal"
    rotary = "rotary"
    none = "none"


class Attention(StrEnum):
    """What each position takes from those before it, and from how many."""

    full = "full"
    """A weighted mean of all (E4)."""
    sliding_window = "sliding_window"
    """Of the last W."""
    strided = "strided"
    """Of the last W, and of every W-th before them."""
    linear = "linear"
    """Of all, by weights that need no softmax: constant time and memory a token."""
    average = "average"
    """The plain mean of all."""


class Norm(StrEnum):
    """Which normalisation the blocks use."""

    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class NormPlacement(StrEnum):
    """Whether a block normalises a sublayer's input (pre) or the residual sum after it (post)."""

    pre = "pre"
    post = "post"


class FeedForward(StrEnum):
    """Which feed-forward layer the blocks use."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    relu_squared = "relu_squared"
    swiglu = "swiglu"


class QueryKeyNorm(StrEnum):
    """Whether queries and keys are normalised per head before their product."""

    none = "none"
    rms_norm = "rms_norm"


class Bias(StrEnum):
    """Whether the linear layers have biases."""

    all = "all"
    none = "none"


class Embeddings(StrEnum):
    """Whether the output projection is the token embedding (tied) or a matrix of its own."""

    tied = "tied"
    untied = "untied"


class TokenizerKind(StrEnum):
    """Which tokenizer is made from the text."""

    bpe = "bpe"
    gpt1 = "gpt1"
    character = "character"
    byte = "byte"


class Normalization(StrEnum):
    """Whether text is brought into a Unicode normalisation form before it is cut into tokens."""

    none = "none"
    nfc = "nfc"
    nfkc = "nfkc"


class Split(StrEnum):
    """How text is held out: whole documents at random, or the end of the text."""

    automatic = "automatic"
    documents = "documents"
    fraction = "fraction"


class Documents(StrEnum):
    """Whether the documents of a window see each other."""

    joined = "joined"
    separate = "separate"


class OptimizerKind(StrEnum):
    """How gradients become updates: AdamW for all, or Muon for the blocks' matrices beside it."""

    adamw = "adamw"
    muon = "muon"


class ScheduleKind(StrEnum):
    """The shape of the learning rate over the steps."""

    cosine = "cosine"
    inverse_square_root = "inverse_square_root"
    warmup_stable_decay = "warmup_stable_decay"
    constant = "constant"


class Dtype(StrEnum):
    """The number format of the large products; weights and optimiser state stay float32."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightFormat(StrEnum):
    """How the weights of a model that only reads and writes are held: as trained, in 16 bits, in 8 or in 4."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class AttentionKernel(StrEnum):
    """Which implementation of E4 runs: plain products, products in blocks for a CPU, or PyTorch's kernel."""

    automatic = "automatic"
    plain = "plain"
    blocked = "blocked"
    fused = "fused"


class Execution(StrEnum):
    """Whether the model runs operation by operation or through torch.compile."""

    eager = "eager"
    compiled = "compiled"


class Recompute(StrEnum):
    """Gradient checkpointing: what is computed again in the backward pass instead of kept."""

    nothing = "nothing"
    blocks = "blocks"


class Determinism(StrEnum):
    """Whether PyTorch may use operations whose result differs from run to run."""

    fast = "fast"
    strict = "strict"


class TaskKind(StrEnum):
    """What a model learns."""

    pretraining = "pretraining"
    """To go on with text."""
    classification = "classification"
    """A text has one of several labels."""
    entailment = "entailment"
    """What follows for a hypothesis from a premise, one of several labels."""
    similarity = "similarity"
    """How alike two texts are, whose order does not matter: a label, or a number."""
    choice = "choice"
    """Which of several answers is right."""
    instruct = "instruct"
    """To answer what is asked, or to write a text after another."""


class Initialization(StrEnum):
    """Which weights fine-tuning begins with."""

    trained = "trained"
    random = "random"


class ClassWeights(StrEnum):
    """What the examples of a class weigh: each the same, or each class as much as any other in all."""

    equal = "equal"
    balanced = "balanced"
