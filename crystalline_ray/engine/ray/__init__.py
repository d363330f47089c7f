"""The Ray engine: every sphere an actor, one shared-memory arena per node.

`import ray` sets a variable of the environment and puts copies of libraries first in `sys.path`; both are undone here.
"""

import sys

from crystalline_ray.engine.process import environment

_path = list(sys.path)
with environment({}):
    import ray as ray
sys.path[:] = _path
