"""Where a run stands."""

from pydantic import BaseModel, ConfigDict


class TrainingState(BaseModel):
    """Where a run stands, but for weights and moments. Randomness is counter-based: seed, step and sequences fix it.

    Losses are in nats per token, None before the first measurement. `weights_digest` and `is_best` are filled in when
    the checkpoint is written.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """Optimizer steps finished, skipped ones included; the next step has this index."""
    total_steps: int
    sequences: int
    """Training sequences consumed; the next one has this number, which fixes the position in the data."""
    epoch: int
    tokens_seen: int
    seed: int
    optimizer: str
    config_digest: str
    data_digest: str = ""
    """Name of the prepared dataset: a hash of the text and of all that decides its tokens."""
    began_from: str = ""
    """`weights_digest` of the checkpoint whose weights the run began with; empty for a model that was new."""
    weights_digest: str = ""
    skipped_steps: int = 0
    restarts: int = 0
    elapsed_seconds: float = 0.0
    train_loss: float | None = None
    first_validation_loss: float | None = None
    validation_loss: float | None = None
    best_validation_loss: float | None = None
    is_best: bool = False

    @property
    def version(self) -> int:
        """Updates applied so far: the version of the weights."""
        return self.step - self.skipped_steps
