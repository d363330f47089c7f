import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("crystalline_ray", {"ray", "torch", "numpy", "pydantic"}),
        ("crystalline_ray.cli", {"ray", "torch", "numpy", "pyarrow", "tokenizers"}),
        ("crystalline_ray.spheres.plan", {"ray", "torch", "pyarrow"}),
    ],
)
def test_import_stays_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not absent & set(loaded.stdout.split())
