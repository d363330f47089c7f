"""The offer of this machine, and what a run would make of it."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
from rich.console import RenderableType
from rich.filesize import decimal

from crystalline_ray.bench import worker
from crystalline_ray.config import Config
from crystalline_ray.engine.arithmetic import chosen_arithmetic
from crystalline_ray.engine.cores import allowed_cores, detect_topology
from crystalline_ray.engine.procfs import proc_entry
from crystalline_ray.progress import Progress
from crystalline_ray.screen import facts, numbered
from crystalline_ray.training.resolve import plan_for
from crystalline_ray.views.tree import PlanView, ranges

_SHARED_MEMORY = Path("/dev/shm")
# What decides how fast matrix products are, by the kernel's names, x86 before Arm.
_SIMD = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """Findings; sizes in bytes. `train` says what a run would use, None is what the system does not tell.

    `gemm` is the best matrix product of one core: precision, gflops, shape (M, K, N) and the core.
    """

    versions: dict[str, str]
    processor: str
    simd: list[str]
    numpy_simd: list[str]
    blas: list[worker.Blas]
    gemm: dict[str, Any]
    machine_cores: int
    allowed_cores: list[int]
    physical_cores: int
    numa_nodes: list[int]
    cpu_quota: float | None
    memory: dict[str, int]
    shared_memory: dict[str, int] | None
    train: dict[str, Any]
    notes: list[str]

    def render(self) -> RenderableType:
        """Return the findings as a table for people."""
        return facts(self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield "processor", self.processor
        yield "SIMD", f"{' '.join(self.simd) or 'unknown'}; NumPy uses {' '.join(self.numpy_simd)}"
        for blas in self.blas:
            use = f"in use, threads: {blas.threads} here, 1 in each leaf" if blas.in_use else "found, not in use"
            yield "BLAS", f"{blas.library} {blas.version} for {blas.architecture}, {use}"
        best = f"{self.gemm['gflops']:,.1f} GFLOP/s at best in {self.gemm['precision']}"
        how = f"{' x '.join(map(str, self.gemm['shape']))}, core {self.gemm['core']}, 1 thread"
        yield "products", f"{best}, the precision chosen ({how})"
        allowed = self.allowed_cores
        yield "cores", f"{len(allowed)} of {self.machine_cores} may be used, in the order {ranges(allowed)}"
        quota = "no quota" if self.cpu_quota is None else f"a quota of {self.cpu_quota:g} cores"
        yield "", f"{self.physical_cores} physical, NUMA nodes {ranges(self.numa_nodes)}, {quota}"
        yield "memory", _space(self.memory)
        yield "/dev/shm", _space(self.shared_memory) if self.shared_memory else "does not exist"
        train = self.train
        pinned = "pinned" if train["pinned"] else "not pinned"
        spheres = f"{numbered(train['controls'], 'control')} + {numbered(train['leaves'], 'leaf')}"
        tree = f"1 root + {spheres}, coordinators {train['coordinators']}"
        yield "train", f"engine {train['engine']} on {train['cores']} cores, {pinned}: {tree}"
        shared, own = decimal(train["shared_memory"]), decimal(train["leaf_workspace"])
        yield "", f"{shared} of shared memory, {own} of workspace in each leaf"
        yield from (("note", note) for note in self.notes)


def diagnose(config: Config, progress: Progress) -> Diagnosis:
    """Look at this machine, and at what a run with `config` would use of it; takes about two seconds of one core."""
    topology, allowed = detect_topology(), allowed_cores()
    memory = psutil.virtual_memory()
    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    core, (precision, library) = worker.measuring_core(), chosen_arithmetic(config)
    with worker.as_worker(core, library):
        rate, shape = worker.measure_peak(precision, progress)
        blas = worker.loaded_blas()
    plan = plan_for(config)
    counts, needed = plan.counts(), PlanView(plan, config).memory
    flags = proc_entry("cpuinfo", "flags") or proc_entry("cpuinfo", "Features")  # x86, Arm
    simd = cast(Any, np.show_config(mode="dicts"))["SIMD Extensions"]
    notes = []
    if not blas:
        notes.append("NumPy's BLAS is not one that threadpoolctl knows: its threads cannot be limited to one")
    if config.engine == "ray" and (shared is None or shared.free < needed["shared"]):
        notes.append("/dev/shm is too small for such a run; in Docker, start the container with a larger --shm-size")
    return Diagnosis(
        versions={name: version(name) for name in ("crystalline-ray", "ray", "numpy", "pyarrow")}
        | {"Python": platform.python_version()},
        processor=proc_entry("cpuinfo", "model name") or platform.processor() or platform.machine(),
        simd=[flag for flag in _SIMD if flag in flags.split()],
        numpy_simd=[*simd.get("baseline", ()), *simd.get("found", ())],
        blas=blas,
        gemm={"precision": precision, "gflops": rate / 1e9, "shape": shape, "core": core},
        machine_cores=os.cpu_count() or 1,
        allowed_cores=allowed,
        physical_cores=topology.physical_cores,
        numa_nodes=list(topology.numa_nodes),
        cpu_quota=topology.quota,
        memory={"total": memory.total, "free": memory.available},
        shared_memory={"total": shared.total, "free": shared.free} if shared else None,
        train={
            "engine": config.engine,
            "cores": config.threads or len(allowed),
            "pinned": plan.leaves[0].core is not None,
            "controls": counts["controls"],
            "leaves": counts["leaves"],
            "coordinators": plan.coordinators,
            "shared_memory": needed["shared"],
            "leaf_workspace": needed["per_leaf"],
        },
        notes=notes,
    )


def _space(size: dict[str, int]) -> str:
    return f"{decimal(size['free'])} free of {decimal(size['total'])}"
