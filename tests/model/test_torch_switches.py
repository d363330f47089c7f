"""Loss and every gradient with each kind of positions against PyTorch's autograd, in float64."""

import pytest

from tests.helpers.model_shapes import gpt2_shape

pytest.importorskip("torch")


@pytest.mark.parametrize("positions", ["learned", "rotary", "clock"])
def test_loss_and_every_gradient_equal_autograd(positions: str) -> None:
    from tests.helpers.torch_model import compare_with_autograd

    compare_with_autograd(gpt2_shape(131, 70, 36, 2, 3, positions=positions), lambda weights: weights["wte.weight"])
