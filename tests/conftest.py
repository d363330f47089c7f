"""What several test folders share: a small corpus, and one Ray instance for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

TEXT = "the crystal of kissing spheres sums every gradient in one order and no leaf ever waits for long"
WORDS = TEXT.split(" ")


@pytest.fixture(scope="session")
def corpus_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 kB of text with some structure to learn."""
    lines = (
        " ".join(WORDS[(line * 7 + word * (1 + line % 3)) % len(WORDS)] for word in range(9)) for line in range(400)
    )
    path = tmp_path_factory.mktemp("corpus") / "spheres.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of tokens that is not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def short_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the best rate of matrix products for as short as possible."""
    monkeypatch.setattr("crystalline_ray.training.peak_gemm.PEAK_SECONDS", 0.001)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[object]:
    """One private Ray instance; its stop fails the session if anything stays behind."""
    from crystalline_ray.engine.ray.session import RaySession

    with RaySession() as session:
        yield session
