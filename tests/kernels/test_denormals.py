"""Flush-to-zero: on where asked for, in the asking thread, and off again."""

import threading

import numpy as np
import pytest

from crystalline_ray.kernels.denormals import flush_to_zero

SMALL = np.full(64, 1e-30, np.float32)
FACTOR = np.float32(1e-10)  # the product, 1e-40, is a denormal


def denormal_products() -> int:
    return int(np.count_nonzero(SMALL * FACTOR))


@pytest.fixture(autouse=True)
def supported() -> None:
    with flush_to_zero() as active:
        if not active:
            pytest.skip("no known control register on this platform")


def test_denormal_results_become_zero_only_inside_the_block() -> None:
    assert denormal_products() == 64
    with flush_to_zero() as active:
        assert active
        assert denormal_products() == 0
        assert float(np.float32(1.5) * np.float32(2.0)) == 3.0
    assert denormal_products() == 64


def test_denormal_operands_count_as_zero_in_matrix_products() -> None:
    denormals = np.full((32, 32), 1e-40, np.float32)
    large = np.full((32, 32), 1e30, np.float32)
    assert (denormals @ large).all()
    with flush_to_zero():
        assert not (denormals @ large).any()


def test_other_threads_keep_their_setting() -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(denormal_products()))
    thread.start()
    thread.join()
    with flush_to_zero():
        assert denormal_products() == 0
    assert seen == [64]


def test_an_error_inside_the_block_switches_it_off_too() -> None:
    with pytest.raises(ZeroDivisionError), flush_to_zero():
        _ = 1 // 0
    assert denormal_products() == 64


def test_the_mode_of_before_is_restored_also_where_it_was_on() -> None:
    with flush_to_zero():
        with flush_to_zero():
            assert denormal_products() == 0
        assert denormal_products() == 0
    assert denormal_products() == 64
