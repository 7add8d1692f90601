"""Prefect and MLflow as services: found, started, waited for, told."""
