#pragma once

// simplex_sample_ball: points drawn uniformly from {alpha in the simplex: |alpha - center|_1 <=
// radius}. How is told in simplex_sample_ball_math.h.
//
//   key          int64 [], all 64 bits random: what the points are a function of
//   center       [M] or [K, M], float32 or float64, points of the simplex; any strides
//   radius       floating, [] or [K], finite, >= 0; on center's device, or [] on the CPU
//   num_samples  n >= 0, for each centre
//   method       "exact", or "published": what the published code draws, which leaves the simplex
//   returns      [n, M] or [K, n, M], center's dtype and device
//
// Entries are not negative and keep the centre's sum but for rounding. Radius 0 gives the centre,
// 2 and more the points of simplex_sample. The bits depend on the arguments and a point's position
// in the result, not on threads, CPU capability, launch or device. Centres and radii are checked:
// by an error on the CPU, by a device-side assert on CUDA.

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <string_view>
#include <variant>

#include "ops/simplex_sample.h"
#include "ops/simplex_sample_ball_math.h"

namespace fedkern {

// Draws the key and calls the operator.
at::Tensor call_simplex_sample_ball(const at::Tensor& center,
                                    const std::variant<double, at::Tensor>& radius,
                                    int64_t num_samples, std::string_view method,
                                    std::optional<at::Generator> generator);

// Every backend's first line. Shapes may be symbolic; the contents of tensors are not looked at.
inline BallMethod check_simplex_sample_ball(const at::Tensor& key, const at::Tensor& center,
                                            const at::Tensor& radius,
                                            const c10::SymInt& num_samples,
                                            std::string_view method) {
  check_key("simplex_sample_ball", key);
  const auto dtype = center.scalar_type();
  TORCH_CHECK_TYPE(dtype == at::kFloat || dtype == at::kDouble,
                   "simplex_sample_ball: center must be float32 or float64 (a point in half "
                   "precision does not sum to one), got ",
                   dtype);
  TORCH_CHECK_VALUE((center.dim() == 1 || center.dim() == 2) && center.sym_size(-1) >= 1,
                    "simplex_sample_ball: center must have shape (M) or (K, M) with M >= 1, got ",
                    center.sym_sizes());
  TORCH_CHECK_TYPE(radius.is_floating_point(), "simplex_sample_ball: radius must be floating, got ",
                   radius.scalar_type());
  TORCH_CHECK_VALUE(radius.dim() == 0 || (center.dim() == 2 && radius.dim() == 1 &&
                                          radius.sym_size(0) == center.sym_size(0)),
                    "simplex_sample_ball: radius must be a number or have one entry per center, "
                    "got shape ",
                    radius.sym_sizes(), " for center's ", center.sym_sizes());
  TORCH_CHECK_VALUE(key.device() == center.device(),
                    "simplex_sample_ball: key must be on center's device, ", center.device(),
                    ", got ", key.device());
  TORCH_CHECK_VALUE(radius.device() == center.device() || (radius.dim() == 0 && radius.is_cpu()),
                    "simplex_sample_ball: radius must be on center's device, ", center.device(),
                    ", got ", radius.device());
  TORCH_CHECK_VALUE(num_samples >= 0, "simplex_sample_ball: num_samples must not be negative, got ",
                    num_samples);
  if (method == "exact") return BallMethod::kExact;
  TORCH_CHECK_VALUE(method == "published",
                    "simplex_sample_ball: method must be 'exact' or 'published', got '", method,
                    "'");
  return BallMethod::kPublished;
}

// A radius whose value is at hand.
inline void check_radius(double radius) {
  TORCH_CHECK_VALUE(is_radius(radius),
                    "simplex_sample_ball: radius must be finite and not negative, got ", radius);
}

// The shape of the result.
inline c10::SymDimVector sample_ball_shape(const at::Tensor& center,
                                           const c10::SymInt& num_samples) {
  c10::SymDimVector shape(center.sym_sizes().begin(), center.sym_sizes().end());
  shape.insert(shape.end() - 1, num_samples);
  return shape;
}

}  // namespace fedkern
