"""Fine-tuning on transformers' Trainer, one module per task."""
