#pragma once

// Included in front of each binding of csrc/ops/cuda by the compiler's -include. What they register
// for CUDA is kept, and registered for the CPU while the emulated device is enabled.

#include <torch/library.h>

namespace [[gnu::visibility("default")]] cuda_emulator {

struct Registration {
  Registration(const char* library, void (*body)(torch::Library&));
};

void enable();   // the CPU's own kernels give way
void disable();  // and are back

}  // namespace cuda_emulator

#undef TORCH_LIBRARY_IMPL
#define TORCH_LIBRARY_IMPL(library, key, m)                                                \
  static_assert(c10::DispatchKey::key == c10::DispatchKey::CUDA);                          \
  static void C10_CONCATENATE(cuda_emulator_register_, __LINE__)(torch::Library&);         \
  static const cuda_emulator::Registration C10_CONCATENATE(cuda_emulator_kept_, __LINE__)( \
      #library, &C10_CONCATENATE(cuda_emulator_register_, __LINE__));                      \
  static void C10_CONCATENATE(cuda_emulator_register_, __LINE__)(torch::Library & m)
