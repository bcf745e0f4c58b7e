#pragma once

#include <cstddef>
#include <new>

namespace fedkern {

// Room for `size` elements, not initialised, aligned to a cache line. Up to kInline of them cost no
// allocation.
template <typename T, size_t kInline>
class CpuBuffer {
 public:
  explicit CpuBuffer(size_t size)
      : heap_(size > kInline ? static_cast<T*>(::operator new(size * sizeof(T), kAlignment))
                             : nullptr) {}
  ~CpuBuffer() {
    if (heap_) ::operator delete(heap_, kAlignment);
  }
  CpuBuffer(const CpuBuffer&) = delete;
  CpuBuffer& operator=(const CpuBuffer&) = delete;

  T* data() { return heap_ ? heap_ : inline_; }
  T& operator[](size_t i) { return data()[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};

  alignas(64) T inline_[kInline];
  T* heap_;
};

}  // namespace fedkern
