"""`python -m mrcnn`: the console command."""

import sys

from mrcnn.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
