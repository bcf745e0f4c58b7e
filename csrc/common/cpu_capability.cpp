#include "common/cpu_capability.h"

#include <ATen/Version.h>

#include <string>

namespace fedkern {

CpuCapability cpu_capability() {
  static const CpuCapability chosen = [] {
#if defined(FEDKERN_X86)
    const std::string name = at::get_cpu_capability();
    if (name == "AVX512") return CpuCapability::kAvx512;
    if (name == "AVX2") return CpuCapability::kAvx2;
#endif
    return CpuCapability::kDefault;
  }();
  return chosen;
}

const char* cpu_capability_name() {
  switch (cpu_capability()) {
    case CpuCapability::kAvx512:
      return "AVX512";
    case CpuCapability::kAvx2:
      return "AVX2";
    default:
      return "DEFAULT";
  }
}

}  // namespace fedkern
