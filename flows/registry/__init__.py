"""Models in the MLflow registry: registered, loaded, asked, promoted."""
