"""Saving as one of the subscribers: what is due is written in the background, and `Saved` is said when it is there."""

from crystalline_ray.spheres.memory import Memory
from crystalline_ray.training.checkpoint_writer import CheckpointWriter
from crystalline_ray.training.events import Event, Saved, SaveDue, Subscriber


class Checkpointing:
    """Hands what is due to `writer`, from `memory`; raises what the writer meets. Saves no step twice."""

    def __init__(self, writer: CheckpointWriter, memory: Memory, say: Subscriber) -> None:
        self._writer, self._memory, self._say = writer, memory, say

    def __call__(self, event: Event) -> None:
        """Begin to save what is due; say what is saved since the last event."""
        if isinstance(event, SaveDue):
            state = event.state
            if self._writer.last_step != state.step:
                moments = self._memory.state(state.version)
                self._writer.save(state, self._memory.weights(state.version), moments, is_best=event.is_best)
            if event.wait:
                self._writer.wait()
        for saved in self._writer.take_saved():
            self._say(Saved(saved))
