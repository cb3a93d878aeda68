"""GPT-1, GPT-2, the modern decoder and their variants, reimplemented from the equations in NumPy alone.

One sequence and one position at a time, in float64. Nothing is imported from the package.
Shapes: T positions, D width, H heads, G key-value heads, K head width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Weights = dict[str, Array]


def layer_norm(x: Array, gain: Array, shift: Array, epsilon: float) -> Array:
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gain + shift


def rms_norm(x: Array, gain: Array, epsilon: float) -> Array:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * gain


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * np.vectorize(lambda number: 0.5 * (1 + math.erf(number / math.sqrt(2))))(x),
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0),
    "relu_squared": lambda x: np.maximum(x, 0) ** 2,
}


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return e / e.sum()


def frequency(i: int, width: int, c: Any) -> float:
    """Return the radians per position of pair i: base^(−2i/K), or less in a model scaled for a longer context."""
    unscaled = c.rotary_base ** (-2 * i / width)
    if c.rotary_scaling == "none":
        return unscaled
    scaled = unscaled / c.rotary_factor
    wavelength = 2 * math.pi / unscaled
    shortest, longest = (
        c.rotary_original_context / limit for limit in (c.rotary_high_freq_factor, c.rotary_low_freq_factor)
    )
    if c.rotary_scaling == "linear" or wavelength > longest:
        return scaled
    if wavelength < shortest:
        return unscaled
    share = (1 / wavelength - 1 / longest) / (1 / shortest - 1 / longest)
    return share * unscaled + (1 - share) * scaled


def rotate(head: Array, position: int, c: Any) -> Array:
    """Rotate each pair (i, i + K/2) by its frequency times the position."""
    half = len(head) // 2
    turned = head.copy()
    for i in range(half):
        angle = position * frequency(i, len(head), c)
        a, b = head[i], head[i + half]
        turned[i] = a * math.cos(angle) - b * math.sin(angle)
        turned[i + half] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def elu_plus_one(x: Array) -> Array:
    return np.where(x > 0, x + 1, np.exp(x))


def sees(t: int, s: int, c: Any) -> bool:
    """Return whether position t attends to position s, which is not after it."""
    if c.attention == "sliding_window":
        return t - s < c.attention_window
    if c.attention == "strided":
        return t - s < c.attention_window or (t - s) % c.attention_window == 0
    return True


def causal_attention(x: Array, w: Weights, prefix: str, c: Any) -> Array:
    """Compute queries, keys and values from one matrix; each position mixes the values up to its own."""
    if c.attention == "average":
        values = x @ w[f"{prefix}.value.weight"].T + w.get(f"{prefix}.value.bias", 0.0)
        means = np.array([values[: t + 1].mean(0) for t in range(len(x))])
        return means @ w[f"{prefix}.output.weight"].T + w.get(f"{prefix}.output.bias", 0.0)
    heads, kv_heads, width = c.n_heads, c.n_kv_heads, c.d_head
    projected = x @ w[f"{prefix}.query_key_value.weight"].T + w.get(f"{prefix}.query_key_value.bias", 0.0)
    projected = projected.reshape(len(x), heads + 2 * kv_heads, width)
    q, k, v = np.split(projected, [heads, heads + kv_heads], axis=1)
    if f"{prefix}.query_norm.weight" in w:
        q = rms_norm(q, w[f"{prefix}.query_norm.weight"], c.norm_epsilon)
        k = rms_norm(k, w[f"{prefix}.key_norm.weight"], c.norm_epsilon)
    if c.positions == "rotary":
        q = np.array([[rotate(h, t, c) for h in row] for t, row in enumerate(q)])
        k = np.array([[rotate(h, t, c) for h in row] for t, row in enumerate(k)])
    mixed = np.zeros((len(x), heads, width))
    for t in range(len(x)):
        for h in range(heads):
            g = h // (heads // kv_heads)
            seen = [s for s in range(t + 1) if sees(t, s, c)]
            if c.attention == "linear":
                weights = np.array([elu_plus_one(q[t, h]) @ elu_plus_one(k[s, g]) for s in seen])
                weights /= weights.sum()
            else:
                weights = softmax(np.array([q[t, h] @ k[s, g] for s in seen]) / math.sqrt(width))
            mixed[t, h] = sum(weight * v[s, g] for weight, s in zip(weights, seen, strict=True))
    return mixed.reshape(len(x), -1) @ w[f"{prefix}.output.weight"].T + w.get(f"{prefix}.output.bias", 0.0)


def experts(x: Array, w: Weights, prefix: str, c: Any) -> Array:
    """Compute a mixture of experts token by token."""
    out = np.zeros_like(x)
    for t, token in enumerate(x):
        p = softmax(w[f"{prefix}.router.weight"] @ token)
        chosen = sorted(range(c.n_experts), key=lambda e: -p[e])[: c.experts_per_token]
        share = sum(p[e] for e in chosen) if len(chosen) > 1 else 1.0
        for e in chosen:
            own: Weights = {}
            for name, weight in w.items():
                if name.startswith(prefix) and "router" not in name:
                    own[name] = weight[e] if name.endswith("bias") else np.split(weight, c.n_experts)[e]
            out[t] += p[e] / share * feed_forward(token[None], own, prefix, c)[0]
    return out


def feed_forward(x: Array, w: Weights, prefix: str, c: Any) -> Array:
    inner = x @ w[f"{prefix}.expand.weight"].T + w.get(f"{prefix}.expand.bias", 0.0)
    if c.feed_forward == "swiglu":
        inner = silu(x @ w[f"{prefix}.gate.weight"].T + w.get(f"{prefix}.gate.bias", 0.0)) * inner
    else:
        inner = ACTIVATIONS[c.feed_forward](inner)
    return inner @ w[f"{prefix}.output.weight"].T + w.get(f"{prefix}.output.bias", 0.0)


def logits(token_ids: list[int], w: Weights, c: Any) -> Array:
    """Return logits of shape (T, V) for one sequence; ``c`` gives only sizes and kinds."""

    def norm(x: Array, name: str) -> Array:
        if c.norm == "rms_norm":
            return rms_norm(x, w[f"{name}.weight"], c.norm_epsilon)
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], c.norm_epsilon)

    h = w["token_embedding.weight"][token_ids]
    if c.positions == "learned":
        h = h + w["position_embedding.weight"][: len(token_ids)]
    if c.positions == "sinusoidal":
        for t, i in np.ndindex(*h.shape):
            angle = t / 10_000 ** ((i - i % 2) / h.shape[1])
            h[t, i] += math.cos(angle) if i % 2 else math.sin(angle)
    for layer in range(c.n_layers):
        block = f"blocks.{layer % (c.distinct_layers or c.n_layers)}"
        think = experts if c.n_experts else feed_forward
        if c.norm_placement == "pre":
            h = h + causal_attention(norm(h, f"{block}.attention_norm"), w, f"{block}.attention", c)
            h = h + think(norm(h, f"{block}.feed_forward_norm"), w, f"{block}.feed_forward", c)
        else:
            h = norm(h + causal_attention(h, w, f"{block}.attention", c), f"{block}.attention_norm")
            h = norm(h + think(h, w, f"{block}.feed_forward", c), f"{block}.feed_forward_norm")
    if c.norm_placement == "pre":
        h = norm(h, "final_norm")
    return h @ w["token_embedding.weight"].T
