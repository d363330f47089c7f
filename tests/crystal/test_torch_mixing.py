"""Neighbour mixing and its gradients against PyTorch's autograd over the dense matrix."""

from typing import Any

import numpy as np
import pytest

from tests.helpers.mixing_problem import mean_matrix, mixing_of
from tests.helpers.model_shapes import gpt2_shape

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("vocab", "width", "alpha"), [(2, 3, 0.5), (65, 24, -0.2), (700, 12, 0.0), (700, 12, 1.3)])
def test_table_and_gradients_equal_autograd(vocab: int, width: int, alpha: float) -> None:
    table, dout = np.random.default_rng(vocab).standard_normal((2, vocab, width))
    theirs, their_alpha = torch.tensor(table, requires_grad=True), torch.tensor(alpha, dtype=float, requires_grad=True)
    mixed = theirs + their_alpha * (torch.tensor(mean_matrix(vocab)) @ theirs)
    (mixed * torch.tensor(dout)).sum().backward()
    mixing, own_alpha, dalpha = mixing_of(vocab, width, np.float64), np.array([alpha]), np.full(1, np.nan)
    np.testing.assert_allclose(mixing.forward(table, own_alpha), mixed.detach().numpy(), atol=1e-13)
    mixing.backward(dout, table, own_alpha, dalpha)
    np.testing.assert_allclose(dout, theirs.grad.numpy(), atol=1e-13)
    assert dalpha[0] == pytest.approx(their_alpha.grad.item(), rel=1e-11)


@pytest.mark.parametrize("positions", ["learned", "rotary", "clock"])
def test_the_whole_model_equals_autograd(positions: str) -> None:
    from tests.helpers.torch_model import compare_with_autograd

    def mixed(weights: dict[str, Any]) -> Any:
        table = weights["wte.weight"]
        return table + weights["wte.mixing"] * torch.tensor(mean_matrix(131)) @ table

    compare_with_autograd(gpt2_shape(131, 70, 36, 2, 3, positions=positions, neighbour_mixing=True), mixed)
