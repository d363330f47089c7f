"""The tree of kissing spheres: plan, roles, messages and shared memory. No engine in here."""
