"""Running a few steps on any engine."""

from crystalline_ray.engine.base import Engine
from crystalline_ray.model.layout import initialise, weights_digest
from crystalline_ray.progress import silent
from crystalline_ray.spheres.messages import EvaluationRequest, Rates, StepResult, StepsRequest
from crystalline_ray.spheres.run_spec import RunSpec
from crystalline_ray.training.schedule import smoothing_weight


def run_step(
    engine: Engine, step: int, version: int, learning_rate: float, smoothing_weight: float = 0.0
) -> StepResult:
    """Run one step that reads the weights of a version."""
    [result] = engine.run_steps(StepsRequest(step, version, (Rates(learning_rate, smoothing_weight),)))
    return result


def train_steps(engine: Engine, run: RunSpec, steps: int, learning_rate: float = 0.01) -> tuple[str, list[float]]:
    """Start the engine, run steps and a validation; return the digest of the weights and all losses."""
    engine.memory.weights(0)[:] = initialise(run.layout, run.config.seed, run.config.embedding_init)
    engine.start(silent)
    losses = []
    for step in range(steps):
        weight = smoothing_weight(run.config, step, run.steps.total)
        losses.append(run_step(engine, step, step, learning_rate, weight).loss)
    losses.append(engine.evaluate(EvaluationRequest(steps, steps, 7)).loss)
    return weights_digest(engine.memory.weights(steps)), losses
