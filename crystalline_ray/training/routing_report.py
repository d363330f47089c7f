"""How well routing by symmetry could serve a run: which sequences got their own group, and what the groups read."""

from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from crystalline_ray.crystal.routing import Router, group_loads
from crystalline_ray.data.batches import TrainBatches
from crystalline_ray.data.dataset import Dataset
from crystalline_ray.spheres.plan import SYMMETRY_GROUPS
from crystalline_ray.spheres.routed_batches import find_routes
from crystalline_ray.spheres.run_spec import RunSpec

# Routes follow from the text, so they are found again at the end; so many steps tell the shares to a few per mille.
_MOST_STEPS = 64


class RoutingReport(BaseModel):
    """What routing achieved over the steps of a run, or over 64 of them, evenly spread, if it has more."""

    model_config = ConfigDict(frozen=True)

    steps: int
    """Steps that were looked at."""
    own_group_share: float
    """Share of the sequences that went to the symmetry group that most of their tokens belong to."""
    own_token_shares: tuple[float, ...]
    """For each group, the share of its own tokens among those it read; `group_shares` of the report is by chance."""

    @classmethod
    def of(cls, run: RunSpec, dataset: Dataset, steps: int) -> Self | None:
        """Look at the first `steps` steps of a run; None if it is not routed or has no steps."""
        config = run.config
        if config.routing != "symmetry" or steps == 0:
            return None
        batches = TrainBatches(dataset.train, run.shape.seq_len, config.batch_size, config.seed, run.total_sequences)
        router = Router(run.shape.vocab_size)
        count = min(steps, _MOST_STEPS)
        sequences, own = 0, 0
        read, own_tokens = np.zeros((2, SYMMETRY_GROUPS), np.int64)
        for number in range(count):
            _, routes = find_routes(number * steps // count, run.steps, batches, router)
            sequences += len(routes.groups)
            own += int((routes.groups == routes.affinity.argmax(axis=1)).sum())
            read += group_loads(len(routes.groups)) * run.shape.seq_len
            np.add.at(own_tokens, routes.groups, routes.affinity[np.arange(len(routes.groups)), routes.groups])
        shares = own_tokens / np.maximum(read, 1)  # a run of less than twelve sequences leaves groups without any
        return cls(steps=count, own_group_share=own / sequences, own_token_shares=tuple(shares.tolist()))

    def describe(self) -> str:
        """Return the shares in a line for people; a group's share of the text is a twelfth on average."""
        own, chance = np.mean(self.own_token_shares), 1 / SYMMETRY_GROUPS
        return (
            f"{100 * self.own_group_share:.1f} % of sequences in the group that dominates them; "
            f"own tokens {100 * own:.1f} % ({100 * chance:.1f} % by chance)"
        )
