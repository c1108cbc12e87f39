"""The command line: python main.py --help."""

import sys

from barber.console import start

if __name__ == "__main__":
    sys.exit(start("barber.cli:main"))
