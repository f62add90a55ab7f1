"""Optimizer, augmentation policy, EMA, best checkpoint and early stopping."""
