"""Augmentation in JAX, inside the training step.

Operations take uint8 images [B, H, W, C] and one key per image, so an augmented
image depends on seed, step and row, not on the device.
"""
