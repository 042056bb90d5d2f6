"""The same as `surgenet evaluate`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.evaluate import main

if __name__ == "__main__":
    main()
