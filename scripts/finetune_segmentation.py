"""The same as `surgenet finetune-segmentation`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.finetune_segmentation import main

if __name__ == "__main__":
    main()
