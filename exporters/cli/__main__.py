"""`python -m lensmith.exporters.cli` is `lensmith`."""

from . import main

if __name__ == "__main__":
    main()
