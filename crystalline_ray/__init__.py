"""A distributed trainer for GPT-style language models on CPUs, hosted by a tree of Ray actors.

The names below are the public interface. They load on first use: importing the package loads neither NumPy nor Ray.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crystalline_ray.api import Run, load_model, train
    from crystalline_ray.config import Config, load_config
    from crystalline_ray.generation.model import Model

__version__ = "0.1.0"

__all__ = ["Config", "Model", "Run", "__version__", "load_config", "load_model", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "config" if name in ("Config", "load_config") else "api"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
