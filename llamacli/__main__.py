"""`python -m llamacli` is `llamacli`."""

import sys

from llamacli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
