"""Every operator of the library: what test_operator_contract.py needs to know to test it.

A new operator gets an entry, in a file for its family. Where a part of the contract does not apply,
the entry says why in a string.
"""

from operators import calibrated_ce, class_counts, simplex_sample, simplex_sample_ball
from operators._entry import Arguments, Operator

__all__ = ["OPERATORS", "Arguments", "Operator"]

OPERATORS = {
    operator.name: operator
    for family in (class_counts, calibrated_ce, simplex_sample, simplex_sample_ball)
    for operator in family.OPERATORS
}
