"""The whole model in PyTorch, in float64, with every gradient by autograd."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.model.transformer import Transformer

torch: Any = pytest.importorskip("torch")
functional = torch.nn.functional

ANGLES = {
    "clock": [2.0 * math.pi / period for period in (12, 60, 100, 120, 600, 1000)],
    "rotary": [10_000.0 ** (-pair / 6) for pair in range(6)],
}


def turned(x: Any, positions: str) -> Any:
    """Pairs (..., T, 12) turned by matrices."""
    angles = torch.arange(x.shape[-2])[:, None].double() * torch.tensor(ANGLES[positions], dtype=torch.float64)
    even, odd = x[..., 0::2], x[..., 1::2]
    first, second = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
    return torch.stack((first, second), -1).flatten(-2)


def slow_loss(shape: ModelShape, table: Any, p: dict[str, Any], inputs: np.ndarray, targets: np.ndarray) -> Any:
    (batch, length), width = inputs.shape, shape.embed_dim

    def norm(x: Any, name: str) -> Any:
        return functional.layer_norm(x, (width,), p[f"{name}.weight"], p[f"{name}.bias"])

    def linear(x: Any, name: str) -> Any:
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = table[torch.tensor(inputs.astype(np.int64))]
    if shape.positions == "learned":
        x = x + p["wpe.weight"]
    for layer in (f"h.{index}" for index in range(shape.num_layers)):
        qkv = linear(norm(x, f"{layer}.ln_1"), f"{layer}.attn.c_attn")
        q, k, v = qkv.reshape(batch, length, 3, shape.num_heads, -1).permute(2, 0, 3, 1, 4)
        if shape.positions != "learned":
            q, k = (turned(x, shape.positions) for x in (q, k))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(heads.transpose(1, 2).reshape(batch, length, width), f"{layer}.attn.c_proj")
        hidden = functional.gelu(linear(norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"), approximate="tanh")
        x = x + linear(hidden, f"{layer}.mlp.c_proj")
    logits = norm(x, "ln_f") @ table.T
    return functional.cross_entropy(
        logits.flatten(0, 1), torch.tensor(targets.astype(np.int64)).flatten(), reduction="sum"
    )


def compare_with_autograd(shape: ModelShape, read: Callable[[dict[str, Any]], Any]) -> None:
    """Assert that loss and all gradients are PyTorch's; `read` gives the token table as the model reads it."""
    layout, rng = ParameterLayout(shape), np.random.default_rng(5)
    weights = initialise(layout, seed=3).astype(np.float64)
    for view in layout.views(weights).values():
        view += rng.normal(0.0, 0.2, view.shape)
    inputs, targets = rng.integers(0, 131, (2, 2, 70), dtype=np.int32)
    gradient = np.empty_like(weights)
    model = Transformer(shape, 2, dtype=np.float64)
    loss = model.loss_and_gradient(weights, gradient, inputs, targets, scale=1.0, dropout_seed=None)
    theirs = {name: torch.tensor(view, requires_grad=True) for name, view in layout.views(weights).items()}
    expected = slow_loss(shape, read(theirs), theirs, inputs, targets)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, mine in layout.views(gradient).items():
        reference = theirs[name].grad.numpy()
        assert np.abs(mine - reference).max() < 1e-11 * np.abs(reference).max(), name
