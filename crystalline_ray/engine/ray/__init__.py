"""The Ray engine: every sphere an actor, one shared-memory arena per node."""

import os

# Ray reads this when it is first imported. It makes Ray bind the loopback address on Linux too, instead of all
# interfaces: nothing is to reach a single-machine run from outside.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
