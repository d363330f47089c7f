"""A clock for the parts of a step: kernels and matrix products, timed under the names by which the model calls them."""

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from crystalline_ray.kernels import gemm
from crystalline_ray.spheres import segment_owner

_KERNELS = ("crystalline_ray.kernels.", "crystalline_ray.crystal.")
_CALLERS = ("crystalline_ray.model.", "crystalline_ray.crystal.", segment_owner.__name__)

_Function = Callable[..., Any]


@dataclass
class KernelTime:
    """Cost of one kernel: its calls, their seconds without those of kernels within, and the part of it in products."""

    calls: int = 0
    seconds: float = 0.0
    product_seconds: float = 0.0


class _Clock:
    """Wraps functions; the time of a kernel within a kernel is the inner one's alone."""

    def __init__(self) -> None:
        self.times: dict[str, KernelTime] = {}
        self._current: KernelTime | None = None
        self._within = 0.0
        self._multiplying = False

    def timed(self, name: str, function: _Function, *, product: bool = False) -> _Function:
        """Time a kernel, or a product for the kernel that asks for it; without one it is a kernel of its own."""
        own = self.times.setdefault(name, KernelTime())

        def timed(*arguments: Any, **options: Any) -> Any:
            if product and self._multiplying:
                return function(*arguments, **options)
            outer, before = self._current, self._within
            # A product is part of the kernel that calls it; outside of kernels it is charged as one of its own.
            charged = own if outer is None or not product else outer
            if charged is own:
                self._current, self._within = own, 0.0
            self._multiplying = product
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - start
                self._multiplying = False
                if product:
                    charged.product_seconds += elapsed
                if charged is own:
                    own.calls += 1
                    own.seconds += elapsed - self._within
                    self._current, self._within = outer, before + elapsed

        return timed


@contextmanager
def timed_kernels() -> Iterator[dict[str, KernelTime]]:
    """Time every kernel for the duration, at the cost of two clock readings a call; yields the times by name.

    Kernels are the functions `*_forward`, `*_backward` and `*_update` that model, crystal and segment owners import
    from the kernels by name, and the segment owners' `reduce`. Products are the gemm seam's `multiply` and
    `add_product`; one that the model asks for without a kernel appears as a kernel itself.
    """
    clock = _Clock()
    with ExitStack() as stack:

        def wrap(place: Any, name: str, shown: str, *, product: bool = False) -> None:
            function = getattr(place, name)
            stack.callback(setattr, place, name, function)
            setattr(place, name, clock.timed(shown, function, product=product))

        wrap(segment_owner.SegmentOwner, "reduce", "segment_reduce")
        for name in ("multiply", "add_product"):
            wrap(gemm, name, f"gemm.{name}", product=True)
        for module in [module for name, module in sys.modules.items() if name.startswith(_CALLERS)]:
            for name, function in inspect.getmembers(module, inspect.isfunction):
                if function.__module__.startswith(_KERNELS) and name.endswith(("_forward", "_backward", "_update")):
                    wrap(module, name, name)
        yield clock.times
