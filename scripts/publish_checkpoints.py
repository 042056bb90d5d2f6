"""Upload checkpoints or a model of your own to the Hub: `surgenet publish` in a checkout."""

from surgenet_hf.cli.publish import main

if __name__ == "__main__":
    main()
