"""The machine as its kernel tells of it: the cores that this process may use, and what text files under /proc say.

Allowed is what the scheduler affinity and the control groups' CPU quota leave, not what the machine has: a container
sees all cores of its host. Spheres are pinned to physical cores first, their SMT siblings last, NUMA node by NUMA node.
"""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

_SYSTEM = Path("/")


class Core(NamedTuple):
    """A logical core as the operating system numbers it, and those on the same physical core, itself included."""

    id: int
    numa_node: int
    siblings: tuple[int, ...]


def allowed_cores() -> list[int]:
    """Return the ids of the cores to use, in pinning order; at least one."""
    cores, quota = [core.id for core in cores_in_order()], cpu_quota()
    return cores if quota is None else cores[: max(1, int(quota))]


@contextmanager
def claimed_cores(most: int | None) -> Iterator[list[int]]:
    """Claim at most so many of the allowed cores, in pinning order, that no other run on this machine has claimed.

    A claim is the name of an abstract Unix socket, which the kernel gives to one process of a machine or container,
    whoever its user, and takes back when that ends, also by kill -9. Nobody can connect to it. It is no lock against
    harm: another user may claim cores for nothing, which costs a run its pinning.
    """
    with ExitStack() as claims:
        mine: list[int] = []
        for core in allowed_cores():
            claim = claims.enter_context(socket.socket(socket.AF_UNIX))
            try:
                claim.bind(f"\0crystalline-ray-core-{core}")
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            mine.append(core)
            if len(mine) == most:
                break
        yield mine


def cores_in_order() -> list[Core]:
    """Return the cores in this process's affinity in pinning order.

    Where the operating system does not tell (no Linux), every core counts as a physical core of NUMA node 0.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    numa_nodes = {
        core: int(folder.name.removeprefix("node"))
        for folder in (_SYSTEM / "sys/devices/system/node").glob("node[0-9]*")
        for core in _cpu_list(_read(folder / "cpulist"))
    }
    cores = []
    for core in allowed:
        siblings = _read(_SYSTEM / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
        cores.append(Core(core, numa_nodes.get(core, 0), tuple(_cpu_list(siblings)) or (core,)))
    # First by how many of its allowed siblings come before it.
    return sorted(cores, key=lambda c: (len(allowed.intersection(c.siblings, range(c.id))), c.numa_node, c.id))


def cpu_quota() -> float | None:
    """Return the tightest CPU quota, in cores, of this process's control group and those around it; None without."""
    limits = []
    for line in _read(_SYSTEM / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        mount, files = _SYSTEM / "sys/fs/cgroup", ["cpu.max"]  # version 2
        if controllers:
            mount, files = mount / "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        if not controllers or "cpu" in controllers.split(","):
            group = mount / path.lstrip("/")
            groups = [folder for folder in (group, *group.parents) if folder.is_relative_to(mount)]
            limits += [" ".join(_read(folder / file) for file in files) for folder in groups]
    # "max" (version 2) and -1 (version 1) stand for no limit.
    found = (pair for limit in limits for pair in re.findall(r"^(\d+) (\d+)$", limit))
    return min((int(quota) / int(period) for quota, period in found), default=None)


def proc_entry(file: str, name: str) -> str:
    """Return the first value of `name` in a file of `name: value` lines under /proc, '' if there is none."""
    entries = (line.partition(":") for line in _read(_SYSTEM / "proc" / file).splitlines())
    return next((value.strip() for found, _, value in entries if found.strip() == name), "")


def _read(path: Path) -> str:
    """Return the stripped content, '' where the kernel has no such file or does not show it to this process."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _cpu_list(text: str) -> Iterator[int]:
    """Yield the numbers of a kernel list such as '0-3,8'."""
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)
