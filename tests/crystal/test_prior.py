"""The Laplacian prior as the owners of segments add it: finite differences, and bits that depend on no owner."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.crystal import prior
from crystalline_ray.crystal.prior import LaplacianPrior
from crystalline_ray.kernels.optimizers import MOMENTS
from crystalline_ray.lattice.similarity import SimilarRanks, similar_ranks
from crystalline_ray.spheres.segment_owner import Prior, SegmentOwner
from tests.helpers.examples import examples
from tests.helpers.segments import LAYOUT, SHAPE, filled_memory, run_of

WEIGHT = 0.01
SIMILAR = similar_ranks(SHAPE.vocab_size, 7)


def priors_of(segments: tuple[int, ...]) -> dict[int, Prior]:
    bounds, table = LAYOUT.segments(12), LAYOUT.parameters[0]
    assert table.name == "wte.weight"
    items = slice(table.offset, table.offset + table.size)
    return {number: LaplacianPrior(WEIGHT, SIMILAR, items, bounds[number]).write for number in segments}


def value(table: np.ndarray, similar: SimilarRanks) -> float:
    distance = ((table[:, None] - table[similar.ranks]) ** 2).sum(axis=-1)
    return float(WEIGHT * 0.5 * (similar.weights * distance).sum())


def test_the_parts_of_all_segments_are_the_gradient() -> None:
    weights = np.random.default_rng(2).standard_normal(LAYOUT.size).astype(np.float32)
    gradient = np.full(LAYOUT.size, np.nan, np.float32)
    bounds = LAYOUT.segments(12)
    table_size = SHAPE.vocab_size * SHAPE.embed_dim
    assert any(part.start % SHAPE.embed_dim for part in bounds if part.start < table_size), "no row is cut"
    for number, write in priors_of(tuple(range(12))).items():
        write(weights, gradient[bounds[number]])
    views = LAYOUT.views(gradient)
    got = views.pop("wte.weight").astype(np.float64)
    assert not any(view.any() for view in views.values())
    table = LAYOUT.views(weights)["wte.weight"].astype(np.float64)
    rng = np.random.default_rng(3)
    for _ in range(20):
        direction = rng.standard_normal(table.shape)
        slope = (value(table + 1e-3 * direction, SIMILAR) - value(table - 1e-3 * direction, SIMILAR)) / 2e-3
        assert (got * direction).sum() == pytest.approx(slope, rel=1e-5, abs=1e-5)
    for place in [(0, 0), (1, 47), (299, 3), (150, 20)]:
        above, below = table.copy(), table.copy()
        above[place] += 1e-3
        below[place] -= 1e-3
        slope = (value(above, SIMILAR) - value(below, SIMILAR)) / 2e-3
        assert got[place] == pytest.approx(slope, rel=1e-4, abs=1e-6)


@examples(40)
@given(st.integers(2, 60), st.integers(1, 30), st.integers(1, 400), st.data())
def test_a_segment_has_its_part_of_the_dense_product(vocab: int, width: int, block: int, data: st.DataObject) -> None:
    rng, similar = np.random.default_rng(vocab), similar_ranks(vocab, min(5, vocab - 1))
    shares = np.zeros((vocab, vocab))
    np.put_along_axis(shares, similar.ranks, similar.weights, axis=1)
    laplacian = np.diag((shares + shares.T).sum(axis=1)) - shares - shares.T
    weights = rng.standard_normal(vocab * width + 20).astype(np.float32)
    table = slice(7, 7 + vocab * width)
    expected = np.zeros(weights.size)
    expected[table] = (0.5 * laplacian @ weights[table].reshape(vocab, width)).ravel()
    start = data.draw(st.integers(0, weights.size - 1))
    segment = slice(start, data.draw(st.integers(start, weights.size)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prior, "BLOCK_BYTES", 4 * block)  # down to one row at a time
        own = LaplacianPrior(0.5, similar, table, segment)
    for _ in range(2):
        gradient = np.full(segment.stop - segment.start, np.nan, np.float32)
        own.write(weights, gradient)
        np.testing.assert_allclose(gradient, expected[segment], atol=1e-5)


@pytest.mark.parametrize("groups", [12, 2, 1])
def test_the_norm_is_of_the_sum_with_the_prior_whoever_owns_what(groups: int) -> None:
    memory, found = filled_memory(*MOMENTS["adamw"]), []
    sphere = None
    for owners in ([tuple(range(12))], [(0, 5, 11), (1, 2, 3, 4), (6, 7, 8, 9, 10)]):
        squares: dict[int, float] = {}
        for segments in owners:
            sphere = SegmentOwner(segments, run_of(), memory, priors_of(segments))
            squares |= sphere.reduce(groups, 3)
            assert sphere.reduce(groups, 3) == {number: squares[number] for number in segments}  # repeatable
            sphere.apply(3, 1e-2, 0.5)
        found.append(([squares[number] for number in range(12)], memory.weights(4).tobytes()))
    assert found[0] == found[1]
    gradient = sum(memory.region(group).astype(np.float64) for group in range(groups))
    added = np.empty(LAYOUT.size, np.float32)
    for number, part in enumerate(LAYOUT.segments(12)):
        priors_of((number,))[number](memory.weights(3), added[part])
    assert np.linalg.norm(added) > 1e-3 * np.linalg.norm(gradient)
    assert sum(found[0][0]) == pytest.approx(((gradient + added) ** 2).sum(), rel=1e-6)


def test_autograd_gives_the_same_gradient() -> None:
    torch = pytest.importorskip("torch")
    weights = np.random.default_rng(4).standard_normal(LAYOUT.size).astype(np.float32)
    gradient = np.empty(LAYOUT.size, np.float32)
    for number, part in enumerate(LAYOUT.segments(12)):
        priors_of((number,))[number](weights, gradient[part])
    table = torch.tensor(LAYOUT.views(weights)["wte.weight"], dtype=torch.float64, requires_grad=True)
    ranks, shares = torch.from_numpy(SIMILAR.ranks.astype(np.int64)), torch.from_numpy(SIMILAR.weights)
    (WEIGHT * 0.5 * (shares * ((table[:, None] - table[ranks]) ** 2).sum(-1)).sum()).backward()
    np.testing.assert_allclose(LAYOUT.views(gradient)["wte.weight"], table.grad.numpy(), atol=1e-6)
