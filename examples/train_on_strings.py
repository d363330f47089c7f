"""Train a small model on a list of strings and print what it writes."""

from crystalline_ray import Config, train

whose = ["the root", "a leaf", "every control", "one sphere", "the crystal"]
does = ["counts", "carries", "adds up", "passes on", "remembers"]
what = ["the gradients", "a batch", "twelve sums", "its neighbours", "the weights"]
texts = [f"{subject} {verb} {thing}" for subject in whose for verb in does for thing in what]

config = Config(tokenizer="char", seq_len=32, embed_dim=48, num_layers=2, steps=100, learning_rate=5e-3, engine="local")
run = train(config, texts=texts)

print(f"{run.report.validation_loss:.3f} nats per character")
print(run.model.generate("the root ", max_tokens=80))
