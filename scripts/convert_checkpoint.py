"""Convert a weight file to a model folder: `surgenet convert` in a checkout."""

from surgenet_hf.cli.convert import main

if __name__ == "__main__":
    main()
