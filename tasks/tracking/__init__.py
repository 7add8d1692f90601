"""What MLflow is told: runs, and where a result comes from."""
