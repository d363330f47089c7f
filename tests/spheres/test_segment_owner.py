"""Reduction and update of segments: independent float64 references, and bits that do not depend on who owns what."""

import numpy as np
import pytest

from crystalline_ray.kernels.optimizers import MOMENTS
from crystalline_ray.spheres.memory import Memory
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.spheres.segment_owner import SegmentOwner
from tests.helpers.segments import LAYOUT, filled_memory, run_of

ADAMW = MOMENTS["adamw"]


def run_owners(memory: Memory, run: RunSpec, owners: list[tuple[int, ...]], clip: float = 0.5) -> float:
    spheres = [SegmentOwner(segments, run, memory) for segments in owners]
    squares: dict[int, float] = {}
    for sphere in spheres:
        squares |= sphere.reduce(12, 3)
    for sphere in spheres:
        sphere.apply(3, 1e-2, clip)
    return sum(squares[s] for s in range(12)) ** 0.5


def decay_mask() -> np.ndarray:
    mask = np.zeros(LAYOUT.size)
    for parameter in LAYOUT.parameters:
        mask[parameter.offset : parameter.offset + parameter.size] = parameter.decay
    return mask


def test_adamw_follows_its_definition() -> None:
    memory, run = filled_memory(*ADAMW), run_of(weight_decay=0.1, beta1=0.9, beta2=0.95)
    gradient = np.sum([memory.region(g).astype(np.float64) for g in range(12)], axis=0)
    norm = run_owners(memory, run, [tuple(range(12))])
    assert norm == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    gradient *= 0.5
    mean = 0.9 * memory.part("moments", 3)[0].astype(np.float64) + 0.1 * gradient
    square = 0.95 * memory.part("moments", 3)[1].astype(np.float64) + 0.05 * gradient**2
    weights = memory.weights(3).astype(np.float64) * (1 - 1e-2 * 0.1 * decay_mask())
    weights -= 1e-2 * (mean / (1 - 0.9**4)) / (np.sqrt(square / (1 - 0.95**4)) + 1e-8)
    np.testing.assert_allclose(memory.part("moments", 4)[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(memory.part("moments", 4)[1], square, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(memory.weights(4), weights, rtol=1e-5, atol=1e-5)


def test_sgd_follows_its_definition() -> None:
    memory, run = filled_memory(*MOMENTS["sgd"]), run_of(optimizer="sgd", weight_decay=0.1, momentum=0.9)
    gradient = 0.5 * sum(memory.region(g).astype(np.float64) for g in range(12))
    run_owners(memory, run, [tuple(range(12))])
    velocity = 0.9 * memory.part("moments", 3)[0].astype(np.float64) + gradient
    weights = memory.weights(3).astype(np.float64) * (1 - 1e-2 * 0.1 * decay_mask()) - 1e-2 * velocity
    np.testing.assert_allclose(memory.part("moments", 4)[0], velocity, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(memory.weights(4), weights, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("owners", [[tuple(range(6)), tuple(range(6, 12))], [(s,) for s in range(12)]])
def test_bits_do_not_depend_on_who_owns_the_segments(owners: list[tuple[int, ...]]) -> None:
    alone, shared = filled_memory(*ADAMW), filled_memory(*ADAMW)
    run = run_of()
    assert run_owners(alone, run, [tuple(range(12))]) == run_owners(shared, run, owners)
    assert alone.weights(4).tobytes() == shared.weights(4).tobytes()
    assert alone.part("moments", 4)[1].tobytes() == shared.part("moments", 4)[1].tobytes()


def test_an_update_can_be_repeated_and_leaves_the_version_it_reads_alone() -> None:
    memory, run = filled_memory(*ADAMW), run_of()
    before = memory.weights(3).copy(), memory.region(0).copy()
    sphere = SegmentOwner(range(12), run, memory)
    sphere.reduce(12, 3)
    sphere.apply(3, 1e-2, 0.5)
    once = memory.weights(4).tobytes()
    sphere.apply(3, 1e-2, 0.5)
    assert memory.weights(4).tobytes() == once
    assert (memory.weights(3) == before[0]).all()
    assert (memory.region(0) == before[1]).all()


def test_padding_between_tensors_stays_zero() -> None:
    memory, run = filled_memory(*ADAMW), run_of()
    used = np.zeros(LAYOUT.size, bool)
    for parameter in LAYOUT.parameters:
        used[parameter.offset : parameter.offset + parameter.size] = True
    rows = [memory.weights(3), *memory.part("moments", 3), *(memory.region(g) for g in range(12))]
    for row in rows:
        row[~used] = 0
    run_owners(memory, run, [tuple(range(12))])
    assert not memory.weights(4)[~used].view(np.uint32).any()  # nor a minus before the zero


def test_a_gradient_too_large_to_square_is_not_finite() -> None:
    memory, run = filled_memory(*ADAMW), run_of()
    memory.region(0)[:] = 1e30
    squares = SegmentOwner(range(12), run, memory).reduce(12, 3)
    assert set(squares.values()) == {np.inf}
