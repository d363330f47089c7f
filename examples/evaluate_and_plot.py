"""Measure a model on text it has not seen, and draw how its loss fell."""

import json

from matplotlib.figure import Figure

from crystalline_ray import Config, train

words = ["the", "crystal", "of", "kissing", "spheres", "sums", "every", "gradient", "in", "one", "order"]
texts = [" ".join(words[(line * 5 + place) % len(words)] for place in range(8)) for line in range(200)]

config = Config(tokenizer="char", seq_len=32, embed_dim=32, num_layers=1, batch_size=4, steps=80, engine="local")
run = train(config, texts=texts, progress=False)
result = run.model.evaluate(["one order sums every gradient"])
print(f"perplexity {result.perplexity:.2f}, {result.bits_per_byte:.2f} bits per byte")

lines = (run.folder / "metrics.jsonl").read_text().splitlines()
points = [(record["step"], record["loss"]) for record in map(json.loads, lines) if "loss" in record]
figure = Figure(layout="constrained")
axes = figure.add_subplot(xlabel="step", ylabel="loss (nats per token)")
axes.plot(*zip(*points, strict=True))
figure.savefig("loss.png")
print("drawn: loss.png")
