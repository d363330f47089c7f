"""The cluster of namespaces: its nodes are apart, its links are shaped and counted, and nothing outlives its maker."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scripts.cluster import REPOSITORY, Cluster, ClusterError
from tests.helpers.nodes import skip_without_nodes
from tests.helpers.programs import DEADLINE_SECONDS, Program

PORT = 5000
# Sends some bytes to a node that counts them.
RECEIVE = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    print("listening", flush=True)
    with server.accept()[0] as peer:
        print(sum(iter(lambda: len(peer.recv(1 << 16)), 0)), flush=True)
"""
SEND = "import socket, sys; socket.create_connection((sys.argv[1], {}), 3).sendall(bytes(int(sys.argv[2])))"


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    skip_without_nodes()
    with Cluster(2, mbit=100.0) as cluster:
        yield cluster


def send(cluster: Cluster, count: int) -> int:
    """Send so many bytes from the first node to the second; return how many arrived."""
    receiver = cluster.nodes[1].popen([sys.executable, "-c", RECEIVE], stdout=subprocess.PIPE)
    with receiver:
        try:
            assert receiver.stdout.readline() == "listening\n"
            target = cluster.nodes[1].address
            cluster.nodes[0].run([sys.executable, "-c", SEND.format(PORT), target, str(count)])
            return int(receiver.stdout.readline())
        finally:
            receiver.kill()


def test_a_node_has_its_own_name_address_and_folders(nodes: Cluster) -> None:
    first, second = nodes.nodes
    first.run(["touch", "/dev/shm/mine", "/tmp/mine"])
    assert "mine" not in second.run(["ls", "/dev/shm", "/tmp"])
    assert not Path("/dev/shm/mine").exists()
    assert not Path("/tmp/mine").exists()
    assert second.run(["hostname"]) == "node1\n"
    assert second.address in second.run(["ip", "address"])
    assert first.address not in second.run(["ip", "address"])


def test_a_node_sees_the_repository_and_the_environment(nodes: Cluster) -> None:
    code = "import crystalline_ray; print(crystalline_ray.__file__)"
    assert nodes.nodes[1].run([sys.executable, "-c", code]).startswith(str(REPOSITORY))


def test_a_node_sees_a_shared_folder_as_it_is() -> None:
    skip_without_nodes()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, Cluster(1, shared=[Path(folder)]) as cluster:
        Path(folder, "here").write_text("from here")
        assert cluster.nodes[0].run(["cat", f"{folder}/here"]) == "from here"
        cluster.nodes[0].run(["sh", "-c", f"echo from there > {folder}/there"])
        assert Path(folder, "there").read_text() == "from there\n"


def test_a_node_sees_only_its_own_processes(nodes: Cluster) -> None:
    with nodes.nodes[0].popen(["sleep", "1000"]) as process:
        try:
            assert "sleep 1000" not in nodes.nodes[1].run(["ps", "-ef"])
        finally:
            process.kill()


def test_a_link_is_counted_and_no_faster_than_its_rate(nodes: Cluster) -> None:
    count, before, start = 5_000_000, nodes.nodes[0].link_bytes(), time.monotonic()
    assert send(nodes, count) == count
    seconds = time.monotonic() - start
    sent = nodes.nodes[0].link_bytes()[1] - before[1]
    assert count < sent < 1.1 * count
    assert seconds > 0.9 * 8e-6 * count / nodes.mbit


def test_a_cut_link_carries_nothing_until_it_is_mended(nodes: Cluster) -> None:
    nodes.cut(1)
    with pytest.raises(ClusterError, match=r"timed out|No route to host"):
        nodes.nodes[0].run([sys.executable, "-c", SEND.format(PORT), nodes.nodes[1].address, "1"])
    nodes.mend(1)
    assert send(nodes, 1) == 1


def test_a_delayed_link_answers_late() -> None:
    skip_without_nodes(delayed=True)
    with Cluster(2, delay_ms=100.0) as cluster:
        start = time.monotonic()
        assert send(cluster, 1) == 1
        assert time.monotonic() - start > 0.2


def test_a_command_that_fails_is_reported_with_its_output(nodes: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"node1: ls /nowhere: exit status 2\n.*No such file"):
        nodes.nodes[1].run(["ls", "/nowhere"])


def test_two_clusters_at_once_have_networks_of_their_own(nodes: Cluster) -> None:
    with Cluster(1) as other:
        assert other.nodes[0].address.rpartition(".")[0] != nodes.nodes[0].address.rpartition(".")[0]


@pytest.mark.ray
def test_ray_runs_on_every_node_and_refuses_a_wrong_token() -> None:
    skip_without_nodes()
    code = "import ray; ray.init('auto', log_to_driver=False, logging_level=40); print(len(ray.nodes()))"
    with Cluster(2, cpus=[1, 1]) as cluster:
        cluster.start_ray()
        assert cluster.nodes[1].run([sys.executable, "-c", code]).strip().endswith("2")
        wrong = {"RAY_AUTH_TOKEN": 64 * "0", "RAY_AUTH_TOKEN_PATH": ""}
        with pytest.raises(ClusterError, match=r"[Aa]uthentication|[Tt]oken"):
            cluster.nodes[0].run([sys.executable, "-c", code], env=wrong)


@pytest.mark.ray
def test_nothing_is_left_when_the_maker_is_killed(tmp_path: Path) -> None:
    skip_without_nodes()
    log, errors = tmp_path / "log", tmp_path / "errors"
    command = [sys.executable, str(REPOSITORY / "scripts/cluster.py"), "up", "--nodes", "1", "--mbit", "1000"]
    with log.open("w") as output, errors.open("w") as error:
        maker = Program(subprocess.Popen(command, stdout=output, stderr=error), log, errors)
    maker.wait_for("Ctrl-C removes it")
    below = psutil.Process(maker.process.pid).children(recursive=True)
    assert any("raylet" in process.name() for process in below)
    maker.process.kill()
    maker.process.wait()
    _, alive = psutil.wait_procs(below, DEADLINE_SECONDS)
    assert not alive
    deadline = time.monotonic() + DEADLINE_SECONDS
    while f"cr{maker.process.pid}" in Path("/proc/net/dev").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
