#pragma once

// A stack of its own for every CUDA thread of a block, and the switch from one to another.

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_emulator {

class Fiber {
 public:
  Fiber() = default;  // stands for the stack that the caller runs on
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // The next switch to this fiber calls entry(), which must not return. What the fiber ran before
  // is abandoned: nothing is unwound, no destructor runs.
  void start(void (*entry)());

  // Returns when something switches back to this fiber, which must be the running one.
  void switch_to(Fiber& other);

 private:
  static void run_entry();
  void arrived();

  void (*entry_)() = nullptr;
  void* stack_ = nullptr;  // as AddressSanitizer wants to know it
  std::size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  bool owns_stack_ = false;
};

}  // namespace cuda_emulator
