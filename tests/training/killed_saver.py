"""Saves checkpoints in a loop, is killed with SIGKILL at random moments, and looks at what is left.

A program of its own: it forks, which a process that runs tests with threads must not do.
Usage: killed_saver.py FOLDER ROUNDS
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from crystalline_ray.config import Config
from crystalline_ray.engine.local import LocalEngine
from crystalline_ray.model.layout import ParameterLayout
from crystalline_ray.spheres.plan import plan_spheres
from crystalline_ray.spheres.run_spec import RunOf
from crystalline_ray.training.checkpoint import Array, load_newest
from crystalline_ray.training.checkpoint_writer import CheckpointWriter
from crystalline_ray.training.events import Event, Saved
from crystalline_ray.training.state import TrainingState
from tests.helpers.model_shapes import gpt2_shape

SHAPE = gpt2_shape(vocab_size=64, seq_len=16, embed_dim=32, num_layers=2, num_heads=2)
LAYOUT = ParameterLayout(SHAPE)


def numbers(step: int) -> Array:
    buffer = np.zeros(LAYOUT.size, np.float32)
    for view in LAYOUT.views(buffer).values():
        view[...] = step
    return buffer


def save_in_a_loop(folder: Path, first_step: int, saved: int) -> None:
    config = Config(optimizer="sgd", keep_checkpoints=1)
    run = RunOf(config, SHAPE, plan_spheres([[None]]), Path(), config.global_batch_size)
    memory = LocalEngine(run).memory

    def report(event: Event) -> None:
        if isinstance(event, Saved):
            os.write(saved, event.state.step.to_bytes(8, "big"))

    with CheckpointWriter(folder, run, memory, "{}", report) as writer:
        for step in range(first_step, first_step + 100_000):
            for buffer in (memory.weights(step), *memory.state(step).values()):
                buffer[:] = numbers(step)
            # Every step is saved twice: a checkpoint that replaces one of its own step must not lose it either.
            for _ in range(2):
                state = TrainingState(
                    step=step, total_steps=10**6, sequences=0, epoch=0, tokens_seen=0, seed=0, optimizer="sgd",
                    config_digest="",
                )  # fmt: skip
                writer.save(state)


def main(folder: Path, rounds: int) -> None:
    at_least = 0
    for seed in range(rounds):
        saved_end, saved = os.pipe()
        child = os.fork()
        if child == 0:
            save_in_a_loop(folder, at_least + 1, saved)
            os._exit(1)
        os.close(saved)
        # Killed only after its first checkpoint: however slow the machine, every round gets further.
        reported = os.read(saved_end, 8)
        assert reported, "the child failed before it had saved anything"
        time.sleep(random.Random(seed).uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := os.read(saved_end, 8):
            reported = data
        os.close(saved_end)
        at_least = int.from_bytes(reported, "big")
        loaded = load_newest(folder)
        assert loaded.skipped == (), loaded.skipped
        assert loaded.state.step >= at_least, (loaded.state.step, at_least)
        expected = numbers(loaded.state.step).tobytes()
        assert loaded.weights.tobytes() == expected
        assert loaded.moments["velocity"].tobytes() == expected
        at_least = loaded.state.step
    leftovers = sorted(path.name for path in folder.iterdir() if path.name.startswith((".tmp", ".old", ".deleted")))
    print(at_least, *leftovers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
