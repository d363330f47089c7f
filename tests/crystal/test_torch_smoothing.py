"""The head with smoothed targets against PyTorch's cross-entropy and autograd."""

import numpy as np
import pytest

from crystalline_ray.kernels.head import Objective
from tests.helpers.smoothed import dense_shares, gradients_of, problem, smoothed_targets, smoothing_of

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("kind", ["crystal", "uniform"])
def test_gradients_equal_autograd(kind: str) -> None:
    rows, vocab, k = 200, 600, 16
    x, table, targets = given_problem = problem(rows, vocab, 8)
    _, *mine = gradients_of(given_problem, Objective(0.5, smoothing_of(kind, rows, vocab, k), 0.3))
    theirs = torch.tensor(x, requires_grad=True), torch.tensor(table, requires_grad=True)
    logits, labels = theirs[0] @ theirs[1].T, torch.from_numpy(targets)
    if kind == "uniform":
        loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-1, reduction="sum", label_smoothing=0.3)
    else:
        q = torch.from_numpy(smoothed_targets(targets, dense_shares(kind, vocab, k), 0.3))
        loss = torch.nn.functional.cross_entropy(logits, q, reduction="sum")
    (0.5 * loss).backward()
    for own, reference in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(own, reference.grad.numpy(), atol=1e-12 * (1.0 + np.abs(own).max()))
