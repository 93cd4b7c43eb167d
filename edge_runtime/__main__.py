"""`python -m edge_runtime` is `flexmoe`, also where no script is on the PATH."""

from __future__ import annotations

import sys

from edge_runtime.cli import main

if __name__ == "__main__":
    sys.exit(main())
