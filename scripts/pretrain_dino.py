"""Pretrain a SurgeNet backbone with DINO on frames of your own, or go on with a published one.

accelerate launch scripts/pretrain_dino.py --dataset shards --data_dir frames --output_dir outputs/dino \
    --model_name_or_path SurgeNetXL --epochs 20 --warmup_epochs 2 --bf16 --dataloader_num_workers 12
torchrun --nproc_per_node 2 scripts/pretrain_dino.py --dataset folder --data_dir frames --output_dir outputs/small \
    --preset small --epochs 100 --knn_dataset endoscapes-cvs --knn_data_dir endoscapes
python scripts/pretrain_dino.py --dataset folder --data_dir frames --output_dir outputs/longer \
    --resume_from_checkpoint SurgeNetXL_checkpoint0050.pth --extend_epochs 10

A run that was killed goes on with the same command and --resume_from_checkpoint true. The teacher of the last epoch is
in OUTPUT_DIR/model, which loads with AutoModel while training goes on; `scripts/prepare_frames.py` makes shards of
videos.
"""

import sys

from surgenet_hf.pretraining.arguments import parse_arguments
from surgenet_hf.pretraining.run import Pretraining
from surgenet_hf.privacy import mask_tokens


def main(argv: list[str] | None = None) -> None:
    try:
        Pretraining(*parse_arguments(argv)).train()
    except (OSError, ValueError) as error:
        sys.exit(mask_tokens(str(error)))


if __name__ == "__main__":
    main()
