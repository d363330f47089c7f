"""What this machine offers, and what a run would make of it."""

import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from threadpoolctl import ThreadpoolController

from crystalline_ray.config import Config
from crystalline_ray.engine.topology import allowed_cores, detect_topology
from crystalline_ray.training.durable import readable_bytes
from crystalline_ray.training.plan_view import PlanView, ranges
from crystalline_ray.training.run import plan_for

_SHARED_MEMORY = Path("/dev/shm")
_CPU_INFO = Path("/proc/cpuinfo")
# What decides how fast matrix products are, by the kernel's names, x86 before Arm.
_SIMD = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve", "sve2", "sme",
)  # fmt: skip


@dataclass(frozen=True)
class Diagnosis:
    """What was found; sizes in bytes. `train` says what a run would use, None is what the system does not tell."""

    versions: dict[str, str]
    processor: str
    simd: list[str]
    numpy_simd: list[str]
    blas: list[dict[str, Any]]
    machine_cores: int
    allowed_cores: list[int]
    physical_cores: int
    numa_nodes: list[int]
    cpu_quota: float | None
    memory: dict[str, int]
    shared_memory: dict[str, int] | None
    train: dict[str, Any]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return all findings under their names."""
        return asdict(self)

    def render(self) -> RenderableType:
        """Return the findings as a table for people."""
        table = Table.grid(padding=(0, 2))
        for name, value in self._rows():
            table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
        return table

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "versions", ", ".join(f"{name} {number}" for name, number in self.versions.items())
        yield "processor", self.processor
        yield "SIMD", f"{' '.join(self.simd) or 'unknown'}; NumPy uses {' '.join(self.numpy_simd)}"
        for blas in self.blas:
            threads = f"{blas['threads']} threads here, 1 in each leaf"
            yield "BLAS", f"{blas['library']} {blas['version']} for {blas['architecture']}, {threads}"
        cores = (
            f"{len(self.allowed_cores)} of {self.machine_cores} may be used, in the order {ranges(self.allowed_cores)}"
        )
        quota = "no quota" if self.cpu_quota is None else f"a quota of {self.cpu_quota:g} cores"
        yield "cores", cores
        yield "", f"{self.physical_cores} physical, NUMA nodes {ranges(self.numa_nodes)}, {quota}"
        yield "memory", _space(self.memory)
        yield "/dev/shm", _space(self.shared_memory) if self.shared_memory else "does not exist"
        yield (
            "train",
            f"engine {self.train['engine']} on {self.train['cores']} cores, "
            f"{'pinned' if self.train['pinned'] else 'not pinned'}: 1 root + {self.train['controls']} controls + "
            f"{self.train['leaves']} leaves, coordinators {self.train['coordinators']}, "
            f"{readable_bytes(self.train['shared_memory'])} of shared memory",
        )
        for note in self.notes:
            yield "note", note


def diagnose(config: Config) -> Diagnosis:
    """Look at this machine, and at what a run with `config` would use of it."""
    topology = detect_topology()
    memory = psutil.virtual_memory()
    shared = shutil.disk_usage(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None
    blas = _blas()
    train = _train(config)
    notes = []
    if not blas:
        notes.append("NumPy's BLAS is not one that threadpoolctl knows: its threads cannot be limited to one")
    if config.engine == "ray" and (shared is None or shared.free < train["shared_memory"]):
        notes.append("/dev/shm is too small for such a run; in Docker, start the container with a larger --shm-size")
    return Diagnosis(
        versions={name: version(name) for name in ("crystalline-ray", "ray", "numpy", "pyarrow")}
        | {"Python": platform.python_version()},
        processor=_cpu_info("model name") or platform.processor() or platform.machine(),
        simd=[flag for flag in _SIMD if flag in (_cpu_info("flags") or _cpu_info("Features")).split()],
        numpy_simd=_numpy_simd(),
        blas=blas,
        machine_cores=os.cpu_count() or 1,
        allowed_cores=allowed_cores(),
        physical_cores=topology.physical_cores,
        numa_nodes=list(topology.numa_nodes),
        cpu_quota=topology.quota,
        memory={"total": memory.total, "free": memory.available},
        shared_memory={"total": shared.total, "free": shared.free} if shared else None,
        train=train,
        notes=notes,
    )


def _train(config: Config) -> dict[str, Any]:
    plan = plan_for(config)
    counts = plan.counts()
    return {
        "engine": config.engine,
        "cores": config.threads or len(allowed_cores()),
        "pinned": plan.leaves[0].core is not None,
        "controls": counts["controls"],
        "leaves": counts["leaves"],
        "coordinators": plan.coordinators,
        "shared_memory": PlanView(plan, config).memory()["shared"],
    }


def _blas() -> list[dict[str, Any]]:
    return [
        {
            "library": library["internal_api"],
            "version": library["version"],
            "architecture": library.get("architecture", "an unknown processor"),
            "threads": library["num_threads"],
            "file": library["filepath"],
        }
        for library in ThreadpoolController().select(user_api="blas").info()
    ]


def _numpy_simd() -> list[str]:
    found: Any = np.show_config(mode="dicts")
    extensions = found["SIMD Extensions"]
    return [*extensions.get("baseline", ()), *extensions.get("found", ())]


def _cpu_info(field: str) -> str:
    """The first core's entry in /proc/cpuinfo, '' where there is none."""
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == field:
                return value.strip()
    return ""


def _space(size: dict[str, int]) -> str:
    return f"{readable_bytes(size['free'])} free of {readable_bytes(size['total'])}"
