"""The same as `surgenet finetune-phase`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.finetune_phase import main

if __name__ == "__main__":
    main()
