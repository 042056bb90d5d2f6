"""Run `surgenet pretrain` from a checkout."""

from surgenet_hf.cli.pretrain import main

if __name__ == "__main__":
    main()
