"""Slow, readable twins of the operators in PyTorch or NumPy: what the kernels are held against."""

from fedkern.reference.calibrated_ce import calibrated_ce
from fedkern.reference.class_counts import class_counts
from fedkern.reference.simplex_sample import simplex_sample
from fedkern.reference.simplex_sample_ball import simplex_sample_ball

__all__ = ["calibrated_ce", "class_counts", "simplex_sample", "simplex_sample_ball"]
