"""Read the weights of a trained model into NumPy, under the names and shapes of GPT-2."""

import numpy as np

from crystalline_ray import Config, load_model, train

texts = ["spheres kiss spheres"] * 60
config = Config(
    name="weights", tokenizer="char", seq_len=16, embed_dim=24, num_layers=1, num_heads=2, steps=10, engine="local"
)
train(config, texts=texts, progress=False)

model = load_model("runs/weights")
for name, array in model.weights().items():
    print(f"{name:22} {array.shape!s:10} norm {np.linalg.norm(array):.3f}")
table = model.weights()["wte.weight"]
print("characters nearest to 's':", end=" ")
ids = np.argsort(-table @ table[model.tokenizer.encode("s")[0]])
print(repr(model.tokenizer.decode(ids[:4].tolist())))
