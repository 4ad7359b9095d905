"""Decoder families: arithmetic from checkpoint to logits."""
