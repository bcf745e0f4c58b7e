#include "fl/read_batch.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>

#include "common/ceil_div.h"
#include "fl/read_batch_kernel.h"

namespace fedkern {

namespace {

constexpr int64_t kThreadBytes = 1 << 16;  // a thread's least

}  // namespace

void read_batch(const at::Tensor& stored, const at::Tensor& indices, const at::Tensor& batch) {
  const int64_t num_rows = indices.numel(), num_stored = stored.size(0);
  const int64_t size = num_rows > 0 ? batch.numel() / num_rows : 0;
  TORCH_CHECK_VALUE(stored.is_contiguous() && batch.is_contiguous() && batch.size(0) == num_rows &&
                        stored.sizes().slice(1) == batch.sizes().slice(1),
                    "read_batch: wanted contiguous [n, ...] and [b, ...] and indices [b], got ",
                    stored.sizes(), ", ", batch.sizes(), " and ", indices.sizes());
  const auto* const from = stored.const_data_ptr<uint8_t>();
  const at::Tensor in_order = indices.contiguous();
  const auto* const rows = in_order.const_data_ptr<int64_t>();
  auto* const to = batch.mutable_data_ptr<float>();
  for (int64_t i = 0; i < num_rows; ++i) {
    TORCH_CHECK_INDEX(rows[i] >= 0 && rows[i] < num_stored, "read_batch: index ", rows[i],
                      " is out of range for ", num_stored, " samples");
  }
  const int64_t grain = ceil_div(kThreadBytes, std::max<int64_t>(1, size));
  at::parallel_for(0, num_rows, grain, [&](int64_t begin, int64_t end) {
    read_batch_kernels().read(from, size, rows + begin, end - begin, to + begin * size);
  });
}

}  // namespace fedkern
