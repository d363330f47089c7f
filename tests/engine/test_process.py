"""What a computation sets for its process is restored when it is done."""

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController, threadpool_limits

from crystalline_ray.engine.process import environment, one_worker_thread
from crystalline_ray.errors import ResourceError
from crystalline_ray.kernels import gemm
from crystalline_ray.kernels.gemm import mkl_library

SECONDS = 120.0


def blas_threads() -> set[int]:
    return {library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()}


def flushes_denormals() -> bool:
    return bool((np.full(8, 1e-30, np.float32) * np.float32(1e-10) == 0).all())


def fail_inside() -> None:
    with one_worker_thread():
        assert gemm.library() == "numpy"
        _ = 1 // 0


def test_threads_denormals_and_the_library_are_restored_also_when_nested_and_after_an_error() -> None:
    blas: gemm.Library = "numpy" if mkl_library() is None else "mkl"
    with threadpool_limits(limits=2, user_api="blas"):
        with one_worker_thread(blas):
            assert (blas_threads(), flushes_denormals(), gemm.library()) == ({1}, True, blas)
            with pytest.raises(ZeroDivisionError):
                fail_inside()
            assert (blas_threads(), flushes_denormals(), gemm.library()) == ({1}, True, blas)
        assert 2 in blas_threads()
    assert not flushes_denormals()
    assert gemm.library() == "numpy"


def test_a_library_that_is_missing_is_said_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise FileNotFoundError("no libmkl_rt")

    monkeypatch.setattr("crystalline_ray.kernels.gemm.mkl_routines", absent)
    with pytest.raises(ResourceError, match="cannot compute with mkl: no libmkl_rt"), one_worker_thread("mkl"):
        pass
    assert not flushes_denormals()


def test_variables_are_set_restored_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRYSTALLINE_TEST_OLD", "old")
    before = dict(os.environ)
    with environment({"CRYSTALLINE_TEST_OLD": "new", "CRYSTALLINE_TEST_NEW": "new"}):
        assert os.environ["CRYSTALLINE_TEST_OLD"] == os.environ["CRYSTALLINE_TEST_NEW"] == "new"
        os.environ["CRYSTALLINE_TEST_MEANWHILE"] = "x"
        del os.environ["PATH"]
    assert dict(os.environ) == before


IMPORTS = """
import importlib, json, os, pkgutil, signal, sys, threading
import numpy
small = numpy.full(8, 1e-30, numpy.float32)

def outside():
    return {
        "environ": dict(os.environ),
        "path": list(sys.path),
        "folder": os.getcwd(),
        "handlers": {number: repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "threads": threading.active_count(),
        "denormals": int(numpy.count_nonzero(small * numpy.float32(1e-10))),
        "affinity": sorted(os.sched_getaffinity(0)),
    }

before = outside()
count = 0
if len(sys.argv) > 1:
    import crystalline_ray
    for module in pkgutil.walk_packages(crystalline_ray.__path__, "crystalline_ray."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
            count += 1
after = outside()
import threadpoolctl
blas = [(library["filepath"], library["num_threads"]) for library in threadpoolctl.threadpool_info()]
print(json.dumps([count, sorted(key for key in before if before[key] != after[key]), blas]))
"""


def imported(*words: str) -> list[Any]:
    command = [sys.executable, "-c", IMPORTS, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    found: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_every_module_changes_nothing_outside_of_it() -> None:
    count, changed, blas = imported("all")
    assert count > 100
    assert changed == []
    assert [library for library in imported()[2] if library not in blas] == []
