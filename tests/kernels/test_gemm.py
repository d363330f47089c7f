import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crystalline_ray.kernels import gemm
from tests.helpers.examples import examples

SIZES = st.integers(1, 40)


@examples(30)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_products_of_plain_and_transposed_operands(m: int, n: int, k: int, flip_a: bool, flip_b: bool) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m)).T if flip_a else rng.standard_normal((m, k))
    b = rng.standard_normal((n, k)).T if flip_b else rng.standard_normal((k, n))
    out = np.empty((m, n))
    gemm.multiply(a, b, out)
    np.testing.assert_allclose(out, (a[:, :, None] * b[None]).sum(axis=1), atol=1e-12)


@examples(30)
@given(SIZES, SIZES)
def test_sums_over_either_axis(rows: int, columns: int) -> None:
    x = np.random.default_rng(1).standard_normal((rows, columns))
    sums, totals = np.empty(columns), np.empty((rows, 1))
    gemm.column_sums(x, sums)
    gemm.row_sums(x, totals)
    np.testing.assert_allclose(sums, x.sum(axis=0), atol=1e-13)
    np.testing.assert_allclose(totals, x.sum(axis=1, keepdims=True), atol=1e-13)


@examples(40)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["f", "d"]))
def test_added_products(m: int, n: int, k: int, flip_a: bool, flip_b: bool, wide: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((k, m)).T if flip_a else rng.standard_normal((m, k))
    b = rng.standard_normal((n, k)).T if flip_b else rng.standard_normal((k, n))
    before = rng.standard_normal((m, n + 3 * wide))
    a, b, out = a.astype(dtype, order="K"), b.astype(dtype, order="K"), before.astype(dtype)
    gemm.add_product(a, b, out[:, :n])
    expected = before[:, :n] + (a[:, :, None].astype(np.float64) * b[None]).sum(axis=1)
    np.testing.assert_allclose(out[:, :n], expected, atol=1e-12 if dtype == "d" else 2e-5)
    assert (out[:, n:] == before[:, n:].astype(dtype)).all()


def test_products_are_added_where_blas_cannot_address_an_operand() -> None:
    a, b, out = np.ones((4, 6))[:, ::2], np.ones((3, 5)), np.ones((4, 5))
    gemm.add_product(a, b, out)
    assert (out == 4.0).all()


def test_the_library_numpy_uses_has_been_found() -> None:
    assert gemm.numpy_routines() is not None


with_mkl = pytest.mark.skipif(gemm.mkl_library() is None, reason="MKL is not installed")


@with_mkl
@examples(40)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans(), st.sampled_from(["f", "d"]))
def test_products_by_mkl(m: int, n: int, k: int, flip_a: bool, flip_b: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    a = (rng.standard_normal((k, m)).T if flip_a else rng.standard_normal((m, k))).astype(dtype, order="K")
    b = (rng.standard_normal((n, k)).T if flip_b else rng.standard_normal((k, n))).astype(dtype, order="K")
    out = np.full((m, n), np.nan, dtype)
    with gemm.using("mkl"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gemm, "_is_small", lambda a, out: False)
        gemm.multiply(a, b, out)
        once = out.copy()
        gemm.add_product(a, b, out)
    expected = (a[:, :, None].astype(np.float64) * b[None]).sum(axis=1)
    np.testing.assert_allclose(once, expected, atol=1e-12 if dtype == "d" else 2e-5)
    np.testing.assert_allclose(out, 2 * expected, atol=2e-12 if dtype == "d" else 4e-5)


def test_mkl_gets_the_products_that_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, mkl = [], {"f": None}

    def record(routines: object, a: np.ndarray, b: np.ndarray, out: np.ndarray, keep: float) -> bool:
        if routines is mkl:
            asked.append((*a.shape, b.shape[1]))
        return False

    monkeypatch.setattr(gemm, "_mkl", mkl)
    monkeypatch.setattr(gemm, "_call", record)
    for m, k, n in ((128, 128, 128), (64, 64, 64), (4096, 512, 12), (12, 512, 4096), (128, 512, 64)):
        a, b, out = np.ones((m, k), "f"), np.ones((k, n), "f"), np.empty((m, n), "f")
        gemm.multiply(a, b, out)
        assert (out == k).all()
        gemm.add_product(a, b, out)
        assert (out == 2 * k).all()
    assert asked == [(128, 128, 128)] * 2 + [(128, 512, 64)] * 2


@with_mkl
def test_mkl_is_used_within_its_block_only_and_gives_the_same_bits_wherever_operands_lie() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((100, 333)).astype("f"), rng.standard_normal((333, 77)).astype("f")
    bits = set()
    with gemm.using("mkl"):
        for offset in range(17):
            moved, out = np.empty(a.size + 16, "f")[offset:][: a.size].reshape(a.shape), np.empty((100, 77), "f")
            moved[:] = a
            gemm.multiply(moved, b, out)
            bits.add(out.tobytes())
    assert len(bits) == 1
    assert gemm._mkl is None


@with_mkl
@examples(30)
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_products_of_bfloat16_add_up_in_float32(m: int, n: int, k: int, flip_a: bool, flip_b: bool) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((k, m) if flip_a else (m, k)), rng.standard_normal((n, k) if flip_b else (k, n))
    bits = [(x.astype("f").view("u4") >> 16).astype(np.uint16) for x in (a, b)]
    a, b = ((x.astype("u4") << 16).view("f").astype(np.float64) for x in bits)
    out = np.full((m, n), np.nan, np.float32)
    gemm.multiply(bits[0].T if flip_a else bits[0], bits[1].T if flip_b else bits[1], out)
    expected = (a.T if flip_a else a) @ (b.T if flip_b else b)
    np.testing.assert_allclose(out, expected, atol=2e-5)  # products of bfloat16 are exact in float32
    gemm.add_product(bits[0].T if flip_a else bits[0], bits[1].T if flip_b else bits[1], out)
    np.testing.assert_allclose(out, 2 * expected, atol=4e-5)


@with_mkl
def test_small_products_are_those_of_numpys_library_whatever_else_is_loaded() -> None:
    """In several processes, since the order in which libraries are found may differ from one to the next."""
    program = """
import sys, numpy as np
from crystalline_ray.kernels import gemm
a, b = np.random.default_rng(1).standard_normal((2, 600), np.float32)
out = np.ones((3, 3), np.float32)
with gemm.using(sys.argv[1]):
    gemm.add_product(a.reshape(3, 200), b.reshape(200, 3), out)  # MKL rounds it otherwise than NumPy's library
print(out.tobytes().hex())
"""
    arguments = [sys.executable, "-c", program]
    processes = [
        subprocess.Popen([*arguments, library], stdout=subprocess.PIPE, env={**os.environ, "PYTHONHASHSEED": str(seed)})
        for seed, library in enumerate(["numpy", "mkl", "mkl", "mkl", "mkl", "mkl"])
    ]
    products = [process.communicate(timeout=120)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len(set(products)) == 1


@with_mkl
def test_mkl_comes_without_threads_and_so_without_files_in_shared_memory() -> None:
    program = """
import numpy as np
from crystalline_ray.kernels import gemm
with gemm.using("mkl"):
    gemm.multiply(np.ones((256, 256), "f"), np.ones((256, 256), "f"), np.empty((256, 256), "f"))
print("libmkl_sequential" in (maps := open("/proc/self/maps").read()), "omp5" in maps)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == ["True", "False"]
