#pragma once

// Runs CUDA kernels on the CPU, so that they can be tested without a GPU. Each CUDA thread of a
// block is a fiber; blocks run one after the other. A thread runs until it waits for others (a
// barrier, a shuffle, a vote) or exits; then the next one of its warp runs, then the next warp.
// With the opposite order of threads, warps and blocks a missing barrier shows: run tests in both.
//
// What a GPU refuses, or leaves undefined, is a fault: it ends the launch, stays in
// cudaGetLastError until reset() (as on a GPU, where it stays until the process ends) and is told
// by last_message().
//
// Shared memory is filled with a pattern before each block: nan in forward order, huge numbers in
// reverse order.
//
// Not found: races between blocks, or between threads where neither order changes the result;
// threads that meet at a barrier inside one function but called it from different places; missing
// fences; access out of the bounds of global memory (sanitized builds find it); the error of fast
// approximations; speed, registers, __launch_bounds__. A thread that spins until another one writes
// spins for ever.

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "vector_types.h"

namespace [[gnu::visibility("default")]] cuda_emulator {

// ---- for tests ---------------------------------------------------------------------------------

enum class Order { kForward, kReverse };
void set_order(Order order);  // at first as FEDKERN_EMULATOR_ORDER says: forward or reverse

void reset();                         // forgets errors and launches
std::vector<std::string> launches();  // the kernels that ran since the last reset
std::string last_message();           // what the last error was, and where

// ---- for kernels -------------------------------------------------------------------------------

// Ends the launch with a sticky error.
[[noreturn]] void fault(cudaError_t error, const std::string& message);

// A GPU reads and writes `bytes` at once only where the address is a multiple of them.
inline void check_aligned(const volatile void* address, std::size_t bytes) {
  if (reinterpret_cast<std::uintptr_t>(address) % bytes != 0) {
    fault(cudaErrorMisalignedAddress,
          "an access of " + std::to_string(bytes) + " bytes is misaligned");
  }
}

void* dynamic_shared();

// A call that other threads must make, too: the same function in the same place.
struct Call {
  const char* function;
  std::source_location place;
};

// Waits until every thread of the block calls; returns how many of them said true.
unsigned wait_for_block(const Call& call, bool predicate);

// Waits until all lanes named by mask call; returns what each brought, by lane. Valid until the
// thread waits again.
const std::uint64_t* exchange_in_warp(const Call& call, unsigned mask, std::uint64_t value);

unsigned lane();
unsigned active_lanes();

// ---- launches ----------------------------------------------------------------------------------

void run(const char* name, const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
         const std::function<void()>& thread);

// kernel<<<grid, block, shared_bytes, stream>>>(arguments...); has run when this returns.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            std::size_t shared_bytes, cudaStream_t, Arguments&&... arguments) {
  const std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  run(name, reinterpret_cast<const void*>(kernel), grid, block, shared_bytes,
      [&] { std::apply(kernel, copies); });
}

}  // namespace cuda_emulator
