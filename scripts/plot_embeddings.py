"""The same as `surgenet plot-embeddings`, for `torchrun` and `accelerate launch` in a checkout."""

from surgenet_hf.cli.plot_embeddings import main

if __name__ == "__main__":
    main()
