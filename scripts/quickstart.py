"""The same as `surgenet quickstart`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.quickstart import main

if __name__ == "__main__":
    main()
