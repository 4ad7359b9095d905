"""Processes and meshes of a cluster."""
