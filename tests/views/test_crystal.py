"""The crystal of a vocabulary in numbers and as a picture."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from crystalline_ray.errors import ConfigError
from crystalline_ray.lattice.fcc import contact_neighbours, fcc_points, fcc_shells
from crystalline_ray.views.crystal import Crystal, describe_crystal
from crystalline_ray.views.pictures import plot_crystal


def test_the_inner_shells_are_those_of_the_lattice() -> None:
    crystal = describe_crystal(2000)
    assert [shell.points for shell in crystal.shells[:7]] == [1, 12, 6, 24, 12, 24, 8]  # OEIS A004015 without zeros
    assert [shell.squared_radius for shell in crystal.shells[:7]] == [0, 2, 4, 6, 8, 10, 12]
    assert crystal.shells[0].contacts == crystal.shells[5].contacts == 12.0
    assert crystal.shells[-1].contacts < 12.0
    assert sum(shell.points for shell in crystal.shells) == sum(crystal.group_sizes) == 2000
    assert max(crystal.group_sizes) - min(crystal.group_sizes) <= 1
    assert all(shell.distance is None for shell in crystal.shells)


def test_distances_are_means_over_the_pairs_of_a_shell() -> None:
    embeddings = np.random.default_rng(0).standard_normal((60, 5))
    points = fcc_points(60)
    shell, neighbours = fcc_shells(points).shell, contact_neighbours(points)
    for number, found in enumerate(describe_crystal(60, embeddings).shells):
        expected = [
            1.0 - embeddings[a] @ embeddings[b] / np.linalg.norm(embeddings[a]) / np.linalg.norm(embeddings[b])
            for a in np.flatnonzero(shell == number)
            for b in neighbours[a][neighbours[a] >= 0]
        ]
        assert found.distance == pytest.approx(np.mean(expected))


def distances(crystal: Crystal) -> list[tuple[float, float]]:
    """Mean distances to neighbours and to shuffled ones, shell by shell; NaN where there are none."""
    found = ((shell.distance, shell.shuffled) for shell in crystal.shells)
    return [(np.nan if near is None else near, np.nan if other is None else other) for near, other in found]


def test_embeddings_that_follow_the_lattice_lie_nearer_than_shuffled_ones() -> None:
    points = fcc_points(500).astype(float) + 20.0
    outer = distances(describe_crystal(500, points))[3:]
    assert all(near < shuffled for near, shuffled in outer)
    noise = np.random.default_rng(1).standard_normal((500, 64))
    ratios = [near / shuffled for near, shuffled in distances(describe_crystal(500, noise))[1:]]
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.03)


def test_no_token_is_drawn_as_its_own_neighbour() -> None:
    # of embeddings at right angles, only a token itself is nearer than 1
    assert all(shell.distance == shell.shuffled == 1.0 for shell in describe_crystal(90, np.eye(90)).shells)


def test_distances_take_little_more_memory_than_the_embeddings() -> None:
    embeddings = np.ones((3000, 64), np.float32)
    tracemalloc.start()
    describe_crystal(3000, embeddings)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * embeddings.nbytes


def test_one_token_is_a_crystal() -> None:
    crystal = describe_crystal(1, np.ones((1, 3)))
    assert [(shell.points, shell.contacts, shell.distance) for shell in crystal.shells] == [(1, 0.0, None)]


def test_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("crystalline_ray.views.pictures._DOTS_PER_INCH", 20)
    embeddings = np.random.default_rng(0).standard_normal((300, 4))
    plot_crystal(describe_crystal(300, embeddings), tmp_path / "crystal.png")
    assert (tmp_path / "crystal.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot_crystal(describe_crystal(300), tmp_path / "nowhere" / "crystal.png")


@pytest.mark.parametrize("vocab_size", [1, 2, 62])
def test_the_crystal_is_drawn_to_one_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab_size: int) -> None:
    figure = pytest.importorskip("matplotlib.figure").Figure
    drawn = []
    monkeypatch.setattr(figure, "savefig", lambda self, _: drawn.append(self.axes[0]))
    plot_crystal(describe_crystal(vocab_size), tmp_path / "crystal.png")
    assert drawn[0].get_xlim() == drawn[0].get_ylim() == drawn[0].get_zlim()
