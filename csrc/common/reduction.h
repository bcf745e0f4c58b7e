#pragma once

namespace fedkern {

// What becomes of the losses of a call's rows.
enum class Reduction { kNone, kMean, kSum };

}  // namespace fedkern
