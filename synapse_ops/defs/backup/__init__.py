"""Backups in Dagster: one set of assets, checks, jobs, schedules and sensors for every kind (kinds.py)."""
