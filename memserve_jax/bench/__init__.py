"""Measurements, workloads, demo."""
