#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 512 * 1024;  // its frames are far larger
#else
constexpr std::size_t kStackBytes = 128 * 1024;
#endif

Fiber* left = nullptr;  // of the last switch
Fiber* entered = nullptr;

}  // namespace

#if defined(__x86_64__)
// Saves what a function call must preserve, changes the stack, and restores. swapcontext does the
// same, but asks the kernel for the signal mask each time: 40 times slower.
extern "C" void cuda_emulator_switch_stack(void** save, void* load);
asm(R"(
  .text
  .globl cuda_emulator_switch_stack
  .hidden cuda_emulator_switch_stack
  .type cuda_emulator_switch_stack, @function
cuda_emulator_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .size cuda_emulator_switch_stack, . - cuda_emulator_switch_stack
)");
#endif

Fiber::~Fiber() {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  if (owns_stack_) munmap(static_cast<char*>(stack_) - page, stack_bytes_ + page);
}

void Fiber::start(void (*entry)()) {
  if (!owns_stack_) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, kStackBytes + page, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mprotect(memory, page, PROT_NONE);  // an overflow stops here
    stack_ = static_cast<char*>(memory) + page;
    stack_bytes_ = kStackBytes;
    owns_stack_ = true;
  }
  entry_ = entry;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack_, stack_bytes_);
#endif
#if defined(__x86_64__)
  // As if run_entry's first instruction had been interrupted by a switch: six registers and the
  // return address, which leaves the stack as a call would.
  void** top = reinterpret_cast<void**>(static_cast<char*>(stack_) + stack_bytes_);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&run_entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack_;
  context_.uc_stack.ss_size = stack_bytes_;
  context_.uc_link = nullptr;
  makecontext(&context_, &run_entry, 0);
#endif
}

void Fiber::switch_to(Fiber& other) {
  left = this;
  entered = &other;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, other.stack_, other.stack_bytes_);
#endif
#if defined(__x86_64__)
  cuda_emulator_switch_stack(&stack_pointer_, other.stack_pointer_);
#else
  swapcontext(&context_, &other.context_);
#endif
  arrived();
}

void Fiber::arrived() {
#if defined(__SANITIZE_ADDRESS__)
  // The bounds of the stack that was left are how those of the caller's own stack become known.
  const void* bottom = nullptr;
  __sanitizer_finish_switch_fiber(fake_stack_, &bottom, &left->stack_bytes_);
  left->stack_ = const_cast<void*>(bottom);
#endif
}

void Fiber::run_entry() {
  entered->fake_stack_ = nullptr;
  entered->arrived();
  entered->entry_();
  std::abort();  // entry() returned
}

}  // namespace cuda_emulator
