"""Floco's simplex of models (arXiv 2403.03333): points on it, projections, subregions.

M endpoints theta_1, ..., theta_M span a simplex. Its points alpha (alpha >= 0, sum 1) name the
models theta(alpha) = sum_m alpha_m theta_m; a subregion holds the points within an L1 radius of a
centre.
"""
