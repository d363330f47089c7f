"""The cores as the kernel tells of them: which this process may use, and in which order spheres are pinned to them.

Allowed is what the scheduler affinity and the control groups' CPU quota leave, not what the machine has: a container
sees all cores of its host. The order is physical cores first, their SMT siblings last, NUMA node by NUMA node.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from crystalline_ray.engine.procfs import SYSTEM, read_text


@dataclass(frozen=True, slots=True)
class Core:
    """A logical core as the operating system numbers it."""

    id: int
    numa_node: int
    siblings: tuple[int, ...]
    """Ids of the logical cores on the same physical core, itself included."""


@dataclass(frozen=True, slots=True)
class Topology:
    """The allowed cores in pinning order, and the CPU quota in cores (None: no quota)."""

    cores: tuple[Core, ...]
    quota: float | None

    @property
    def numa_nodes(self) -> tuple[int, ...]:
        """The NUMA nodes that the allowed cores belong to."""
        return tuple(sorted({core.numa_node for core in self.cores}))

    @property
    def physical_cores(self) -> int:
        """Number of physical cores behind the allowed cores."""
        return len({core.siblings for core in self.cores})


def allowed_cores(affinity: Collection[int] | None = None, system: Path = SYSTEM) -> list[int]:
    """Return the ids of the cores to use, in pinning order; at least one. Arguments as of `detect_topology`."""
    topology = detect_topology(affinity, system)
    cores = [core.id for core in topology.cores]
    return cores if topology.quota is None else cores[: max(1, int(topology.quota))]


def detect_topology(affinity: Collection[int] | None = None, system: Path = SYSTEM) -> Topology:
    """Read the topology of the cores in `affinity` (this process's own by default) from /sys and /proc under `system`.

    Where the operating system does not tell (no Linux), every core counts as a physical core of NUMA node 0.
    """
    if affinity is None:
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    numa_nodes = {
        core: int(folder.name.removeprefix("node"))
        for folder in (system / "sys/devices/system/node").glob("node[0-9]*")
        for core in _cpu_list(read_text(folder / "cpulist"))
    }
    cores = []
    for core in affinity:
        siblings = read_text(system / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        cores.append(Core(core, numa_nodes.get(core, 0), tuple(_cpu_list(siblings)) or (core,)))
    # First by how many of its allowed siblings come before it.
    allowed = frozenset(affinity)
    cores.sort(key=lambda c: (len(allowed.intersection(c.siblings, range(c.id))), c.numa_node, c.id))
    return Topology(tuple(cores), _cpu_quota(system))


def _cpu_quota(system: Path) -> float | None:
    """The tightest CPU bandwidth limit, in cores, of this process's control group and the groups around it."""
    limits = []
    for line in read_text(system / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount, files = system / "sys/fs/cgroup", ["cpu.max"]  # version 2
        if controllers:
            mount, files = mount / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        if not controllers or "cpu" in controllers.split(","):
            group = mount / path.lstrip("/")
            groups = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
            limits += [" ".join(read_text(folder / file) for file in files) for folder in groups]
    # "max" (version 2) and -1 (version 1) stand for no limit.
    found = (pair for limit in limits for pair in re.findall(r"^(\d+) (\d+)$", limit))
    return min((int(quota) / int(period) for quota, period in found), default=None)


def _cpu_list(text: str) -> Iterator[int]:
    """Numbers of a kernel list such as '0-3,8'."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
