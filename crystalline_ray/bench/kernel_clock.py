"""Where the time of a step goes: kernels and matrix products timed under the names by which the model calls them."""

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
    """Cost of one kernel: calls, seconds without those of kernels within, and how many of these in products."""

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

    def kernel(self, name: str, function: _Function) -> _Function:
        own = self.times.setdefault(name, KernelTime())

        def timed(*arguments: Any, **options: Any) -> Any:
            outer, before = self._current, self._within
            self._current, self._within = own, 0.0
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                elapsed = time.perf_counter() - start
                own.calls += 1
                own.seconds += elapsed - self._within
                self._current, self._within = outer, before + elapsed

        return timed

    def product(self, name: str, function: _Function) -> _Function:
        """Time a product for the kernel that asks for it; one that no kernel asks for is a kernel of its own."""

        def timed(*arguments: Any, **options: Any) -> Any:
            if self._current is None:
                return alone(*arguments, **options)
            if self._multiplying:
                return function(*arguments, **options)
            self._multiplying = True
            start = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self._current.product_seconds += time.perf_counter() - start
                self._multiplying = False

        alone = self.kernel(name, timed)
        return timed


@contextmanager
def timed_kernels() -> Iterator[dict[str, KernelTime]]:
    """Time every kernel for the duration, at the cost of two clock readings a call; yields the times by name.

    Kernels are the functions `*_forward`, `*_backward` and `*_update` that model, crystal and segment owners import
    from the kernels by name, and the segment owners' `reduce`. Products are the functions of the gemm seam called
    `*multiply*` or `*product*`; one that the model asks for without a kernel appears as a kernel itself. All names are
    put back at the end.
    """
    clock = _Clock()
    owner = segment_owner.SegmentOwner
    wrapped: list[tuple[Any, str, _Function]] = [(owner, "reduce", clock.kernel("segment_reduce", owner.reduce))]
    for module in [module for name, module in sys.modules.items() if name.startswith(_CALLERS)]:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__.startswith(_KERNELS) and name.endswith(("_forward", "_backward", "_update")):
                wrapped.append((module, name, clock.kernel(name, function)))
    for name, function in inspect.getmembers(gemm, inspect.isfunction):
        if "multiply" in name or "product" in name:
            wrapped.append((gemm, name, clock.product(f"gemm.{name}", function)))
    with ExitStack() as stack:
        for place, name, timed in wrapped:
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, timed)
        yield clock.times
