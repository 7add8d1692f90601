"""The science: data, models, signals, objectives, training, soft targets, evaluation, export."""
