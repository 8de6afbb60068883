"""Gradient boosting over several tables that share their columns: robust to outlier tasks."""
