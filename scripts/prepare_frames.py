"""The same as `surgenet prepare-frames`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.prepare_frames import main

if __name__ == "__main__":
    main()
