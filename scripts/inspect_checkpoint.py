"""Print what a weight file contains: `surgenet inspect` in a checkout."""

from surgenet_hf.cli.inspect import main

if __name__ == "__main__":
    main()
