#pragma once

// simplex_riesz_energy: the Riesz s-energy of points (Hardin, Saff 2004),
//
//   log of the mean over all pairs i < k of 1 / max(|points_i - points_k|, min_distance)^s
//
//   points        [K, M] floating, K >= 2, any strides; converted to float64
//   s             positive; min_distance positive
//   returns       float64 []; nan where a point is not finite
//
// simplex_riesz_energy_by_size: for each z of `sizes`, the energy (s = 2, min_distance = 1e-4) of
// the rows of `scores`, projected onto the simplex of size z and divided by z. Floco's choice of
// subregions (arXiv 2403.03333) is the z of least energy.
//
//   scores        float64 [K, M], K >= 2, M >= 1; rows are sorted once for all sizes
//   sizes         float64 [Z], positive
//   wanted        bool [Z] or none: other sizes are not worked on; their energy is inf
//   screen        compute pairs in float32: each squared distance that counts, at least 1e-8, is
//                 off by a factor of at most 1 + 2 * 2^-23 / 1e-4, but for the rounding of sums
//   returns       float64 [Z]
//
// Memory is O(K M) a thread: pairs are formed in tiles and summed in fixed order, so the result
// does not depend on the number of threads. Neither has derivatives: asking for one is an error.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <limits>
#include <optional>

namespace fedkern {

constexpr double kSubregionMinDistance = 1e-4;

inline void check_simplex_riesz_energy(const at::Tensor& points, double s, double min_distance) {
  TORCH_CHECK_TYPE(at::isFloatingType(points.scalar_type()),
                   "simplex_riesz_energy: points must be floating, got ", points.scalar_type());
  TORCH_CHECK_VALUE(points.dim() == 2 && points.sym_size(0) >= 2,
                    "simplex_riesz_energy: points must have shape (K, M) with K >= 2, got ",
                    points.sym_sizes());
  TORCH_CHECK_VALUE(s > 0 && s < std::numeric_limits<double>::infinity(),
                    "simplex_riesz_energy: s must be positive and finite, got ", s);
  TORCH_CHECK_VALUE(min_distance > 0 && min_distance < std::numeric_limits<double>::infinity(),
                    "simplex_riesz_energy: min_distance must be positive and finite, got ",
                    min_distance);
}

inline void check_simplex_riesz_energy_by_size(const at::Tensor& scores, const at::Tensor& sizes,
                                               const std::optional<at::Tensor>& wanted) {
  TORCH_CHECK_TYPE(scores.scalar_type() == at::kDouble && sizes.scalar_type() == at::kDouble,
                   "simplex_riesz_energy: scores and sizes must be float64, got ",
                   scores.scalar_type(), " and ", sizes.scalar_type());
  TORCH_CHECK_VALUE(scores.dim() == 2 && scores.sym_size(0) >= 2 && scores.sym_size(1) >= 1,
                    "simplex_riesz_energy: scores must have shape (K, M) with K >= 2 and M >= 1, "
                    "got ",
                    scores.sym_sizes());
  TORCH_CHECK_VALUE(sizes.dim() == 1, "simplex_riesz_energy: sizes must have shape (Z), got ",
                    sizes.sym_sizes());
  TORCH_CHECK_VALUE(sizes.device() == scores.device(),
                    "simplex_riesz_energy: sizes must be on scores' device, ", scores.device(),
                    ", got ", sizes.device());
  if (!wanted) return;
  TORCH_CHECK_TYPE(wanted->scalar_type() == at::kBool,
                   "simplex_riesz_energy: wanted must be bool, got ", wanted->scalar_type());
  TORCH_CHECK_VALUE(wanted->sym_sizes() == sizes.sym_sizes() && wanted->device() == scores.device(),
                    "simplex_riesz_energy: wanted must have sizes' shape and device, ",
                    sizes.sym_sizes(), " on ", scores.device(), ", got ", wanted->sym_sizes(),
                    " on ", wanted->device());
}

}  // namespace fedkern
