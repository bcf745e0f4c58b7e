#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace [[gnu::visibility("default")]] planted {

using Size = std::array<unsigned, 3>;

// kernel<<<grid, block, shared_bytes>>>(input, output, size); what cudaGetLastError says then.
std::string launch(const std::string& kernel, Size grid, Size block, std::size_t shared_bytes,
                   std::uintptr_t input, std::uintptr_t output, int size);

// cudaFuncSetAttribute(MaxDynamicSharedMemorySize): what it returns.
std::string allow_shared_bytes(const std::string& kernel, int bytes);

std::string last_error();  // cudaGetLastError

}  // namespace planted
