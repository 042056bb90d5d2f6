"""The same as `surgenet finetune-classification`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.finetune_classification import main

if __name__ == "__main__":
    main()
