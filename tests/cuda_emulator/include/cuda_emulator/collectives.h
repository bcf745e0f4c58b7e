#pragma once

// What the threads of a block or a warp do together.

#include <bit>
#include <concepts>
#include <type_traits>

#include "cuda_emulator/emulator.h"

// ---- how the collectives are built -------------------------------------------------------------

namespace cuda_emulator {

using Place = std::source_location;
constexpr int kWarpLanes = 32;

template <typename T, typename... Allowed>
concept one_of = (std::same_as<T, Allowed> || ...);

// The types that a lane may show to others: 32 or 64 bits, or one or two of the half types.
template <typename T>
concept exchangeable = (std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8)) ||
                       (std::is_class_v<T> && std::is_trivially_copyable_v<T> && sizeof(T) <= 4);

template <exchangeable T>
std::uint64_t to_bits(T value) {
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <exchangeable T>
T from_bits(std::uint64_t bits) {
  T value;
  std::memcpy(static_cast<void*>(&value), &bits, sizeof(T));
  return value;
}

// A segment of `width` lanes shuffles among itself.
inline void check_width(int width) {
  if (width < 1 || width > kWarpLanes || (width & (width - 1)) != 0) {
    fault(cudaErrorLaunchFailure,
          "a shuffle's width must be 1, 2, 4, 8, 16 or 32, got " + std::to_string(width));
  }
}

template <exchangeable T>
T shuffle(const Call& call, unsigned mask, T value, int source) {
  const std::uint64_t* values = exchange_in_warp(call, mask, to_bits(value));
  constexpr std::uint64_t kUndefined = 0x7f7f7f7f7f7f7f7f;  // of a lane that did not take part
  return from_bits<T>(mask >> source & 1 ? values[source] : kUndefined);
}

inline unsigned ballot(const Call& call, unsigned mask, bool predicate) {
  const std::uint64_t* values = exchange_in_warp(call, mask, predicate);
  unsigned result = 0;
  for (int i = 0; i < kWarpLanes; ++i) {
    if (mask >> i & 1) result |= static_cast<unsigned>(values[i]) << i;
  }
  return result;
}

template <typename T, typename Combine>
T reduce(const Call& call, unsigned mask, T value, const Combine& combine) {
  const std::uint64_t* values = exchange_in_warp(call, mask, to_bits(value));
  const int first = std::countr_zero(mask);
  T result = from_bits<T>(values[first]);
  for (int i = first + 1; i < kWarpLanes; ++i) {
    if (mask >> i & 1) result = combine(result, from_bits<T>(values[i]));
  }
  return result;
}

}  // namespace cuda_emulator

// ---- barriers ----------------------------------------------------------------------------------

inline void __syncthreads(cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::wait_for_block({"__syncthreads", place}, false);
}
inline int __syncthreads_count(int predicate,
                               cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return static_cast<int>(
      cuda_emulator::wait_for_block({"__syncthreads_count", place}, predicate != 0));
}
inline int __syncthreads_or(int predicate,
                            cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return cuda_emulator::wait_for_block({"__syncthreads_or", place}, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate,
                             cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return cuda_emulator::wait_for_block({"__syncthreads_and", place}, predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu,
                       cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::exchange_in_warp({"__syncwarp", place}, mask, 0);
}

inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- warp collectives --------------------------------------------------------------------------

template <cuda_emulator::exchangeable T>
T __shfl_sync(unsigned mask, T value, int source, int width = cuda_emulator::kWarpLanes,
              cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::check_width(width);
  const int segment = static_cast<int>(cuda_emulator::lane()) & ~(width - 1);
  return cuda_emulator::shuffle({"__shfl_sync", place}, mask, value,
                                segment + (source & (width - 1)));
}

// The lanes at a segment's end that have no partner keep their own value.
template <cuda_emulator::exchangeable T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = cuda_emulator::kWarpLanes,
                 cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::check_width(width);
  const int lane = static_cast<int>(cuda_emulator::lane());
  const bool partner = delta <= static_cast<unsigned>(lane & (width - 1));
  return cuda_emulator::shuffle({"__shfl_up_sync", place}, mask, value,
                                partner ? lane - static_cast<int>(delta) : lane);
}
template <cuda_emulator::exchangeable T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = cuda_emulator::kWarpLanes,
                   cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::check_width(width);
  const int lane = static_cast<int>(cuda_emulator::lane());
  const bool partner = delta < static_cast<unsigned>(width - (lane & (width - 1)));
  return cuda_emulator::shuffle({"__shfl_down_sync", place}, mask, value,
                                partner ? lane + static_cast<int>(delta) : lane);
}
// A lane of an earlier segment may be read, not one of a later.
template <cuda_emulator::exchangeable T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = cuda_emulator::kWarpLanes,
                  cuda_emulator::Place place = cuda_emulator::Place::current()) {
  cuda_emulator::check_width(width);
  const int lane = static_cast<int>(cuda_emulator::lane());
  const int source = (lane ^ lane_mask) & (cuda_emulator::kWarpLanes - 1);
  return cuda_emulator::shuffle({"__shfl_xor_sync", place}, mask, value,
                                source / width <= lane / width ? source : lane);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return cuda_emulator::ballot({"__ballot_sync", place}, mask, predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return cuda_emulator::ballot({"__any_sync", place}, mask, predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_emulator::Place place = cuda_emulator::Place::current()) {
  return cuda_emulator::ballot({"__all_sync", place}, mask, predicate != 0) == mask;
}
inline unsigned __activemask() { return cuda_emulator::active_lanes(); }

template <cuda_emulator::exchangeable T>
unsigned __match_any_sync(unsigned mask, T value,
                          cuda_emulator::Place place = cuda_emulator::Place::current()) {
  const auto own = cuda_emulator::to_bits(value);
  const auto* values = cuda_emulator::exchange_in_warp({"__match_any_sync", place}, mask, own);
  unsigned equal = 0;
  for (int i = 0; i < cuda_emulator::kWarpLanes; ++i) {
    if ((mask >> i & 1) && values[i] == own) equal |= 1u << i;
  }
  return equal;
}

#define CUDA_EMULATOR_REDUCE(name, expression)                                                   \
  template <typename T>                                                                          \
    requires cuda_emulator::one_of<T, int, unsigned>                                             \
  T name(unsigned mask, T value, cuda_emulator::Place place = cuda_emulator::Place::current()) { \
    return cuda_emulator::reduce({#name, place}, mask, value,                                    \
                                 [](T a, T b) { return static_cast<T>(expression); });           \
  }
CUDA_EMULATOR_REDUCE(__reduce_add_sync, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDA_EMULATOR_REDUCE(__reduce_min_sync, a < b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_max_sync, a > b ? a : b)
CUDA_EMULATOR_REDUCE(__reduce_and_sync, a& b)
CUDA_EMULATOR_REDUCE(__reduce_or_sync, a | b)
CUDA_EMULATOR_REDUCE(__reduce_xor_sync, a ^ b)
#undef CUDA_EMULATOR_REDUCE
