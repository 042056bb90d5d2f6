"""Render the card of every published checkpoint from the catalogue into hub_cards/.

python scripts/render_cards.py
"""

from pathlib import Path

from surgenet_hf.checkpoints.cards import checkpoint_card
from surgenet_hf.checkpoints.catalog import CATALOG

HUB_CARDS = Path(__file__).parents[1] / "hub_cards"


def main() -> None:
    HUB_CARDS.mkdir(exist_ok=True)
    for entry in CATALOG:
        path = HUB_CARDS / f"{entry.repo_name}.md"
        path.write_text(checkpoint_card(entry), encoding="utf-8")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
