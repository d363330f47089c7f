"""What several test folders share: one BLAS thread, a small corpus, and one Ray instance for the whole session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits

from tests.helpers.examples import register_profiles

TEXT = "the crystal of kissing spheres sums every gradient in one order and no leaf ever waits for long"
WORDS = TEXT.split(" ")

register_profiles()


@pytest.fixture(scope="session", autouse=True)
def one_blas_thread() -> Iterator[None]:
    """Multiply on one thread, as a leaf does: more would wait for each other longer than products this small take."""
    with threadpool_limits(limits=1, user_api="blas"):
        yield


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


@pytest.fixture(scope="module")
def short_peak() -> Iterator[None]:
    """Measure the best rate of matrix products for as short as possible, on two products that are soon done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("crystalline_ray.bench.worker.PEAK_SECONDS", 0.001)
        patch.setattr("crystalline_ray.bench.worker._SHAPES", ((384, 384, 384), (512, 192, 384)))
        yield


@pytest.fixture(scope="session", name="ray_session")
def running_ray() -> Iterator[Path]:
    """Folder for arenas of one private Ray instance; its stop fails the session if anything stays behind."""
    from crystalline_ray.engine.ray.session import ray_session

    with ray_session() as arenas:
        yield arenas
