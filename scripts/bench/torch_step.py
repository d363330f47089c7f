"""The work of a leaf in PyTorch eager: the same model, batch, optimizer and constants, in the form measured fastest.

docs/performance.md says what was compared: attention by `scaled_dot_product_attention`, the fused AdamW.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from crystalline_ray.bench.work import Work, zipf_batch
from crystalline_ray.model.config import ModelShape


class Block(nn.Module):
    """One transformer block of GPT-2."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        width = shape.embed_dim
        self.heads = shape.num_heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map the residual stream (B, T, C) to that after the block."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm_1(x)).split(width, 2)
        q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in parts)
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention_out(heads.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(functional.gelu(self.expand(self.norm_2(x)), approximate="tanh"))


class Model(nn.Module):
    """GPT-2 with the head tied to the token embedding."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.embed_dim)
        self.positions = nn.Embedding(shape.seq_len, shape.embed_dim)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.num_layers)))
        self.norm = nn.LayerNorm(shape.embed_dim)
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of tokens (B, T)."""
        x = self.tokens(tokens) + self.positions.weight
        return functional.linear(self.norm(self.blocks(x)), self.tokens.weight)


def torch_step(work: Work, *, autocast: bool) -> Callable[[], float]:
    """Return a function that runs the next optimizer step and gives its loss; with `autocast` in bfloat16.

    PyTorch is set up as a leaf is: one thread, denormals flushed.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(1)
    model = Model(work.shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    inputs, targets = (torch.from_numpy(tokens.astype(np.int64)) for tokens in zipf_batch(work))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(inputs)
            loss = functional.cross_entropy(logits.view(-1, work.shape.vocab_size), targets.view(-1))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
