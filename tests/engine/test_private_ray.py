"""Ray's ports, token and processes are out of reach of whoever is not the user that trains."""

import base64
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from crystalline_ray.engine.ray.engine import RayEngine
from crystalline_ray.engine.ray.session import sweep_stale
from crystalline_ray.spheres.run_spec import RunSpec
from tests.helpers.grpc_call import call
from tests.helpers.other_user import NOBODY, as_another_user, as_root

ROOT = Path(__file__).parents[2]
SECONDS = 120.0
METHODS = (
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.ObjectManagerService/Push",
)
REFUSALS = (b"InvalidAuthToken", b"401", b"403")


@pytest.fixture
def family(make_run: Callable[..., RunSpec], ray_session: Path) -> Iterator[list[psutil.Process]]:
    """This process and those of its Ray, while spheres run."""
    engine = RayEngine(make_run(2), ray_session)
    with contextlib.closing(engine):
        engine.start(lambda *_: None)
        yield [psutil.Process(), *psutil.Process().children(recursive=True)]


def ports(family: list[psutil.Process]) -> dict[int, str]:
    return {
        connection.laddr.port: process.name()
        for process in family
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def post(port: int, token: str | None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(connection):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        connection.request("POST", "/get_or_create_runtime_env", b"", headers)
        return str(connection.getresponse().status).encode()


def ray_token(family: list[psutil.Process]) -> str:
    (token,) = {process.environ()["RAY_AUTH_TOKEN"] for process in family if process.name() in ("raylet", "gcs_server")}
    return token


@pytest.mark.ray
@pytest.mark.parametrize("token", [None, "0" * 64])
def test_no_port_serves_who_has_not_the_token(family: list[psutil.Process], token: str | None) -> None:
    found = ports(family)
    assert {"raylet", "gcs_server"} <= set(found.values())
    for port, name in found.items():
        answers = [call(port, method, token) for method in METHODS]
        if answers[0].startswith(b"HTTP/1"):
            answers = [post(port, token)]
        assert any(refusal in answer for answer in answers for refusal in REFUSALS), (name, answers)
    served = [port for port, name in found.items() if name == "gcs_server"]
    right = [call(port, METHODS[0], ray_token(family)) for port in served]
    assert right
    assert all(answer and REFUSALS[0] not in answer for answer in right)


@pytest.mark.ray
def test_no_port_is_open_at_the_address_that_others_on_the_network_know(family: list[psutil.Process]) -> None:
    addresses = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    ]
    if not addresses:
        pytest.skip("this machine has no address but the loopback's")
    for address in addresses:
        for port in ports(family):
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=SECONDS)


@pytest.mark.ray
def test_the_token_is_in_no_file_and_on_no_command_line(family: list[psutil.Process], ray_session: Path) -> None:
    token = ray_token(family).encode()
    assert len(token) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ
    for process in family:
        for word in process.cmdline():
            assert token not in word.encode()
            with contextlib.suppress(ValueError):
                assert token not in base64.b64decode(word.rpartition("=")[2], validate=True)
    folders = {ray_session, *Path(tempfile.gettempdir()).glob(f"crystalline-ray-{os.getpid()}-*"), Path.home() / ".ray"}
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("gcs_server") for path in files)
    assert not [path for path in files if token in path.read_bytes()]


@as_root
@pytest.mark.ray
def test_another_user_reads_no_environment_and_signals_no_process(family: list[psutil.Process]) -> None:
    for process in family:
        for command, reason in (
            (f"cat /proc/{process.pid}/environ", "ermission denied"),
            (f"cat /proc/{process.pid}/mem", "ermission denied"),
            (f"kill -9 {process.pid}", "not permitted"),
        ):
            done = as_another_user(command)
            assert done.returncode != 0, command
            assert reason in done.stderr, done.stderr
    assert all(process.is_running() for process in family)


@pytest.mark.ray
def test_no_code_in_the_working_folder_is_run(tmp_path: Path, corpus_file: Path) -> None:
    for name in ("crystalline_ray", "numpy", "psutil", "threadpoolctl"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit\n")
    small = (
        "--tokenizer char --seq-len 16 --embed-dim 8 --num-layers 1 --num-heads 2 --batch-size 2 --threads 2 --steps 1"
    )
    command = [sys.executable, "-P", "-m", "crystalline_ray", "train", str(corpus_file), *small.split()]
    done = subprocess.run(
        [*command, "--cache-dir", "cache"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert not (tmp_path / "ran").exists()
    assert done.returncode == 0, done.stdout + done.stderr


@as_root
def test_folders_that_another_user_makes_and_removes_stop_no_sweep() -> None:
    stale = Path(tempfile.gettempdir(), f"crystalline-ray-{2**30}-{os.getpid()}")
    script = f"trap exit TERM; while mkdir {stale} && rmdir {stale}; do :; done"
    other = subprocess.Popen(["sh", "-c", script], user=NOBODY, group=NOBODY, extra_groups=[], cwd="/")
    try:
        for _ in range(500):
            sweep_stale()
        assert other.poll() is None
    finally:
        other.terminate()  # it ends after the command that it is at
        other.wait(SECONDS)
        with contextlib.suppress(FileNotFoundError):
            stale.rmdir()
