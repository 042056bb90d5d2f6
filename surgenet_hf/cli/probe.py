"""Evaluate the frozen features of a backbone on a labeled dataset by k-NN or logistic regression.

  surgenet probe --model_name_or_path SurgeNetXL --dataset endoscapes-cvs --data_dir endoscapes \\
      --method linear --output_dir outputs/xl-linear --features_dir outputs/features
  torchrun --nproc_per_node 2 -m surgenet_hf.cli.probe ...

The output is that of `surgenet evaluate`: results.json with intervals, run.yaml, and figures. Features are computed
once and kept in --features_dir. For segmentation datasets, the probe predicts which classes are present in a frame.
For dense linear probing, use `surgenet finetune-segmentation --head linear --freeze_backbone`.
"""

from ..errors import UserError
from ..evaluation.probe_arguments import ProbeArguments
from ..finetuning.arguments import TrainDataArguments
from .arguments import ArgumentParser, command


@command
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser((ProbeArguments, TrainDataArguments), prog="surgenet probe", description=__doc__)
    args, data_args = parser.parse_args_into_dataclasses(argv)
    if not args.output_dir:
        raise UserError("--output_dir is missing")

    from ..data import load_data
    from ..distributed import is_main_process
    from ..evaluation.probe_job import probe_model
    from ..evaluation.reporting import summary

    results = probe_model(
        args,
        load_data(data_args.dataset, data_args.data_dir, **data_args.options()),
        data_args.train_fraction,
        parser.command_line(),
        on_start=lambda: parser.save_resolved(args.output_dir),
    )
    if is_main_process():
        print(summary(results), f"Written to {args.output_dir}: results.json, run.yaml, figures", sep="\n")


if __name__ == "__main__":
    main()
