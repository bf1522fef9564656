"""`python -m structprune` is `structprune`."""

import sys

from structprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
