#pragma once

namespace fedkern {

// float accumulates float32, bfloat16 and float16; double accumulates float64.
template <typename scalar_t>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename scalar_t>
using accumulate_t = typename Accumulate<scalar_t>::type;

}  // namespace fedkern
