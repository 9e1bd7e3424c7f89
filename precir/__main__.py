"""`python -m precir`."""

import sys

from precir.cli import main

if __name__ == "__main__":
    sys.exit(main())
