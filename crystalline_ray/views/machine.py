"""The offer of this machine, and what a run would make of it."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from rich.filesize import decimal

from crystalline_ray.bench import worker
from crystalline_ray.config import Config
from crystalline_ray.engine.machine import allowed_cores, cores_in_order, cpu_quota, proc_entry
from crystalline_ray.engine.process import chosen_arithmetic
from crystalline_ray.progress import Progress
from crystalline_ray.screen import numbered
from crystalline_ray.training.resolve import plan_for
from crystalline_ray.views.tree import needed_memory, planned_run, ranges

_SHARED_MEMORY = Path("/dev/shm")
# What decides how fast matrix products are, by the kernel's names, x86 before Arm.
_SIMD = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


def diagnose(config: Config, progress: Progress) -> dict[str, Any]:
    """Look at this machine, and at what a run with `config` would use of it; takes about two seconds of one core.

    Sizes are in bytes; None is what the system does not tell. `gemm` is the best matrix product of one core, its shape
    (M, K, N); `train` is what a run would use.
    """
    cores, allowed = cores_in_order(), allowed_cores()
    memory = psutil.virtual_memory()
    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    core, (precision, library) = worker.measuring_core(), chosen_arithmetic(config)
    with worker.as_worker(core, library):
        rate, shape = worker.measure_peak(precision, progress)
        blas = worker.loaded_blas()
    plan = plan_for(config)
    counts, needed = plan.counts(), needed_memory(planned_run(plan, config))
    flags = proc_entry("cpuinfo", "flags") or proc_entry("cpuinfo", "Features")  # x86, Arm
    simd = cast(Any, np.show_config(mode="dicts"))["SIMD Extensions"]
    notes = []
    if not blas:
        notes.append("NumPy's BLAS is not one that threadpoolctl knows: its threads cannot be limited to one")
    if config.engine == "ray" and (shared is None or shared.free < needed["shared"]):
        notes.append("/dev/shm is too small for such a run; in Docker, start the container with a larger --shm-size")
    return {
        "versions": {name: version(name) for name in ("crystalline-ray", "ray", "numpy", "pyarrow")}
        | {"Python": platform.python_version()},
        "processor": proc_entry("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "simd": [flag for flag in _SIMD if flag in flags.split()],
        "numpy_simd": [*simd.get("baseline", ()), *simd.get("found", ())],
        "blas": blas,
        "gemm": {"precision": precision, "gflops": rate / 1e9, "shape": shape, "core": core},
        "machine_cores": os.cpu_count() or 1,
        "allowed_cores": allowed,
        "physical_cores": len({core.siblings for core in cores}),
        "numa_nodes": sorted({core.numa_node for core in cores}),
        "cpu_quota": cpu_quota(),
        "memory": {"total": memory.total, "free": memory.available},
        "shared_memory": {"total": shared.total, "free": shared.free} if shared else None,
        "ray_address": os.environ.get("RAY_ADDRESS") or None,
        "train": {
            "engine": config.engine,
            "cores": config.threads or len(allowed),
            "pinned": plan.leaves[0].core is not None,
            "controls": counts["controls"],
            "leaves": counts["leaves"],
            "coordinators": plan.coordinators,
            "shared_memory": needed["shared"],
            "leaf_workspace": needed["per_leaf"],
        },
        "notes": notes,
    }


def describe(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what `diagnose` found as (name, value) rows for people."""
    yield "versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    yield "processor", found["processor"]
    yield "SIMD", f"{' '.join(found['simd']) or 'unknown'}; NumPy uses {' '.join(found['numpy_simd'])}"
    for blas in found["blas"]:
        use = f"in use, threads: {blas.threads} here, 1 in each leaf" if blas.in_use else "found, not in use"
        yield "BLAS", f"{blas.library} {blas.version} for {blas.architecture}, {use}"
    gemm, train, allowed = found["gemm"], found["train"], found["allowed_cores"]
    how = f"{' x '.join(map(str, gemm['shape']))}, core {gemm['core']}, 1 thread"
    yield "products", f"{gemm['gflops']:,.1f} GFLOP/s at best in {gemm['precision']}, the precision chosen ({how})"
    yield "cores", f"{len(allowed)} of {found['machine_cores']} may be used, in the order {ranges(allowed)}"
    quota = "no quota" if found["cpu_quota"] is None else f"a quota of {found['cpu_quota']:g} cores"
    yield "", f"{found['physical_cores']} physical, NUMA nodes {ranges(found['numa_nodes'])}, {quota}"
    for name, size in (("memory", found["memory"]), ("/dev/shm", found["shared_memory"])):
        yield name, f"{decimal(size['free'])} free of {decimal(size['total'])}" if size else "does not exist"
    joins = "not set: training starts a Ray of its own on this machine"
    if (address := found["ray_address"]) is not None:
        joins = f"{address}: training with the engine ray is refused, as it joins no cluster yet; unset it"
    yield "RAY_ADDRESS", joins
    pinned = "pinned" if train["pinned"] else "not pinned"
    spheres = f"{numbered(train['controls'], 'control')} + {numbered(train['leaves'], 'leaf')}"
    tree = f"1 root + {spheres}, coordinators {train['coordinators']}"
    yield "train", f"engine {train['engine']} on {train['cores']} cores, {pinned}: {tree}"
    shared, own = decimal(train["shared_memory"]), decimal(train["leaf_workspace"])
    yield "", f"{shared} of shared memory, {own} of workspace in each leaf"
    yield from (("note", note) for note in found["notes"])
