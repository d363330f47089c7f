"""The lattice softmax against its definition, finite differences, and for vocabularies of every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal.lattice_head import (
    lattice_head_forward,
    lattice_head_forward_backward,
    lattice_log_probabilities,
    most_probable,
)
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.gemm import mkl_library
from crystalline_ray.lattice.tree import Branch, token_tree, write_outline
from tests.helpers.differences import numeric_gradient
from tests.helpers.examples import examples
from tests.helpers.slow_tree import (
    buffers,
    paths_below,
    problem,
    slow_log_probability,
    slow_loss_and_gradients,
    slow_paths,
)

pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid:RuntimeWarning")


@examples(30)
@given(st.integers(1, 150), st.integers(2, 700), st.integers(1, 20), st.sampled_from([0.1, 3.0, 100.0]))
def test_loss_and_gradients_equal_those_of_a_walk_per_token(rows: int, vocab: int, width: int, size: float) -> None:
    x, table, targets, tree = problem(rows, vocab, width, size)
    loss, *gradients = slow_loss_and_gradients(x, table, targets, 0.5, slow_paths(vocab))
    scratch = buffers(rows, tree, width, np.float64)
    before = np.random.default_rng(0).standard_normal(table.shape)
    own = np.full_like(x, np.nan), before.copy()
    got = lattice_head_forward_backward(x, table, targets, 0.5, scratch, own)
    assert got == pytest.approx(loss, rel=1e-11, abs=1e-11)
    assert lattice_head_forward(x, table, targets, scratch) == got
    for mine, reference in zip((own[0], own[1] - before), gradients, strict=True):
        np.testing.assert_allclose(mine, reference, atol=1e-12 * (1.0 + np.abs(reference).max()))


@examples(20)
@given(st.integers(1, 150), st.integers(2, 700), st.integers(1, 20), st.sampled_from([0.1, 3.0, 100.0]))
def test_float32_is_as_exact_as_its_digits(rows: int, vocab: int, width: int, size: float) -> None:
    doubles = problem(rows, vocab, width, size)
    x, table, targets, tree = doubles[0].astype(np.float32), doubles[1].astype(np.float32), *doubles[2:]
    loss, *gradients = slow_loss_and_gradients(x, table, targets, 1.0, slow_paths(vocab))
    scratch, own = buffers(rows, tree, width, np.float32), (np.full_like(x, np.nan), np.zeros_like(table))
    got = lattice_head_forward_backward(x, table, targets, 1.0, scratch, own)
    assert got == pytest.approx(loss, rel=1e-5, abs=1e-5)
    for mine, reference in zip(own, gradients, strict=True):
        # scores of up to 1000 keep four digits behind the point
        np.testing.assert_allclose(mine, reference, atol=1e-5 * max(1.0, size) * (1.0 + np.abs(reference).max()))


def test_a_tree_of_uneven_depth_is_as_exact() -> None:
    deep: list[Branch] = [0, 1]
    for token in range(2, 12):
        deep = [token, deep]
    root: list[Branch] = [list(range(12, 24)), 24, deep, [25, [26, 27, 28], 29]]
    outline, paths = write_outline("uneven", root), paths_below(root, 30)
    for rows in (1, 4, 90):
        x, table, targets, tree = problem(rows, 30, 5, outline=outline)
        targets[:1] = 0  # eleven levels below the branch of the root
        loss, *gradients = slow_loss_and_gradients(x, table, targets, 0.5, paths)
        scratch, own = buffers(rows, tree, 5, np.float64), (np.full_like(x, np.nan), np.zeros_like(table))
        assert lattice_head_forward_backward(x, table, targets, 0.5, scratch, own) == pytest.approx(loss)
        for mine, reference in zip(own, gradients, strict=True):
            np.testing.assert_allclose(mine, reference, atol=1e-12)
        logs = np.empty((rows, 30))
        lattice_log_probabilities(x, table, tree, logs)
        assert logs[0].tolist() == pytest.approx([slow_log_probability(x[0], table, path) for path in paths])
        found = dict(most_probable(x[:1], table, tree))
        assert [found[token] for token in range(30)] == pytest.approx(logs[0].tolist())


@pytest.mark.parametrize(("rows", "vocab", "width", "size"), [(1, 2, 1, 1.0), (7, 30, 3, 1.0), (40, 13, 2, 60.0)])
def test_gradients_equal_finite_differences(rows: int, vocab: int, width: int, size: float) -> None:
    x, table, targets, tree = problem(rows, vocab, width, size)
    paths, (dx, dtable) = slow_paths(vocab), (np.full_like(x, np.nan), np.zeros_like(table))
    scratch = buffers(rows, tree, width, np.float64)
    lattice_head_forward_backward(x, table, targets, 0.25, scratch, (dx, dtable))

    def loss() -> float:
        rows_with_target = np.flatnonzero(targets >= 0)
        return -0.25 * sum(slow_log_probability(x[row], table, paths[targets[row]]) for row in rows_with_target)

    np.testing.assert_allclose(dx, numeric_gradient(loss, x), atol=2e-6)
    np.testing.assert_allclose(dtable, numeric_gradient(loss, table), atol=2e-6)


@pytest.mark.parametrize("vocab", [12, 13, 1000, 20_736, 50_257])
def test_probabilities_sum_to_one(vocab: int) -> None:
    rng, tree, paths = np.random.default_rng(vocab), token_tree(vocab), slow_paths(vocab)
    table = rng.standard_normal((tree.num_branches, 16)).astype(np.float32)
    for size in (0.3, 5.0):
        x = (size * rng.standard_normal((3, 16))).astype(np.float32)
        out = np.full((3, vocab), np.nan, np.float32)
        lattice_log_probabilities(x, table, tree, out)
        np.testing.assert_allclose(np.exp(out.astype(np.float64)).sum(axis=1), 1.0, rtol=0, atol=1e-6)
        for token in range(0, vocab, 1 + vocab // 40):
            for row in range(3):
                assert out[row, token] == pytest.approx(slow_log_probability(x[row], table, paths[token]), abs=2e-4)


@examples(20)
@given(st.integers(1, 200), st.integers(2, 400), st.integers(1, 9))
def test_log_probabilities_are_those_of_the_loss(rows: int, vocab: int, width: int) -> None:
    x, table, targets, tree = problem(rows, vocab, width)
    out = np.empty((rows, vocab))
    lattice_log_probabilities(x, table, tree, out)
    loss = lattice_head_forward(x, table, targets, buffers(rows, tree, width, np.float64))
    assert loss == pytest.approx(-out[np.arange(rows), targets][targets >= 0].sum(), rel=1e-12, abs=1e-12)
    np.testing.assert_allclose(np.exp(out).sum(axis=1), 1.0, rtol=1e-12)


def test_rows_without_a_target_count_for_nothing_whatever_they_hold() -> None:
    x, table, targets, tree = problem(9, 40, 4)
    dx, dtable = np.full_like(x, np.nan), np.zeros_like(table)
    scratch = buffers(9, tree, 4, np.float64)
    assert lattice_head_forward_backward(x, table, np.full(9, -1), 1.0, scratch, (dx, dtable)) == 0.0
    assert not dx.any()
    assert not dtable.any()
    targets[:3] = 39, -1, 0
    x[1] = np.nan
    assert np.isfinite(lattice_head_forward_backward(x, table, targets, 1.0, scratch, (dx, dtable)))
    assert not dx[1].any()
    assert np.isfinite(dtable).all()


def test_only_rows_of_nodes_on_a_path_have_a_gradient() -> None:
    x, table, _, tree = problem(3, 20_736, 5)
    targets = np.array([7, 20_000, 7])
    gradients = np.full_like(x, np.nan), np.zeros_like(table)
    lattice_head_forward_backward(x, table, targets, 1.0, buffers(3, tree, 5, np.float64), gradients)
    visited = np.zeros(len(table), np.bool_)
    paths = slow_paths(20_736)
    for target in targets:
        for step in paths[target]:
            visited[step.rows] = True
    assert 80 < visited.sum() <= 96
    assert gradients[1][visited].all()
    assert not gradients[1][~visited].any()


def test_what_lies_in_buffers_moves_no_bit() -> None:
    doubles = problem(60, 300, 7)
    x, table, targets, tree = doubles[0].astype(np.float32), doubles[1].astype(np.float32), *doubles[2:]
    scratch, results = buffers(60, tree, 7, np.float32), set()
    for other in (targets, targets[::-1], targets):  # the second call leaves other numbers everywhere
        own = np.full_like(x, np.nan), np.zeros_like(table)
        loss = lattice_head_forward_backward(x, table, np.ascontiguousarray(other), 1.0, scratch, own)
        results.add((loss, own[0].tobytes(), own[1].tobytes()))
    assert len(results) == 2


@pytest.mark.skipif(mkl_library() is None, reason="MKL is not installed")
def test_mkl_computes_the_same() -> None:
    x, table, targets, tree = problem(60, 300, 7)
    scratch, results = buffers(60, tree, 7, np.float64), []
    for library in ("numpy", "mkl"):
        own = np.full_like(x, np.nan), np.zeros_like(table)
        with gemm.using(library):
            loss = lattice_head_forward_backward(x, table, targets, 1.0, scratch, own)
        results.append((loss, *own))
    for numpys, mkls in zip(*results, strict=True):
        np.testing.assert_allclose(numpys, mkls, atol=1e-12)
