#pragma once

#include <c10/core/Device.h>

#include <optional>

namespace c10::cuda {

// The emulated device's tensors are on the CPU: there is nothing to change.
struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
  explicit CUDAGuard(c10::DeviceIndex) {}
};

struct OptionalCUDAGuard {
  OptionalCUDAGuard() = default;
  explicit OptionalCUDAGuard(std::optional<c10::Device>) {}
};

}  // namespace c10::cuda
