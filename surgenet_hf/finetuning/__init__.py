"""Fine-tuning on the Trainer of transformers, with one module per task."""


def finetune(task: str, *options, **kwargs) -> dict:
    """Fine-tune and evaluate a model for a task.

    Args:
        task: "semantic-segmentation", "image-classification", or "phase-recognition".
        options: argument dataclasses, as in `arguments.OPTIONS`.
        kwargs: data and command. See `segmentation.run`, also for results and errors.
    """
    from . import classification, phase, segmentation

    modules = {
        "semantic-segmentation": segmentation,
        "image-classification": classification,
        "phase-recognition": phase,
    }
    return modules[task].run(*options, **kwargs)
