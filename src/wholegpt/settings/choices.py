"""The named values of settings."""

from enum import StrEnum
from typing import Literal

OnBadText = Literal["stop", "replace", "skip"]
OnBadLine = Literal["stop", "skip"]
Deduplicate = Literal["none", "exact", "near"]
Clean = Literal["none", "ftfy"]


class Choice(StrEnum):
    """A named value; hyphens and underscores in its name are equivalent."""

    @classmethod
    def _missing_(cls, value: object) -> "Choice | None":
        return cls.__members__.get(underscored(value)) if isinstance(value, str) else None


def underscored(name: str) -> str:
    """Return the name of a setting or a value as it is stored, with underscores for hyphens."""
    return name.replace("-", "_")


class Architecture(Choice):
    """The kind of model."""

    transformer = "transformer"
    encoder = "encoder"
    encoder_decoder = "encoder_decoder"
    elman = "elman"
    gru = "gru"
    lstm = "lstm"
    ngram = "ngram"


class Positions(Choice):
    """The position encoding."""

    learned = "learned"
    sinusoidal = "sinusoidal"
    rotary = "rotary"
    none = "none"


class RotaryScaling(Choice):
    """How the rotary frequencies are lowered for a context longer than that of pretraining."""

    none = "none"
    linear = "linear"
    """All frequencies alike (position interpolation)."""
    llama3 = "llama3"
    """Only the low frequencies, as in Llama 3.1."""


class Attention(Choice):
    """What a position attends to."""

    full = "full"
    """Softmax attention to all previous positions (E4)."""
    sliding_window = "sliding_window"
    """Softmax attention to the last W positions."""
    strided = "strided"
    """Softmax attention to the last W positions and every W-th before them."""
    linear = "linear"
    """Attention without a softmax: constant time and memory per token."""
    average = "average"
    """The mean of all previous positions."""


class Norm(Choice):
    """The normalization layer of the blocks."""

    layer_norm = "layer_norm"
    rms_norm = "rms_norm"


class NormPlacement(Choice):
    """Where a block normalizes: the input of a sublayer (pre), or the residual sum after it (post)."""

    pre = "pre"
    post = "post"


class FeedForward(Choice):
    """The feed-forward layer of the blocks."""

    gelu = "gelu"
    gelu_tanh = "gelu_tanh"
    relu = "relu"
    relu_squared = "relu_squared"
    swiglu = "swiglu"


class QueryKeyNorm(Choice):
    """The normalization of queries and keys, per head."""

    none = "none"
    rms_norm = "rms_norm"


class Bias(Choice):
    """Which linear layers have biases."""

    all = "all"
    query_key_value = "query_key_value"
    """Only the projections to queries, keys and values, as in Qwen2."""
    none = "none"


class Embeddings(Choice):
    """Whether the output projection shares the weights of the token embedding (tied) or not (untied)."""

    tied = "tied"
    untied = "untied"


class TokenizerKind(Choice):
    """The kind of tokenizer."""

    bpe = "bpe"
    gpt1 = "gpt1"
    character = "character"
    byte = "byte"


class Normalization(Choice):
    """The Unicode normalization form of text before tokenization."""

    none = "none"
    nfc = "nfc"
    nfkc = "nfkc"


class Split(Choice):
    """How validation text is held out: random documents, or the end of the text (fraction)."""

    automatic = "automatic"
    documents = "documents"
    fraction = "fraction"


class Documents(Choice):
    """Whether the documents of a window attend to each other."""

    joined = "joined"
    separate = "separate"


class OptimizerKind(Choice):
    """The optimizer: AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the others."""

    adamw = "adamw"
    muon = "muon"


class ScheduleKind(Choice):
    """The shape of the learning rate over the steps."""

    cosine = "cosine"
    inverse_square_root = "inverse_square_root"
    warmup_stable_decay = "warmup_stable_decay"
    constant = "constant"


class Dtype(Choice):
    """The data type of matrix products. Weights and optimizer state stay in float32."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class WeightFormat(Choice):
    """The data type of the weights for inference."""

    automatic = "automatic"
    float32 = "float32"
    bfloat16 = "bfloat16"
    int8 = "int8"
    int4 = "int4"


class AttentionKernel(Choice):
    """The implementation of E4: plain products, blocks for a CPU, or PyTorch's fused kernel."""

    automatic = "automatic"
    plain = "plain"
    blocked = "blocked"
    fused = "fused"


class Execution(Choice):
    """Whether the model runs eagerly or through torch.compile."""

    eager = "eager"
    compiled = "compiled"


class ActivationCheckpointing(Choice):
    """The activations that are recomputed in the backward pass instead of kept in memory."""

    none = "none"
    blocks = "blocks"


class Determinism(Choice):
    """Whether PyTorch may use nondeterministic operations (fast) or not (strict)."""

    fast = "fast"
    strict = "strict"


class Tracker(Choice):
    """A program or service that shows the metrics of runs."""

    tensorboard = "tensorboard"
    wandb = "wandb"
    """Weights & Biases."""
    trackio = "trackio"


class TaskKind(Choice):
    """What a model learns."""

    pretraining = "pretraining"
    """Language modeling on text; continued pretraining if it starts from a model."""
    classification = "classification"
    """One of several labels for a text."""
    entailment = "entailment"
    """One of several labels for a premise and a hypothesis."""
    similarity = "similarity"
    """The similarity of two texts in either order: a label, or a score."""
    choice = "choice"
    """The right one of several answers."""
    instruct = "instruct"
    """Instruction tuning on conversations, or on pairs of a prompt and a completion."""
    reward = "reward"
    """A reward model on pairs of a chosen and a rejected answer (`align`)."""
    dpo = "dpo"
    """Direct preference optimization on pairs of a chosen and a rejected answer (`align`)."""
    ppo = "ppo"
    """Proximal policy optimization of a reward (`align`)."""
    grpo = "grpo"
    """Group relative policy optimization of a reward (`align`)."""


class AlignmentMethod(Choice):
    """How a model learns from preferences or rewards; each is a value of ``TaskKind``, too."""

    reward = "reward"
    dpo = "dpo"
    ppo = "ppo"
    grpo = "grpo"


class Initialization(Choice):
    """The initial weights of fine-tuning."""

    trained = "trained"
    random = "random"


class PreferenceLoss(Choice):
    """The loss of a pair of a chosen and a rejected answer."""

    sigmoid = "sigmoid"
    """That of direct preference optimization (E19)."""
    ipo = "ipo"
    kto = "kto"
    orpo = "orpo"
    simpo = "simpo"


class AdvantageScale(Choice):
    """What the rewards of a group are divided by, after their mean is subtracted."""

    group = "group"
    """Their standard deviation."""
    none = "none"


class PolicyNormalization(Choice):
    """What the policy loss is a mean over."""

    token = "token"
    """All tokens of the step."""
    sequence = "sequence"
    """Completions, of the mean over the tokens of each."""
    constant = "constant"
    """Completions, of the sum over the tokens of each divided by a constant."""


class ClassWeights(Choice):
    """The weights of the classes in the loss: equal per example, or the same total for each class (balanced)."""

    equal = "equal"
    balanced = "balanced"
