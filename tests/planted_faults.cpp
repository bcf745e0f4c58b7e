// Faults on purpose: `make sanitize` calls each, and goes on only if every one was reported.
#include <cstddef>
#include <cstdlib>

#define PLANTED extern "C" __attribute__((visibility("default")))

// Bytes that were not asked for.
PLANTED int heap_buffer_overflow(int size) {
  auto* const bytes = static_cast<volatile char*>(std::calloc(static_cast<std::size_t>(size), 1));
  const int beyond = bytes[size];
  std::free(const_cast<char*>(bytes));
  return beyond;
}

PLANTED int heap_use_after_free(int size) {
  auto* const bytes = static_cast<volatile char*>(std::calloc(static_cast<std::size_t>(size), 1));
  std::free(const_cast<char*>(bytes));
  return bytes[0];
}

PLANTED int signed_integer_overflow(int size) { return size + 0x7fffffff; }

PLANTED int float_cast_overflow(int size) { return static_cast<int>(1e30 * size); }
