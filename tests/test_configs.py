from pathlib import Path

import pytest

from crystalline_ray.config import Config, load_config
from crystalline_ray.spheres.plan import occupancy, plan_spheres

CONFIGS = Path(__file__).parents[1] / "configs"


def load(name: str) -> Config:
    return load_config(CONFIGS / f"{name}.yaml")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_configuration_is_valid(path: Path) -> None:
    assert load_config(path) != Config()


def test_box_of_64_cores_has_no_idle_leaf() -> None:
    config = load("box64")
    plan = plan_spheres([range(config.threads or 0)], coordinators=config.coordinators)
    assert plan.counts() == {"root": 1, "controls": 12, "leaves": 51}
    assert occupancy(plan, config.micro_batches).idle == 0


def test_shakespeare_recipe_is_the_published_one() -> None:
    config = load("shakespeare_char")
    assert (config.num_layers, config.num_heads, config.embed_dim, config.seq_len) == (4, 4, 128, 64)
    assert (config.global_batch_size, config.steps, config.warmup_steps) == (12, 2000, 100)
    assert (config.learning_rate, config.min_learning_rate, config.schedule) == (1e-3, 1e-4, "cosine")
    assert (config.beta2, config.weight_decay, config.clip_norm, config.dropout) == (0.99, 0.1, 1.0, 0.0)
    assert (config.tokenizer, config.validation_split, config.validation_fraction) == ("char", "tail", 0.1)
