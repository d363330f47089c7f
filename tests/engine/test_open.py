"""Which engine hosts the spheres, and what is refused before anything starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crystalline_ray.engine.base import refuse_clusters
from crystalline_ray.errors import ConfigError
from crystalline_ray.spheres.config import TreeConfig

SECONDS = 120.0


def test_an_address_of_a_cluster_is_refused_for_ray_and_no_matter_for_the_local_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS = '10.0.0.1:6379': .* unset RAY_ADDRESS$"):
        refuse_clusters(TreeConfig(engine="ray"))
    refuse_clusters(TreeConfig(engine="local"))
    for absent in ("", None):
        if absent is None:
            monkeypatch.delenv("RAY_ADDRESS")
        else:
            monkeypatch.setenv("RAY_ADDRESS", absent)
        refuse_clusters(TreeConfig(engine="ray"))


def test_training_with_an_address_ends_with_code_2_before_the_text_is_read(tmp_path: Path) -> None:
    words = ["train", str(tmp_path / "missing.txt"), "--runs-dir", str(tmp_path / "runs")]
    done = subprocess.run(
        [str(Path(sys.executable).with_name("crystalline-ray")), *words],
        env=os.environ | {"RAY_ADDRESS": "ray://head:10001"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 2
    assert "RAY_ADDRESS = 'ray://head:10001'" in done.stderr
    assert "missing.txt" not in done.stderr
    assert list(tmp_path.iterdir()) == []


TWICE = """
import os
import ray
from crystalline_ray.engine.ray.session import ray_session
from crystalline_ray.errors import ConfigError
for _ in range(2):
    before = dict(os.environ)
    with ray_session():
        assert dict(os.environ) == before
        assert ray.get(ray.put(7)) == 7
    assert dict(os.environ) == before
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=80 << 20, log_to_driver=False)
try:
    with ray_session():
        pass
except ConfigError as error:
    print(error)
assert ray.get(ray.put(7)) == 7
"""


@pytest.mark.ray
def test_ray_runs_twice_in_a_process_leaves_its_environment_and_refuses_a_second_ray(tmp_path: Path) -> None:
    home = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", TWICE], env=home, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "Ray runs in this process already" in done.stdout


WARNED = """
import time
from crystalline_ray.engine.ray.session import ray_session
from ray._private.utils import publish_error_to_driver
from ray._private.worker import global_worker
with ray_session():
    publish_error_to_driver("worker_pool_large", "50 processes have been started", global_worker.gcs_client)
    time.sleep(3)  # Ray's own thread would have printed it by then
"""


@pytest.mark.ray
def test_what_rays_processes_warn_of_is_not_printed_amid_our_lines() -> None:
    done = subprocess.run([sys.executable, "-c", WARNED], capture_output=True, text=True, timeout=SECONDS)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
