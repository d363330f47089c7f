"""`python -m crystalline_ray`: the command line."""

import sys

from crystalline_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
