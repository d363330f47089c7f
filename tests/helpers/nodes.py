"""Clusters of real nodes on this machine, for tests that skip where the system does not permit them."""

import pytest

from scripts import cluster


def skip_without_nodes(delayed: bool = False) -> None:
    """Skip the test, with the reason, where this system permits no cluster."""
    try:
        cluster.refuse_unfit_systems()
        if delayed:
            cluster.refuse_undelayed_links()
    except cluster.ClusterError as error:
        pytest.skip(str(error))
