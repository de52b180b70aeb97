"""`python -m lensmith.cli` is `lensmith`."""

from . import main

if __name__ == "__main__":
    main()
