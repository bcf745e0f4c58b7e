#include "registration.h"

#include <memory>
#include <utility>
#include <vector>

namespace cuda_emulator {
namespace {

using Kept = std::pair<const char*, void (*)(torch::Library&)>;
std::vector<Kept>& kept() {
  static std::vector<Kept> kept;
  return kept;
}

std::vector<std::unique_ptr<torch::Library>> enabled;

// torch warns when a kernel takes another's place, which is what is wanted here.
struct SilentWarnings : c10::WarningHandler {
  void process(const c10::Warning&) override {}
};

}  // namespace

Registration::Registration(const char* library, void (*body)(torch::Library&)) {
  kept().emplace_back(library, body);
}

void enable() {
  if (!enabled.empty()) return;
  SilentWarnings silent;
  const c10::WarningUtils::WarningHandlerGuard guard(&silent);
  for (const auto& [library, body] : kept()) {
    enabled.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, library,
                                                       c10::DispatchKey::CPU, __FILE__, __LINE__));
    body(*enabled.back());
  }
}

void disable() { enabled.clear(); }

}  // namespace cuda_emulator
