"""The Ray engine: every sphere an actor, one shared-memory arena per node.

Importing this package settles how Ray runs in this process: Ray reads most of its settings once, when it is first
imported, and its processes inherit them.
"""

import os
import secrets

os.environ.update(
    {
        # Makes Ray bind the loopback address on Linux too, instead of all interfaces: nothing is to reach it from
        # outside. The name is Ray's.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # A token for this process and its actors alone, kept in memory instead of in the user's home folder.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Ray lowers the priority of its workers by 15; here the workers are the work.
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)
