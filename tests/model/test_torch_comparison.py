"""Logits, loss and every gradient against GPT2LMHeadModel of Hugging Face transformers with the same weights."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from crystalline_ray.model.config import ModelShape
from crystalline_ray.model.layout import ParameterLayout, initialise
from crystalline_ray.model.transformer import Transformer
from tests.helpers.model_shapes import gpt2_shape

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPES = [
    (gpt2_shape(vocab_size=1000, seq_len=64, embed_dim=128, num_layers=2, num_heads=4), 4),
    (gpt2_shape(vocab_size=131, seq_len=150, embed_dim=36, num_layers=3, num_heads=3), 2),
]

# Largest difference of a tensor relative to its largest element. Both sides round each operation between a weight and
# its gradient to 2**-24 = 6e-8 (float64: 2**-53 = 1e-16), in different orders, and the differences add up like a random
# walk over some hundred roundings. Measured are 1e-6 and 2e-15; ten times as much is allowed.
TOLERANCE = {np.float32: 1e-5, np.float64: 2e-14}


class Results(NamedTuple):
    logits: np.ndarray
    loss: float
    gradients: dict[str, np.ndarray]


def problem(shape: ModelShape, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    layout = ParameterLayout(shape)
    weights = initialise(layout, seed=3)
    for view in layout.views(weights).values():  # away from the symmetric start: biases and gains matter too
        view += rng.normal(0.0, 0.05, view.shape).astype(np.float32)
    inputs, targets = rng.integers(0, shape.vocab_size, (2, batch_size, shape.seq_len), dtype=np.int32)
    targets[rng.random(targets.shape) < 0.1] = -1
    return weights, inputs, targets


def ours(shape: ModelShape, batch_size: int, dtype: Any) -> Results:
    weights, inputs, targets = problem(shape, batch_size)
    weights = weights.astype(dtype)
    gradient = np.empty_like(weights)
    model = Transformer(shape, batch_size, dtype=dtype)
    loss = model.loss_and_gradient(weights, gradient, inputs, targets, scale=1.0 / inputs.size, dropout_seed=None)
    return Results(model.logits(weights, inputs), loss, model.layout.views(gradient))


def theirs(shape: ModelShape, batch_size: int, dtype: Any) -> Results:
    weights, inputs, targets = problem(shape, batch_size)
    config = transformers.GPT2Config(
        vocab_size=shape.vocab_size,
        n_positions=shape.seq_len,
        n_embd=shape.embed_dim,
        n_layer=shape.num_layers,
        n_head=shape.num_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    model = transformers.GPT2LMHeadModel(config).to(torch.float32 if dtype is np.float32 else torch.float64)
    parameters = dict(model.transformer.named_parameters())
    views = ParameterLayout(shape).views(weights)
    assert parameters.keys() == views.keys()
    with torch.no_grad():
        for name, view in views.items():
            parameters[name].copy_(torch.from_numpy(view))
    logits = model(torch.from_numpy(inputs.astype(np.int64))).logits
    flat_targets = torch.from_numpy(targets.astype(np.int64)).reshape(-1)
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, shape.vocab_size), flat_targets, ignore_index=-1, reduction="sum"
    )
    (loss / inputs.size).backward()
    gradients = {name: parameter.grad.numpy() for name, parameter in parameters.items()}
    return Results(logits.detach().numpy(), loss.item(), gradients)


def difference(a: Any, b: Any) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "batch_size"), SHAPES)
def test_logits_loss_and_every_gradient_equal_the_reference(shape: ModelShape, batch_size: int, dtype: Any) -> None:
    mine, reference = ours(shape, batch_size, dtype), theirs(shape, batch_size, dtype)
    assert mine.gradients.keys() == reference.gradients.keys()
    gradients = {name: difference(mine.gradients[name], gradient) for name, gradient in reference.gradients.items()}
    logits, loss = difference(mine.logits, reference.logits), abs(mine.loss / reference.loss - 1.0)
    worst = max(gradients, key=gradients.__getitem__)
    print(f"\n{dtype.__name__} {shape}: logits {logits:.1e}, loss {loss:.1e}, {worst} {gradients[worst]:.1e}")
    assert logits < TOLERANCE[dtype]
    assert loss < TOLERANCE[dtype]
    assert gradients[worst] < TOLERANCE[dtype]
