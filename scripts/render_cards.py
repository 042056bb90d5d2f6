"""Render the card of each published checkpoint to hub_cards/.

python scripts/render_cards.py
"""

from argparse import ArgumentParser
from pathlib import Path

from surgenet_hf.atomic import write_file
from surgenet_hf.checkpoints.catalog import CATALOG
from surgenet_hf.publishing.cards import checkpoint_card

HUB_CARDS = Path(__file__).parents[1] / "hub_cards"


def main(argv: list[str] | None = None) -> None:
    ArgumentParser(description=__doc__.splitlines()[0]).parse_args(argv)
    for entry in CATALOG:
        path = HUB_CARDS / f"{entry.repo_name}.md"
        write_file(path, checkpoint_card(entry).encode())
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
