"""The same as `surgenet compare`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.compare import main

if __name__ == "__main__":
    main()
