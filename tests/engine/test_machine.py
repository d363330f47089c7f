import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crystalline_ray.engine.machine import allowed_cores, cores_in_order, cpu_quota


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content + "\n")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the files of a kernel."""
    monkeypatch.setattr("crystalline_ray.engine.machine._SYSTEM", tmp_path)
    return tmp_path


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the affinity of this process."""
    return lambda *cores: monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(cores))


@pytest.fixture
def two_sockets(system: Path) -> Path:
    """Two NUMA nodes of two physical cores with two hardware threads each, numbered as Linux on x86 does."""
    for node, cores in ((0, "0-1,4-5"), (1, "2-3,6-7")):
        write(system / f"sys/devices/system/node/node{node}/cpulist", cores)
    for core in range(8):
        write(system / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", f"{core % 4},{core % 4 + 4}")
    return system


def test_physical_cores_come_first_then_siblings_node_by_node(two_sockets: Path, allow: Callable[..., None]) -> None:
    allow(*range(8))
    cores = cores_in_order()
    assert [core.id for core in cores] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [core.numa_node for core in cores] == [0, 0, 1, 1, 0, 0, 1, 1]
    assert [core.siblings for core in cores] == [(0, 4), (1, 5), (2, 6), (3, 7)] * 2


def test_nodes_are_filled_one_by_one_where_numbers_alternate(system: Path, allow: Callable[..., None]) -> None:
    allow(*range(6))
    write(system / "sys/devices/system/node/node0/cpulist", "0,2,4")
    write(system / "sys/devices/system/node/node1/cpulist", "1,3,5")
    assert [core.id for core in cores_in_order()] == [0, 2, 4, 1, 3, 5]


def test_sibling_whose_physical_core_is_not_allowed_counts_as_physical(
    two_sockets: Path, allow: Callable[..., None]
) -> None:
    allow(4, 1, 5)
    cores = cores_in_order()
    assert [core.id for core in cores] == [1, 4, 5]
    assert len({core.siblings for core in cores}) == 2


def test_without_sys_every_core_is_physical_and_unlimited(system: Path, allow: Callable[..., None]) -> None:
    allow(3, 1)
    assert cores_in_order() == [(1, 0, (1,)), (3, 0, (3,))]
    assert cpu_quota() is None


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/job/step", {"sys/fs/cgroup/job/cpu.max": "250000 100000"}, 2.5),
        ("0::/job", {"sys/fs/cgroup/job/cpu.max": "max 100000"}, None),
        ("0::/gone", {"sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            "0::/a/b",
            {"sys/fs/cgroup/a/cpu.max": "300000 100000", "sys/fs/cgroup/a/b/cpu.max": "800000 100000"},
            3.0,
        ),
        (
            "3:cpu,cpuacct:/box\n2:memory:/box",
            {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "400000", "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000"},
            4.0,
        ),
        (
            "3:cpu:/",
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"},
            None,
        ),
    ],
)
def test_quota_is_the_tightest_of_the_control_groups(
    system: Path, cgroup: str, files: dict[str, str], quota: float | None
) -> None:
    write(system / "proc/self/cgroup", cgroup)
    for name, content in files.items():
        write(system / name, content)
    assert cpu_quota() == quota


def test_allowed_cores_respect_affinity_and_quota(two_sockets: Path, allow: Callable[..., None]) -> None:
    allow(0, 2, 4, 6)
    assert allowed_cores() == [0, 2, 4, 6]
    write(two_sockets / "proc/self/cgroup", "0::/")
    write(two_sockets / "sys/fs/cgroup/cpu.max", "350000 100000")
    assert allowed_cores() == [0, 2, 4]
    write(two_sockets / "sys/fs/cgroup/cpu.max", "10000 100000")
    assert allowed_cores() == [0]


def test_allowed_cores_of_this_machine_are_its_affinity_or_less() -> None:
    cores = allowed_cores()
    assert cores
    assert len(set(cores)) == len(cores)
    if hasattr(os, "sched_getaffinity"):
        assert set(cores) <= os.sched_getaffinity(0)
