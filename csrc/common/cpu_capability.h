#pragma once

// Vector kernels (csrc/ops/cpu/*_kernel.cpp) are compiled once per CPU capability. Each object
// holds one table of functions, `<table>_<CAPABILITY>`; the table that fits the machine is chosen
// once.
//
//   struct FooKernels { void (*run)(...); };           in foo.h
//   FEDKERN_DECLARE_VARIANTS(FooKernels, foo_kernels)  in foo.h: declares them and foo_kernels()
//   FEDKERN_DEFINE_VARIANT(FooKernels, foo_kernels) = {&run};   in foo_kernel.cpp

namespace fedkern {

enum class CpuCapability { kDefault, kAvx2, kAvx512 };

// What torch dispatches on, too: the environment's ATEN_CPU_CAPABILITY is honoured.
CpuCapability cpu_capability();
const char* cpu_capability_name();

}  // namespace fedkern

#if defined(FEDKERN_X86)
#define FEDKERN_DECLARE_VARIANTS(Table, table)                      \
  extern const Table table##_DEFAULT, table##_AVX2, table##_AVX512; \
  inline const Table& table() {                                     \
    switch (cpu_capability()) {                                     \
      case CpuCapability::kAvx512:                                  \
        return table##_AVX512;                                      \
      case CpuCapability::kAvx2:                                    \
        return table##_AVX2;                                        \
      default:                                                      \
        return table##_DEFAULT;                                     \
    }                                                               \
  }
#else
#define FEDKERN_DECLARE_VARIANTS(Table, table) \
  extern const Table table##_DEFAULT;          \
  inline const Table& table() { return table##_DEFAULT; }
#endif

#define FEDKERN_CONCATENATE_(a, b) a##b
#define FEDKERN_CONCATENATE(a, b) FEDKERN_CONCATENATE_(a, b)
#define FEDKERN_DEFINE_VARIANT(Table, table) \
  extern const Table FEDKERN_CONCATENATE(table##_, CPU_CAPABILITY)
