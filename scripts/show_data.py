"""The same as `surgenet show-data`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.show_data import main

if __name__ == "__main__":
    main()
