"""Every operator of the library: what test_operator_contract.py needs to know to test it.

A new operator gets an entry, in a file for its family. Where a part of the contract does not apply,
the entry says why in a string.
"""

from operators import (
    calibrated_ce,
    centered_gram,
    class_counts,
    not_true_distillation,
    sgd_step,
    simplex_interpolate,
    simplex_project,
    simplex_riesz_energy,
    simplex_sample,
    simplex_sample_ball,
)
from operators._entry import Arguments, Operator, map_tensors, tensors_of

__all__ = ["OPERATORS", "Arguments", "Operator", "map_tensors", "tensors_of"]

FAMILIES = (
    calibrated_ce,
    centered_gram,
    class_counts,
    not_true_distillation,
    sgd_step,
    simplex_interpolate,
    simplex_project,
    simplex_riesz_energy,
    simplex_sample,
    simplex_sample_ball,
)
OPERATORS = {operator.name: operator for family in FAMILIES for operator in family.OPERATORS}
