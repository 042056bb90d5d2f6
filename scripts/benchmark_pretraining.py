"""Measure DINO pretraining on this machine, part by part, and against the original loop where a checkout is given.

python scripts/benchmark_pretraining.py --batch_size 4
python scripts/benchmark_pretraining.py --batch_size 64 --dataloader_num_workers 16 --channels_last --torch_compile \
    --dino_repo dino --surgenet_repo SurgeNet
"""

import sys

from surgenet_hf.cli.arguments import ArgumentParser
from surgenet_hf.pretraining.benchmark import BenchmarkArguments, run_benchmark
from surgenet_hf.pretraining.frames.crops import CropConfig


def main(argv: list[str] | None = None) -> None:
    try:
        run_benchmark(*ArgumentParser((BenchmarkArguments, CropConfig)).parse_args_into_dataclasses(argv))
    except (OSError, ValueError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
