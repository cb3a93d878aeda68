"""The named choices that settings have."""

from enum import StrEnum
from typing import Literal

OnBadText = Literal["stop", "replace", "skip"]
OnBadLine = Literal["stop", "skip"]
Deduplicate = Literal["none", "exact", "near"]
Clean = Literal["none", "ftfy"]


class Choice(StrEnum):
    """A named choice; hyphens and underscores in its name mean the same."""

    @classmethod
    def _missing_(cls, value: object) -> "Choice | None":
        return cls.__members__.get(underscored(value)) if isinstance(value, str) else None


def underscored(name: str) -> str:
    """A name of a setting or a choice as it is stored: hyphens and underscores mean the same."""
    return name.replace("-", "_")


class Architecture(Choice):
    """What kind of model predicts tokens."""

    transformer = "transformer"
    encoder = "encoder"
    encoder_decoder = "encoder_decoder"
    elman = "elman"
    gru = "gru"
    lstm = "lstm"
    ngram = "ngram"


class Positions(Choice):
    """How a token's place in the sequence reaches the model."""

    learned = "learned"
    sinusoidal = "sinusoidal"
    rotary = "rotary"
    none = "none"


class Attention(Choice):
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


class Norm(Choice):
    """Which normalisation the blocks use."""

    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class NormPlacement(Choice):
    """Whether a block normalises a sublayer's input (pre) or the residual sum after it (post)."""

    pre = "pre"
    post = "post"


class FeedForward(Choice):
    """Which feed-forward layer the blocks use."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    relu_squared = "relu_squared"
    swiglu = "swiglu"


class QueryKeyNorm(Choice):
    """Whether queries and keys are normalised per head before their product."""

    none = "none"
    rms_norm = "rms_norm"


class Bias(Choice):
    """Whether the linear layers have biases."""

    all = "all"
    none = "none"


class Embeddings(Choice):
    """Whether the output projection is the token embedding (tied) or a matrix of its own."""

    tied = "tied"
    untied = "untied"


class TokenizerKind(Choice):
    """Which tokenizer is made from the text."""

    bpe = "bpe"
    gpt1 = "gpt1"
    character = "character"
    byte = "byte"


class Normalization(Choice):
    """Whether text is brought into a Unicode normalisation form before it is cut into tokens."""

    none = "none"
    nfc = "nfc"
    nfkc = "nfkc"


class Split(Choice):
    """How text is held out: whole documents at random, or the end of the text."""

    automatic = "automatic"
    documents = "documents"
    fraction = "fraction"


class Documents(Choice):
    """Whether the documents of a window see each other."""

    joined = "joined"
    separate = "separate"


class OptimizerKind(Choice):
    """How gradients become updates: AdamW for all, or Muon for the blocks' matrices beside it."""

    adamw = "adamw"
    muon = "muon"


class ScheduleKind(Choice):
    """The shape of the learning rate over the steps."""

    cosine = "cosine"
    inverse_square_root = "inverse_square_root"
    warmup_stable_decay = "warmup_stable_decay"
    constant = "constant"


class Dtype(Choice):
    """The number format of the large products; weights and optimiser state stay float32."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightFormat(Choice):
    """How the weights of a model that only reads and writes are held: as trained, in 16 bits, in 8 or in 4."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class AttentionKernel(Choice):
    """Which implementation of E4 runs: plain products, products in blocks for a CPU, or PyTorch's kernel."""

    automatic = "automatic"
    plain = "plain"
    blocked = "blocked"
    fused = "fused"


class Execution(Choice):
    """Whether the model runs operation by operation or through torch.compile."""

    eager = "eager"
    compiled = "compiled"


class ActivationCheckpointing(Choice):
    """Gradient checkpointing: what is computed again in the backward pass instead of kept."""

    none = "none"
    blocks = "blocks"


class Determinism(Choice):
    """Whether PyTorch may use operations whose result differs from run to run."""

    fast = "fast"
    strict = "strict"


class TaskKind(Choice):
    """What a model learns."""

    pretraining = "pretraining"
    """Continued pretraining on text."""
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


class Initialization(Choice):
    """Which weights fine-tuning begins with."""

    trained = "trained"
    random = "random"


class ClassWeights(Choice):
    """What the examples of a class weigh: each the same, or each class as much as any other in all."""

    equal = "equal"
    balanced = "balanced"
