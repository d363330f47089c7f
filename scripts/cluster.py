"""A real Ray cluster on one Linux machine, to try and test what needs several nodes.

    python scripts/cluster.py up --nodes 3 --mbit 1000 --delay-ms 1
    python scripts/cluster.py up --nodes 2 -- ray status

Each node is a set of kernel namespaces: its own network address, host name, processes, /dev/shm and /tmp. A bridge
joins the nodes; `tc` shapes their links; the kernel counts their bytes. `up` starts Ray on every node with token
authentication, then runs a command on the head, or waits for Ctrl-C.

Nothing outlives the process that made the cluster, even if it is killed: all namespaces are unnamed and end with their
processes, which end when the pipe from that process closes. It needs root, `ip`, `tc`, `unshare` and `nsenter`.
"""

import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import click
import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
RAY_PORT = 6379
_DEADLINE_SECONDS = 120.0

# Free for networks that exist only for measurements (RFC 2544).
_NETWORK = "198.18"
_BRIDGE = "bridge"

# The init of a node's process namespace. Its /tmp is made beside the old one, which holds what the node shall share.
_NODE = """
set -e
hostname "$1"
shift
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /mnt
mkdir -m 700 /mnt/home
for folder in "$@"; do
    mkdir -p "/mnt/$folder"
    mount --bind "/tmp/$folder" "/mnt/$folder"
done
mount --move /mnt /tmp
cd /
echo ready
read -r _ || true
"""


class ClusterError(RuntimeError):
    """The system does not permit such a cluster, or a part of it did not start."""


class Namespace:
    """Unnamed namespaces that end with this process, held by a process that waits for the end of its input."""

    def __init__(self, kinds: Sequence[str], script: str, *arguments: str) -> None:
        command = ["unshare", *(f"--{kind}" for kind in kinds), "--fork", "--kill-child", "bash", "-c", script, "node"]
        self._holder = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            raise ClusterError(f"namespaces: {self._holder.communicate()[1].strip()}")
        self.pid = psutil.Process(self._holder.pid).children()[0].pid

    def command(self, arguments: Sequence[str], folder: str = "/") -> list[str]:
        """Return the command that runs `arguments` inside, in the working directory `folder`."""
        inside = ["nsenter", "--all", "--target", str(self.pid), "setpriv", "--pdeathsig", "KILL"]
        return [*inside, "env", f"--chdir={folder}", *arguments]

    def ip(self, arguments: str) -> None:
        """Run `ip` inside; the device `self` does not exist there yet."""
        _run(["nsenter", "--net", "--target", str(self.pid), "ip", *arguments.split()])

    def limit(self, device: str, mbit: float) -> None:
        """Let at most `mbit` 10^6 bits a second leave by a device; what waits longer than 50 ms is lost."""
        burst = max(65_536, int(mbit * 250))  # 2 ms of the rate, and the largest packet that is not cut
        self._queue(f"dev {device} root handle 1: tbf rate {mbit}mbit burst {burst} latency 50ms")

    def delay(self, device: str, milliseconds: float, mbit: float | None) -> None:
        """Hold what leaves by a device for so long, and limit its rate as `limit` does."""
        rate = f"rate {mbit}mbit" if mbit else ""
        self._queue(f"dev {device} root netem delay {milliseconds}ms {rate} limit 100000")

    def _queue(self, arguments: str) -> None:
        _run(["nsenter", "--net", "--target", str(self.pid), "tc", "qdisc", "replace", *arguments.split()])

    def close(self) -> None:
        """End every process inside; may be called again."""
        if self._holder.returncode is None:
            self._holder.communicate(timeout=_DEADLINE_SECONDS)


@dataclass
class Node:
    """A machine of the cluster.

    Attributes:
        environment: variables that its processes have beside those of this process.
        cores: the cores its processes may use.
    """

    name: str
    address: str
    space: Namespace
    environment: Mapping[str, str]
    cores: Sequence[int]
    ray: "subprocess.Popen[str] | None" = None

    def popen(
        self,
        command: Sequence[str],
        folder: Path = REPOSITORY,
        env: Mapping[str, str] = MappingProxyType({}),
        **to: Any,
    ) -> "subprocess.Popen[str]":
        """Start a command on this node with variables `env`; other options are those of `subprocess.Popen`."""
        bound = ["taskset", "--cpu-list", ",".join(map(str, self.cores)), *command]
        outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        variables = {**outside, **self.environment, **env}
        return subprocess.Popen(self.space.command(bound, str(folder)), text=True, env=variables, **to)

    def run(self, command: Sequence[str], timeout: float = _DEADLINE_SECONDS, **options: Any) -> str:
        """Run a command on this node and return what it printed; raise ClusterError if it fails or takes longer."""
        with self.popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise ClusterError(f"{self.name}: {shlex.join(command)}: no end after {timeout:.0f} s") from None
        if process.returncode:
            raise ClusterError(f"{self.name}: {shlex.join(command)}: exit status {process.returncode}\n{output}")
        return str(output)

    def link_bytes(self) -> tuple[int, int]:
        """Return the bytes that the node has received and sent over its link."""
        lines = Path(f"/proc/{self.space.pid}/net/dev").read_text().splitlines()
        counters = next(line for line in lines if line.strip().startswith("eth0:")).split(":")[1].split()
        return int(counters[0]), int(counters[8])

    def close(self) -> None:
        """End every process of the node at once, as if its power had failed."""
        self.space.close()
        if self.ray:
            self.ray.wait(_DEADLINE_SECONDS)

    def enter(self) -> str:
        """Return the command line that opens a shell on this node."""
        settings = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(self.space.command(["env", *settings, "bash"], str(REPOSITORY)))


@dataclass
class Cluster:
    """Nodes joined by a bridge, and this machine, which reaches them at their addresses; a context manager.

    Attributes:
        count: number of nodes; the first is the head.
        mbit: rate of each node's link in 10^6 bits a second, in both directions; None for no limit.
        delay_ms: time a packet takes from one node to another.
        cpus: CPUs that Ray is told each node has; by default the cores of this machine.
        cores: cores that the processes of each node may use; by default all.
        jobs: whether the head accepts jobs; this needs `ray[default]`.
        shared: folders below /tmp that all nodes see; the repository and the Python environment are always seen.
    """

    count: int
    mbit: float | None = None
    delay_ms: float = 0.0
    cpus: Sequence[int] | None = None
    cores: Sequence[Sequence[int]] | None = None
    jobs: bool = False
    shared: Sequence[Path] = ()
    nodes: list[Node] = field(default_factory=list)
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def address(self) -> str:
        """Address of the cluster, for `ray.init` and `--address`."""
        return f"{self.nodes[0].address}:{RAY_PORT}"

    @cached_property
    def token(self) -> str:
        """Secret that every process of the cluster shows to every other."""
        return secrets.token_hex(32)

    def __enter__(self) -> Self:
        refuse_unfit_systems()
        if self.delay_ms:
            refuse_undelayed_links()
        with ExitStack() as opened:
            self._switch = Namespace(["net"], "echo ready; read -r _ || true")
            opened.callback(self._switch.close)
            self._switch.ip(f"link add {_BRIDGE} type bridge")
            self._switch.ip(f"link set {_BRIDGE} up")
            opened.callback(self._join_this_machine())
            for number in range(self.count):
                self.nodes.append(self._make_node(number, opened))
                opened.callback(self.nodes[-1].close)
            self._open = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()
        self.nodes.clear()

    def start_ray(self, *options: str) -> None:
        """Start Ray on every node, the head first; `options` are those of `ray start`."""
        for number in range(self.count):
            self.start_node(number, *options)

    def start_node(self, number: int, *options: str) -> None:
        """Start Ray on one node and wait until it says that it runs."""
        node = self.nodes[number]
        head = ["--head", f"--port={RAY_PORT}", f"--include-dashboard={self.jobs}"]
        place = [f"--address={self.address}"] if number else head
        cpus = self.cpus[number] if self.cpus else len(node.cores)
        given = [f"--node-ip-address={node.address}", f"--num-cpus={cpus}", "--disable-usage-stats", *options]
        ray = str(Path(sys.executable).with_name("ray"))
        log = Path(f"/proc/{node.space.pid}/root/tmp/ray_start.log")
        with log.open("w", encoding="utf-8") as output:
            command = [ray, "start", "--block", *place, *given]
            node.ray = node.popen(command, stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while "Ray runtime started" not in (printed := log.read_text(encoding="utf-8")):
            if node.ray.poll() is not None or time.monotonic() > deadline:
                raise ClusterError(f"{node.name}: Ray did not start:\n{printed}")
            time.sleep(0.05)

    def cut(self, number: int) -> None:
        """Cut a node's link; packets are lost without a word."""
        self._switch.ip(f"link set port{number} down")

    def mend(self, number: int) -> None:
        """Restore a link that was cut; drop what the nodes still believe about addresses that did not answer."""
        self._switch.ip(f"link set port{number} up")
        for node in self.nodes:
            node.space.ip("neigh flush dev eth0")

    def _make_node(self, number: int, opened: ExitStack) -> Node:
        below_tmp = [str(path.relative_to("/tmp")) for path in self._seen() if path.is_relative_to("/tmp")]
        kinds = ["net", "mount", "pid", "mount-proc", "uts", "ipc"]
        name, address = f"node{number}", f"{self._subnet}.{number + 2}"
        space = opened.enter_context(closing(Namespace(kinds, _NODE, name, *below_tmp)))
        self._switch.ip(f"link add port{number} type veth peer name eth0 netns {space.pid}")
        self._switch.ip(f"link set port{number} master {_BRIDGE} up")
        for command in ("link set lo up", f"address add {address}/24 dev eth0", "link set eth0 up"):
            space.ip(command)
        space.ip(f"route add default via {self._subnet}.1")
        if self.mbit:
            space.limit("eth0", self.mbit)
        if self.delay_ms:
            self._switch.delay(f"port{number}", self.delay_ms, self.mbit)
        elif self.mbit:
            self._switch.limit(f"port{number}", self.mbit)
        environment = {
            "HOME": "/tmp/home",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": "/tmp/home/token",
            "TMPDIR": "/tmp",
        }
        token = Path(f"/proc/{space.pid}/root/tmp/home/token")
        token.touch(mode=0o600)
        token.write_text(self.token, encoding="utf-8")
        cores = self.cores[number] if self.cores else sorted(os.sched_getaffinity(0))
        return Node(name, address, space, environment, cores)

    def _seen(self) -> list[Path]:
        return [REPOSITORY, Path(sys.prefix), *(path.resolve() for path in self.shared)]

    def _join_this_machine(self) -> Callable[[], None]:
        """Give this machine an address in the cluster's network; return what takes it away again."""
        device = f"cr{os.getpid()}-{secrets.token_hex(2)}"
        self._switch.ip(f"link add host type veth peer name {device} netns {os.getpid()}")
        self._switch.ip(f"link set host master {_BRIDGE} up")
        self._subnet = _free_subnet()
        _run(f"ip address add {self._subnet}.1/24 dev {device}".split())
        _run(f"ip link set {device} up".split())
        return lambda: self._switch.ip("link delete host")  # the kernel would do it, a little later


def refuse_unfit_systems() -> None:
    """Raise ClusterError with the reason if this system does not permit namespaces and shaped links."""
    if sys.platform != "linux" or os.geteuid() != 0:
        raise ClusterError("a cluster of namespaces needs root on Linux")
    for program in ("ip", "tc", "unshare", "nsenter", "setpriv", "taskset"):
        if shutil.which(program) is None:
            raise ClusterError(f"a cluster of namespaces needs the program {program}")
    _try("tc qdisc add dev lo root tbf rate 1mbit burst 10kb latency 1ms", "limits on links are not permitted here")
    _try("ip link add bridge type bridge", "bridges are not permitted here")
    _try("ip link add one type veth peer name other", "links between namespaces are not permitted here")


def refuse_undelayed_links() -> None:
    """Raise ClusterError if this kernel cannot delay packets."""
    _try("tc qdisc add dev lo root netem", "this kernel has no netem, which delays packets")


def _try(command: str, otherwise: str) -> None:
    try:
        _run(["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", *command.split()])
    except ClusterError as error:
        raise ClusterError(f"{otherwise} ({error})") from error


def _free_subnet() -> str:
    """Return the first three bytes of a network that this machine has not, first one that others hardly try first."""
    taken = _run(["ip", "address"])
    for number in range(256):
        if (subnet := f"{_NETWORK}.{(os.getpid() + number) % 256}") + "." not in taken:
            return subnet
    raise ClusterError(f"all networks below {_NETWORK} are in use")


def _run(command: Sequence[str]) -> str:
    """Run a command that takes no time and return what it printed; raise ClusterError with what it says if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_SECONDS)
    if done.returncode:
        raise ClusterError(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _said() -> Iterator[None]:
    """End with the sentence of a ClusterError, without its traceback."""
    try:
        yield
    except ClusterError as error:
        raise click.ClickException(str(error)) from error


@click.group()
def main() -> None:
    """Make a Ray cluster of real nodes on this machine."""


@main.command()
@click.option("--nodes", default=2, show_default=True, type=click.IntRange(1, 200), help="Number of nodes.")
@click.option("--mbit", type=click.FloatRange(min=0.1), help="Rate of each link in 10^6 bits a second. [default: none]")
@click.option("--delay-ms", default=0.0, show_default=True, help="Time a packet takes from a node to another.")
@click.option("--cpus", type=click.IntRange(min=0), help="CPUs of each node. [default: those of this machine]")
@click.argument("command", nargs=-1)
def up(nodes: int, mbit: float | None, delay_ms: float, cpus: int | None, command: tuple[str, ...]) -> None:
    """Start a cluster and run COMMAND on its head, or wait for Ctrl-C; then remove the cluster."""
    with _said(), Cluster(nodes, mbit, delay_ms, None if cpus is None else [cpus] * nodes) as cluster:
        for number, node in enumerate(cluster.nodes):
            click.echo(f"{node.name}: {node.address}, starting Ray", err=True)
            cluster.start_node(number)
        if command:
            sys.exit(cluster.nodes[0].popen(command).wait())
        click.echo(f"\nThe cluster is at {cluster.address}. Open a shell on a node with")
        for node in cluster.nodes:
            click.echo(f"    {node.enter()}")
        click.echo("Ctrl-C removes it.")
        while True:
            time.sleep(3600)


if __name__ == "__main__":
    main()
