"""Neighbour mixing in a run."""

from collections.abc import Callable

from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.model.layout import initialise
from crystalline_ray.spheres.run_spec import RunSpec
from tests.helpers.engine_runs import run_step

MIXING = "wte.mixing"


def test_an_alpha_frozen_at_zero_trains_the_plain_model_to_the_bit(make_run: Callable[..., RunSpec]) -> None:
    weights = []
    for mixing in (False, True):
        run = make_run(3, clip_norm=0.0, neighbour_mixing=mixing)  # alpha has a part in the norm that clipping needs
        with LocalEngine(run) as engine:
            engine.memory.weights(0)[:] = initialise(run.layout, 1)
            engine.start(lambda *_: None)
            for step in range(3):
                run_step(engine, step, step, 0.01)
                views = run.layout.views(engine.memory.weights(step + 1))
                if mixing:
                    assert views[MIXING].item() != 0.0
                    views[MIXING][:] = 0.0
            weights.append({name: view.copy() for name, view in views.items() if name != MIXING})
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].tobytes() == weights[1][name].tobytes() for name in weights[0])
