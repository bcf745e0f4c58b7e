#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Exception.h>
#include <c10/util/Half.h>

#include <utility>

namespace fedkern {

// The dtypes that switch_dtype knows.
inline bool is_supported(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::Double ||
         dtype == c10::ScalarType::BFloat16 || dtype == c10::ScalarType::Half;
}

// call(scalar_t()) with the C++ type of a floating dtype that the operators support. Their checks
// come first: another dtype here is a fault of ours.
template <typename Call>
decltype(auto) switch_dtype(c10::ScalarType dtype, Call&& call) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return call(float());
    case c10::ScalarType::Double:
      return call(double());
    case c10::ScalarType::BFloat16:
      return call(c10::BFloat16());
    default:
      TORCH_INTERNAL_ASSERT(dtype == c10::ScalarType::Half);
      return call(c10::Half());
  }
}

// The same where only these two are supported.
template <typename Call>
decltype(auto) switch_float_or_double(c10::ScalarType dtype, Call&& call) {
  if (dtype == c10::ScalarType::Float) return call(float());
  TORCH_INTERNAL_ASSERT(dtype == c10::ScalarType::Double);
  return call(double());
}

}  // namespace fedkern
