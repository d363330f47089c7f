"""Train on integers of your own: here a noisy walk on a clock of twelve hours."""

import numpy as np

from crystalline_ray import Config, train

random = np.random.default_rng(7)
steps = random.choice([1, 1, 1, 1, 2, -1], size=20_000)
hours = (np.cumsum(steps) % 12).astype(np.uint16)

config = Config(tokenizer="none", seq_len=32, embed_dim=32, num_layers=1, batch_size=8, steps=60, engine="local")
run = train(config, tokens=hours)

print(f"{run.report.validation_loss:.3f} nats per hour; guessing takes {np.log(12):.3f}")
print(run.model.generate("3 4 5", max_tokens=12))
