"""The lattice softmax and its gradients against PyTorch's autograd over the same paths."""

import numpy as np
import pytest

from crystalline_ray.crystal.lattice_head import lattice_head_forward_backward
from tests.helpers.slow_tree import buffers, problem, slow_paths

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("rows", "vocab", "width"), [(50, 13, 5), (90, 1000, 12), (40, 20_736, 24)])
def test_loss_and_gradients_equal_autograd(rows: int, vocab: int, width: int) -> None:
    x, table, targets, tree = problem(rows, vocab, width)
    own = np.full_like(x, np.nan), np.zeros_like(table)
    loss = lattice_head_forward_backward(x, table, targets, 0.25, buffers(rows, tree, width, np.float64), own)
    theirs = torch.tensor(x, requires_grad=True), torch.tensor(table, requires_grad=True)
    paths, total = slow_paths(vocab), torch.zeros((), dtype=torch.float64)
    for row in np.flatnonzero(targets >= 0).tolist():
        for step in paths[targets[row]]:
            total = total - torch.log_softmax(theirs[1][step.rows] @ theirs[0][row], 0)[step.choice]
    (0.25 * total).backward()
    assert loss == pytest.approx(total.item(), rel=1e-13)
    for mine, reference in zip(own, theirs, strict=True):
        np.testing.assert_allclose(mine, reference.grad.numpy(), atol=1e-13 * (1.0 + np.abs(mine).max()))
