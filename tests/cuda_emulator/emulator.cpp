#include "cuda_emulator/emulator.h"

#include <link.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <span>

#include "cuda_runtime.h"
#include "fiber.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace cuda_emulator {
namespace {

// ---- the device --------------------------------------------------------------------------------

constexpr int kMultiprocessors = 4;  // few, so that kernels sized to the device must loop
constexpr int kMostThreads = 1024;   // of a block
constexpr int kMostResidentThreads = 2048;
constexpr int kMostResidentBlocks = 32;
constexpr std::size_t kSharedBytes = 48 * 1024;        // a block gets this much
constexpr std::size_t kSharedBytesOptin = 227 * 1024;  // this much if its kernel asked for it
constexpr std::size_t kSharedBytesOfMultiprocessor = 228 * 1024;
constexpr std::size_t kSharedBytesReserved = 1024;  // of each block

// ---- shared memory -----------------------------------------------------------------------------

std::span<std::byte> static_shared() {
#if defined(__SANITIZE_ADDRESS__)
  return {};
#else
  // All thread-local variables of this library are __shared__ ones (cuda_runtime.h), but for this.
  thread_local std::byte anchor;
  struct Search {
    const std::byte* anchor;
    std::span<std::byte> found;
  } search{&anchor, {}};
  dl_iterate_phdr(
      [](dl_phdr_info* library, std::size_t, void* data) {
        Search& search = *static_cast<Search*>(data);
        auto* begin = static_cast<std::byte*>(library->dlpi_tls_data);
        for (int i = 0; begin && i < library->dlpi_phnum; ++i) {
          const auto& header = library->dlpi_phdr[i];
          if (header.p_type != PT_TLS || search.anchor < begin ||
              search.anchor >= begin + header.p_memsz) {
            continue;
          }
          search.found = {begin, header.p_memsz};
          return 1;
        }
        return 0;
      },
      &search);
  return search.found;
#endif
}

// A block's dynamic shared memory between two guards.
class DynamicShared {
 public:
  explicit DynamicShared(std::size_t bytes) : bytes_(bytes), memory_(bytes + 2 * kGuardBytes) {
    std::fill(memory_.begin(), memory_.end(), kGuard);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(memory_.data(), kGuardBytes);
    __asan_poison_memory_region(data() + bytes_, kGuardBytes);
#endif
  }
  ~DynamicShared() {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_.data(), memory_.size());
#endif
  }
  DynamicShared(const DynamicShared&) = delete;
  DynamicShared& operator=(const DynamicShared&) = delete;

  std::byte* data() { return memory_.data() + kGuardBytes; }
  std::size_t size() const { return bytes_; }

  bool guards_are_intact() const {
#if defined(__SANITIZE_ADDRESS__)
    return true;  // a write to them would have ended the process
#else
    const auto intact = [](const std::byte* guard) {
      return std::all_of(guard, guard + kGuardBytes, [](std::byte b) { return b == kGuard; });
    };
    return intact(memory_.data()) && intact(memory_.data() + kGuardBytes + bytes_);
#endif
  }

 private:
  static constexpr std::byte kGuard{0xa5};
  static constexpr std::size_t kGuardBytes = 256;
  std::size_t bytes_;
  std::vector<std::byte> memory_;
};

// ---- what tests ask for, and hear --------------------------------------------------------------

Order order_of_environment() {
  const char* order = std::getenv("FEDKERN_EMULATOR_ORDER");
  return order && std::strcmp(order, "reverse") == 0 ? Order::kReverse : Order::kForward;
}

struct Device {
  std::mutex busy;  // one kernel at a time
  Order order = order_of_environment();
  std::vector<std::string> launches;
  std::string message;
  cudaError_t refused = cudaSuccess;                      // of a call that did nothing: told once
  cudaError_t failed = cudaSuccess;                       // of a kernel: stays
  std::map<const void*, std::size_t> shared_bytes_optin;  // of a kernel
} device;

cudaError_t refuse(cudaError_t error, const std::string& message) {
  if (device.failed != cudaSuccess) return device.failed;
  device.message = message;
  return device.refused = error;
}

// ---- threads -----------------------------------------------------------------------------------

struct Thread {
  Fiber fiber;
  uint3 index;
  Call waits_at;
  unsigned mask;        // of the warp collective that it waits at
  std::uint64_t value;  // what it brought there
};

// Every lane that is present is ready, waits, has exited or is the one that runs.
struct Warp {
  unsigned present = 0;
  unsigned ready = 0;
  unsigned in_collective = 0;
  unsigned at_barrier = 0;
  unsigned exited = 0;
  std::uint64_t exchanged[kWarpLanes];
};

bool is_syncwarp(const Call& call) { return std::strcmp(call.function, "__syncwarp") == 0; }

// Lanes may meet at different __syncwarp(), but only at one and the same shuffle, vote or barrier.
bool match(const Call& a, const Call& b) {
  const bool same_place = a.place.line() == b.place.line() &&
                          a.place.column() == b.place.column() &&
                          a.place.file_name() == b.place.file_name() &&
                          a.place.function_name() == b.place.function_name();
  return same_place || (is_syncwarp(a) && is_syncwarp(b));
}

std::string text(const Call& call) {
  return std::string(call.function) + " (" + call.place.file_name() + ":" +
         std::to_string(call.place.line()) + ")";
}

std::string text(const uint3& index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string hexadecimal(unsigned mask) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "0x%08x", mask);
  return buffer;
}

// ---- a grid of blocks --------------------------------------------------------------------------

class Scheduler {
 public:
  bool is_running() const { return kernel_ != nullptr; }
  void run_grid(const char* name, const std::function<void()>& kernel, std::size_t shared_bytes);
  [[noreturn]] void fault(cudaError_t error, const std::string& message);

  unsigned wait_for_block(const Call& call, bool predicate);
  const std::uint64_t* exchange_in_warp(const Call& call, unsigned mask, std::uint64_t value);

  unsigned lane() const { return current_ % kWarpLanes; }
  unsigned active_lanes() { return current_warp().present & ~current_warp().exited; }
  void* dynamic_shared() { return dynamic_shared_->data(); }

 private:
  static constexpr unsigned kNobody = ~0u;

  static void run_threads();  // of which each fiber runs one after another
  void run_block();
  void yield();

  unsigned next_thread();
  bool release_collective(Warp& warp);
  void release_barrier();
  unsigned participants(const Warp& warp, const Thread& thread) const;
  [[noreturn]] void report_stuck(const Warp& warp);

  Thread& current() { return *threads_[current_]; }
  Warp& current_warp() { return warps_[current_ / kWarpLanes]; }
  unsigned index_of(const Warp& warp) const { return static_cast<unsigned>(&warp - warps_.data()); }
  Thread& thread(const Warp& warp, unsigned lane) {
    return *threads_[index_of(warp) * kWarpLanes + lane];
  }

  const char* name_ = nullptr;
  const std::function<void()>* kernel_ = nullptr;
  DynamicShared* dynamic_shared_ = nullptr;
  bool faulty_ = false;

  Fiber host_;
  std::vector<std::unique_ptr<Thread>> threads_;  // kept from launch to launch
  std::vector<Warp> warps_;                       // of the block
  unsigned current_ = kNobody;                    // thread
  unsigned turn_ = 0;                             // which warp's, counted in the chosen order
  unsigned predicates_ = 0;                       // said true since the last barrier
  unsigned counted_predicates_ = 0;               // at the last barrier
} scheduler;

void Scheduler::run_grid(const char* name, const std::function<void()>& kernel,
                         std::size_t shared_bytes) {
  name_ = name;
  kernel_ = &kernel;
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  while (threads_.size() < count) {
    threads_.push_back(std::make_unique<Thread>());
    threads_.back()->fiber.start(&run_threads);
  }
  for (unsigned i = 0; i < count; ++i) {
    threads_[i]->index = {i % blockDim.x, i / blockDim.x % blockDim.y,
                          i / (blockDim.x * blockDim.y)};
  }
  warps_.resize((count + kWarpLanes - 1) / kWarpLanes);

  DynamicShared dynamic_shared(shared_bytes);
  dynamic_shared_ = &dynamic_shared;
  const std::span<std::byte> statics = static_shared();
  const bool forward = device.order == Order::kForward;
  const std::byte pattern{forward ? std::uint8_t{0xff} : std::uint8_t{0x7f}};
  const std::uint64_t blocks = std::uint64_t{gridDim.x} * gridDim.y * gridDim.z;
  for (std::uint64_t i = 0; i < blocks && !faulty_; ++i) {
    const std::uint64_t block = forward ? i : blocks - 1 - i;
    blockIdx = {static_cast<unsigned>(block % gridDim.x),
                static_cast<unsigned>(block / gridDim.x % gridDim.y),
                static_cast<unsigned>(block / gridDim.x / gridDim.y)};
    std::fill(statics.begin(), statics.end(), pattern);
    std::fill_n(dynamic_shared.data(), shared_bytes, pattern);
    for (Warp& warp : warps_) {
      const unsigned lanes = std::min<unsigned>(count - index_of(warp) * kWarpLanes, kWarpLanes);
      warp.present = warp.ready = lanes == kWarpLanes ? ~0u : (1u << lanes) - 1;
      warp.in_collective = warp.at_barrier = warp.exited = 0;
    }
    run_block();
  }

  if (faulty_) {
    for (auto& thread : threads_) thread->fiber.start(&run_threads);
  }
  faulty_ = false;
  dynamic_shared_ = nullptr;
  kernel_ = nullptr;
}

void Scheduler::run_block() {
  turn_ = predicates_ = 0;
  current_ = next_thread();
  threadIdx = current().index;
  host_.switch_to(current().fiber);
  if (!faulty_ && !dynamic_shared_->guards_are_intact()) {
    faulty_ = true;
    device.failed = cudaErrorIllegalAddress;
    device.message = std::string(name_) + ", block " + text(blockIdx) +
                     ": wrote out of the bounds of its " + std::to_string(dynamic_shared_->size()) +
                     " bytes of dynamic shared memory";
  }
}

void Scheduler::run_threads() {
  for (;;) {
    (*scheduler.kernel_)();
    scheduler.current_warp().exited |= 1u << scheduler.lane();
    scheduler.yield();
  }
}

// Runs other threads until it is this one's turn again.
void Scheduler::yield() {
  const unsigned next = next_thread();
  Fiber& own = current().fiber;
  if (next == kNobody) return own.switch_to(host_);
  if (next == current_) return;
  current_ = next;
  threadIdx = current().index;
  own.switch_to(current().fiber);
}

void Scheduler::fault(cudaError_t error, const std::string& message) {
  if (!is_running()) {
    std::fprintf(stderr, "CUDA emulator: outside of a kernel: %s\n", message.c_str());
    std::abort();
  }
  device.failed = error;
  device.message = std::string(name_) + ", block " + text(blockIdx) + ", thread " +
                   text(current().index) + ": " + message;
  faulty_ = true;
  current().fiber.switch_to(host_);
  std::abort();  // never reached: the block's fibers are abandoned
}

// Which thread runs next: a lane of the same warp, as long as one can run; then one of the next
// warp.
unsigned Scheduler::next_thread() {
  const bool forward = device.order == Order::kForward;
  const auto last_turn = static_cast<unsigned>(warps_.size()) - 1;
  for (;;) {
    Warp& warp = warps_[forward ? turn_ : last_turn - turn_];
    if (warp.ready) {
      const int lane =
          forward ? std::countr_zero(warp.ready) : kWarpLanes - 1 - std::countl_zero(warp.ready);
      warp.ready &= ~(1u << lane);
      return index_of(warp) * kWarpLanes + static_cast<unsigned>(lane);
    }
    if (warp.in_collective) {
      if (!release_collective(warp)) report_stuck(warp);
      continue;
    }
    if (turn_ < last_turn) {
      ++turn_;
      continue;
    }
    const auto has_exited = [](const Warp& w) { return w.exited == w.present; };
    if (std::all_of(warps_.begin(), warps_.end(), has_exited)) return kNobody;
    release_barrier();
    turn_ = 0;
  }
}

// ---- barriers ----------------------------------------------------------------------------------

unsigned Scheduler::wait_for_block(const Call& call, bool predicate) {
  current().waits_at = call;
  current_warp().at_barrier |= 1u << lane();
  predicates_ += predicate;
  yield();
  return counted_predicates_;
}

// All threads wait here or have exited. A GPU may let the former pass, but CUDA's guide wants a
// barrier to be reached by all threads of the block or by none.
void Scheduler::release_barrier() {
  const Thread* first = nullptr;
  const Thread* missing = nullptr;
  for (const Warp& warp : warps_) {
    for (unsigned lane = 0; lane < kWarpLanes && (warp.present >> lane & 1); ++lane) {
      const Thread& t = thread(warp, lane);
      if (warp.exited >> lane & 1) {
        missing = &t;
      } else if (!first) {
        first = &t;
      } else if (!match(first->waits_at, t.waits_at)) {
        fault(cudaErrorLaunchFailure, "divergent barriers: thread " + text(first->index) +
                                          " waits at " + text(first->waits_at) + ", thread " +
                                          text(t.index) + " at " + text(t.waits_at));
      }
    }
  }
  if (missing) {
    fault(cudaErrorLaunchFailure, "divergent barrier: thread " + text(first->index) + " waits at " +
                                      text(first->waits_at) + ", but thread " +
                                      text(missing->index) + " exited");
  }
  for (Warp& warp : warps_) {
    warp.ready = warp.at_barrier;
    warp.at_barrier = 0;
  }
  counted_predicates_ = predicates_;
  predicates_ = 0;
}

// ---- warp collectives --------------------------------------------------------------------------

const std::uint64_t* Scheduler::exchange_in_warp(const Call& call, unsigned mask,
                                                 std::uint64_t value) {
  Warp& warp = current_warp();
  if (!(mask >> lane() & 1)) {
    fault(cudaErrorLaunchFailure, text(call) + ": the mask " + hexadecimal(mask) +
                                      " does not name the calling lane, " + std::to_string(lane()));
  }
  Thread& thread = current();
  thread.waits_at = call;
  thread.mask = mask;
  thread.value = value;
  warp.in_collective |= 1u << lane();
  yield();
  return warp.exchanged;
}

// The lanes that a waiting thread waits for. __syncwarp() names the whole warp unless told
// otherwise, and so must do without lanes that are not there.
unsigned Scheduler::participants(const Warp& warp, const Thread& thread) const {
  return is_syncwarp(thread.waits_at) ? thread.mask & warp.present & ~warp.exited : thread.mask;
}

// Lets one group of lanes go on whose members all wait for each other.
bool Scheduler::release_collective(Warp& warp) {
  for (unsigned waiting = warp.in_collective; waiting; waiting &= waiting - 1) {
    const Thread& first = thread(warp, static_cast<unsigned>(std::countr_zero(waiting)));
    const unsigned group = participants(warp, first);
    if (group & ~warp.in_collective) continue;
    bool together = true;
    for (unsigned rest = group; rest && together; rest &= rest - 1) {
      const Thread& other = thread(warp, static_cast<unsigned>(std::countr_zero(rest)));
      together = other.mask == first.mask && match(other.waits_at, first.waits_at);
    }
    if (!together) continue;
    for (unsigned rest = group; rest; rest &= rest - 1) {
      const auto lane = static_cast<unsigned>(std::countr_zero(rest));
      warp.exchanged[lane] = thread(warp, lane).value;
    }
    warp.in_collective &= ~group;
    warp.ready |= group;
    return true;
  }
  return false;
}

// No lane of the warp can run, but some wait for another: says for which.
void Scheduler::report_stuck(const Warp& warp) {
  const Thread& waiting = thread(warp, static_cast<unsigned>(std::countr_zero(warp.in_collective)));
  const std::string who = "thread " + text(waiting.index) + " waits at " + text(waiting.waits_at) +
                          " with the mask " + hexadecimal(waiting.mask) + ", but lane ";
  for (unsigned rest = participants(warp, waiting); rest; rest &= rest - 1) {
    const auto lane = static_cast<unsigned>(std::countr_zero(rest));
    const unsigned bit = 1u << lane;
    std::string why;
    if (!(warp.present & bit)) {
      why = " is not in the block";
    } else if (warp.exited & bit) {
      why = " exited";
    } else if (const Thread& other = thread(warp, lane); warp.at_barrier & bit) {
      why = " waits at " + text(other.waits_at);
    } else if (other.mask != waiting.mask || !match(other.waits_at, waiting.waits_at)) {
      why = " waits at " + text(other.waits_at) + " with the mask " + hexadecimal(other.mask);
    }
    if (!why.empty()) fault(cudaErrorLaunchFailure, who + std::to_string(lane) + why);
  }
  std::abort();  // the group was complete
}

// ---- launches ----------------------------------------------------------------------------------

bool in_range(const dim3& size, unsigned x, unsigned y, unsigned z) {
  return size.x >= 1 && size.x <= x && size.y >= 1 && size.y <= y && size.z >= 1 && size.z <= z;
}

bool is_possible(const char* name, const void* kernel, dim3 grid, dim3 block,
                 std::size_t shared_bytes) {
  const auto size = [](const dim3& d) { return text(uint3{d.x, d.y, d.z}); };
  if (!in_range(grid, 0x7fffffff, 65535, 65535)) {
    refuse(cudaErrorInvalidConfiguration, std::string(name) + ": a grid of " + size(grid));
    return false;
  }
  if (!in_range(block, kMostThreads, kMostThreads, 64) ||
      block.x * block.y * block.z > kMostThreads) {
    refuse(cudaErrorInvalidConfiguration, std::string(name) + ": a block of " + size(block));
    return false;
  }
  const auto optin = device.shared_bytes_optin.find(kernel);
  const std::size_t limit = optin == device.shared_bytes_optin.end()
                                ? kSharedBytes
                                : std::max(optin->second, kSharedBytes);
  if (shared_bytes > limit) {
    refuse(cudaErrorInvalidValue, std::string(name) + ": " + std::to_string(shared_bytes) +
                                      " bytes of dynamic shared memory, " + std::to_string(limit) +
                                      " are allowed (cudaFuncSetAttribute can allow more)");
    return false;
  }
  return true;
}

}  // namespace

void run(const char* name, const void* kernel, dim3 grid, dim3 block, std::size_t shared_bytes,
         const std::function<void()>& thread) {
  const std::lock_guard lock(device.busy);
  if (device.failed != cudaSuccess) return;
  if (!is_possible(name, kernel, grid, block, shared_bytes)) return;
  device.launches.push_back(name);
  gridDim = grid;
  blockDim = block;
  scheduler.run_grid(name, thread, shared_bytes);
}

void fault(cudaError_t error, const std::string& message) { scheduler.fault(error, message); }
void* dynamic_shared() { return scheduler.dynamic_shared(); }
unsigned wait_for_block(const Call& call, bool predicate) {
  return scheduler.wait_for_block(call, predicate);
}
const std::uint64_t* exchange_in_warp(const Call& call, unsigned mask, std::uint64_t value) {
  return scheduler.exchange_in_warp(call, mask, value);
}
unsigned lane() { return scheduler.lane(); }
unsigned active_lanes() { return scheduler.active_lanes(); }

void set_order(Order order) { device.order = order; }
void reset() {
  device.launches.clear();
  device.message.clear();
  device.refused = device.failed = cudaSuccess;
}
std::vector<std::string> launches() { return device.launches; }
std::string last_message() { return device.message; }

}  // namespace cuda_emulator

// ---- the runtime -------------------------------------------------------------------------------

using cuda_emulator::device;
using cuda_emulator::refuse;

cudaError_t cudaPeekAtLastError() {
  return device.failed != cudaSuccess ? device.failed : device.refused;
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = cudaPeekAtLastError();
  device.refused = cudaSuccess;
  return error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorAssert:
      return "device-side assert triggered";
    case cudaErrorMisalignedAddress:
      return "misaligned address";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
    case cudaErrorNotSupported:
      return "operation not supported";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* index) {
  *index = 0;
  return device.failed;
}

cudaError_t cudaSetDevice(int index) {
  return index == 0 ? device.failed : refuse(cudaErrorInvalidDevice, "there is one device");
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return device.failed;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int index) {
  if (index != 0) return refuse(cudaErrorInvalidDevice, "there is one device");
  switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
      *value = cuda_emulator::kMostThreads;
      return device.failed;
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = cuda_emulator::kSharedBytes;
      return device.failed;
    case cudaDevAttrWarpSize:
      *value = warpSize;
      return device.failed;
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_emulator::kMultiprocessors;
      return device.failed;
    case cudaDevAttrL2CacheSize:
      *value = 50 << 20;
      return device.failed;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = cuda_emulator::kMostResidentThreads;
      return device.failed;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      return device.failed;
    case cudaDevAttrComputeCapabilityMinor:
    case cudaDevAttrCooperativeLaunch:  // blocks run one after the other
      *value = 0;
      return device.failed;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = cuda_emulator::kSharedBytesOfMultiprocessor;
      return device.failed;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = cuda_emulator::kSharedBytesOptin;
      return device.failed;
  }
  return refuse(cudaErrorInvalidValue, "cudaDeviceGetAttribute: not emulated");
}

cudaError_t cudaDeviceSynchronize() { return device.failed; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return device.failed; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return device.failed;
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t) {
  if (device.failed == cudaSuccess && bytes > 0) std::memset(to, value, bytes);
  return device.failed;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  if (device.failed == cudaSuccess && bytes > 0) std::memcpy(to, from, bytes);
  return device.failed;
}

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
    if (value < 0 || static_cast<std::size_t>(value) > cuda_emulator::kSharedBytesOptin) {
      return refuse(cudaErrorInvalidValue, "cudaFuncSetAttribute: " + std::to_string(value) +
                                               " bytes of dynamic shared memory");
    }
    device.shared_bytes_optin[kernel] = static_cast<std::size_t>(value);
  }
  return device.failed;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int threads,
                                                          std::size_t shared_bytes) {
  if (threads < 1) return refuse(cudaErrorInvalidValue, "occupancy of a block without threads");
  const int by_threads =
      threads > cuda_emulator::kMostThreads ? 0 : cuda_emulator::kMostResidentThreads / threads;
  const int by_memory = static_cast<int>(cuda_emulator::kSharedBytesOfMultiprocessor /
                                         (shared_bytes + cuda_emulator::kSharedBytesReserved));
  *blocks = std::min({by_threads, by_memory, cuda_emulator::kMostResidentBlocks});
  return device.failed;
}

// What assert() calls in this library. On a GPU a failed one ends the kernel.
extern "C" [[gnu::visibility("hidden"), noreturn]] void __assert_fail(
    const char* expression, const char* file, unsigned line, const char* function) noexcept {
  const std::string place = std::string(file) + ":" + std::to_string(line) + ": " + function;
  cuda_emulator::fault(cudaErrorAssert, place + ": Assertion `" + expression + "' failed.");
}
