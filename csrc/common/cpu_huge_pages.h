#pragma once

#include <ATen/core/Tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdint>

namespace fedkern {

// Asks for huge pages for a tensor that nothing has been written to yet. Writing first to 4 KB
// pages costs several times what the kernel computes (docs/performance.md). Only where the memory
// is a mapping of its own, which goes back to the system as it is: from 32 MB on the C library's
// always are.
inline void advise_huge_pages([[maybe_unused]] const at::Tensor& fresh) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20, kOwnMapping = uintptr_t{32} << 20;
  if (!fresh.is_cpu() || fresh.nbytes() < kOwnMapping) return;
  const auto data = reinterpret_cast<uintptr_t>(fresh.const_data_ptr());
  const uintptr_t begin = (data + kHugePage - 1) & ~(kHugePage - 1);
  const uintptr_t end = (data + fresh.nbytes()) & ~(kHugePage - 1);
  // It is advice: a system without huge pages refuses, and nothing is lost.
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fedkern
