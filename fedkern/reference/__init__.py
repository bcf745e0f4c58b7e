"""Slow, readable twins of the operators in PyTorch or NumPy: what the kernels are held against."""

from fedkern.reference.calibrated_ce import calibrated_ce
from fedkern.reference.class_counts import class_counts
from fedkern.reference.not_true_distillation import not_true_distillation
from fedkern.reference.sgd_step import sgd_step
from fedkern.reference.simplex_assign_subregions import simplex_assign_subregions
from fedkern.reference.simplex_interpolate import simplex_interpolate
from fedkern.reference.simplex_project import simplex_project
from fedkern.reference.simplex_riesz_energy import simplex_riesz_energy
from fedkern.reference.simplex_sample import simplex_sample
from fedkern.reference.simplex_sample_ball import simplex_sample_ball

__all__ = [
    "calibrated_ce",
    "class_counts",
    "not_true_distillation",
    "sgd_step",
    "simplex_assign_subregions",
    "simplex_interpolate",
    "simplex_project",
    "simplex_riesz_energy",
    "simplex_sample",
    "simplex_sample_ball",
]
