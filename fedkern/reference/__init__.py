"""Slow, readable twins of the operators in plain PyTorch: what the kernels are held against."""

from fedkern.reference.calibrated_ce import calibrated_ce
from fedkern.reference.class_counts import class_counts
from fedkern.reference.simplex_interpolate import simplex_interpolate

__all__ = ["calibrated_ce", "class_counts", "simplex_interpolate"]
