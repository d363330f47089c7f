import json
import subprocess
import sys

ABSENT = {
    "crystalline_ray": {"ray", "torch", "numpy", "pydantic"},
    "crystalline_ray.cli": {"ray", "torch", "numpy", "pyarrow", "tokenizers"},
    "crystalline_ray.spheres.plan": {"ray", "torch", "pyarrow"},
    "crystalline_ray.training.run": {"ray", "torch"},
}
"""What must not be loaded after importing a module, and those before it, in a process of their own."""


def test_imports_stay_light() -> None:
    code = (
        "import importlib, json, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    print(json.dumps([name, list(sys.modules)]))\n"
    )
    arguments = [sys.executable, "-c", code, *ABSENT]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    loaded = {
        name: {module.split(".")[0] for module in modules}
        for name, modules in map(json.loads, done.stdout.splitlines())
    }
    assert not {name: found for name, absent in ABSENT.items() if (found := absent & loaded[name])}
