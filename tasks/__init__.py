"""One file a pipeline stage: reads files, calls the science, writes files, logs to MLflow."""

STAGES = (
    "ingest",
    "validate",
    "prepare",
    "snapshot",
    "train_teacher",
    "soft_targets",
    "validate_soft_targets",
    "train_baseline",
    "distill",
    "finetune",
    "train_ablations",
    "export",
    "evaluate",
    "report",
)
