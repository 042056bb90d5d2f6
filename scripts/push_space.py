"""Upload the demo as a Space: `surgenet push-space` in a checkout."""

from surgenet_hf.cli.push_space import main

if __name__ == "__main__":
    main()
