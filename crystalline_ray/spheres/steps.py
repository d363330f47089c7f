"""The arithmetic of a run's steps: the sequences, micro-batches and tokens of each."""

from dataclasses import dataclass

from crystalline_ray.lattice.symmetry import GROUPS


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a run, numbered from 0; all but the last have the same size.

    Attributes:
        batch_size: sequences of a micro-batch.
        sequences_per_step: sequences of a global batch, whole micro-batches.
        total_sequences: sequences of the run; later ones are masked.
        seq_len: target tokens of a sequence.
        equal_groups: whether each symmetry group has equally many micro-batches, even if some hold no sequence.
    """

    batch_size: int
    sequences_per_step: int
    total_sequences: int
    seq_len: int
    equal_groups: bool

    @property
    def total(self) -> int:
        """Number of steps."""
        return -(-self.total_sequences // self.sequences_per_step)

    @property
    def micro_batches_per_step(self) -> int:
        """Micro-batches of a full step."""
        return self.sequences_per_step // self.batch_size

    @property
    def groups(self) -> int:
        """Symmetry groups that have a micro-batch in a full step."""
        return min(GROUPS, self.micro_batches_per_step)

    def sequences(self, step: int) -> int:
        """Return the sequences of a step: fewer than usual only in the last step, none after it."""
        return max(0, min(self.sequences_per_step, self.total_sequences - step * self.sequences_per_step))

    def micro_batches(self, step: int) -> int:
        """Return the micro-batches of a step: those that hold any sequence, more where `equal_groups` needs them."""
        unit = GROUPS if self.equal_groups else 1
        return unit * -(-self.sequences(step) // (unit * self.batch_size))

    def tokens(self, step: int) -> int:
        """Return the target tokens of a step."""
        return self.sequences(step) * self.seq_len
