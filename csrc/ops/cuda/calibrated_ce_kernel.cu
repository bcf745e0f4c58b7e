// Four launches: the labels' histogram; class counts and the sums all rows need; a block a row; the
// sum of the rows' losses. A row is read three times (maximum, sums, gradient) and its gradient
// written once. Every sum runs in a fixed order: the same bits each time.

#include "common/cuda_launch.h"
#include "common/cuda_reduce.cuh"
#include "ops/cuda/calibrated_ce_kernel.h"
#include "ops/cuda/class_counts_kernel.h"

namespace fedkern {
namespace {

constexpr int kRowThreads = 128;
constexpr int kSumThreads = 512;

// ---- one block: class counts, the mean's denominator, the sum of the weights -------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kSumThreads)
    prepare_classes(const CalibratedCECudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  T largest = 0;
  for (int64_t c = threadIdx.x; arguments.given_counts && c < arguments.num_classes;
       c += kSumThreads) {
    largest = arguments.given_counts[c] > largest ? arguments.given_counts[c] : largest;
  }
  const T unit = counts_unit(block_max<kSumThreads>(largest));
  double denominator = 0, weight_sum = 0;
  for (int64_t c = threadIdx.x; c < arguments.num_classes; c += kSumThreads) {
    const int64_t occurs = arguments.histogram[c];
    const T n_c = arguments.given_counts ? arguments.given_counts[c] : static_cast<T>(occurs);
    assert(std::isfinite(n_c) && n_c >= 0 &&
           "calibrated_ce: class_counts must be finite and not negative");
    assert((occurs == 0 || n_c > 0) &&
           "calibrated_ce: class_counts must be positive for every class that is a label");
    const T w_c = arguments.weight ? arguments.weight[c] : T(1);
    arguments.n[c] = arguments.given_counts ? n_c * unit : n_c;
    if (occurs > 0) denominator += static_cast<double>(w_c) * static_cast<double>(occurs);
    weight_sum += static_cast<double>(w_c);
  }
  denominator = block_sum<kSumThreads>(denominator);
  weight_sum = block_sum<kSumThreads>(weight_sum);
  if (threadIdx.x == 0) {
    arguments.sums[0] = arguments.reduction == Reduction::kMean ? denominator : 1;
    arguments.sums[1] = weight_sum;
  }
}

// ---- a block a row -----------------------------------------------------------------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kRowThreads)
    run_rows(const CalibratedCECudaArguments<scalar_t> arguments) {
  using T = accumulate_t<scalar_t>;
  const int64_t num_classes = arguments.num_classes;
  const LabelSmoothing smoothing{1 - arguments.label_smoothing,
                                 arguments.label_smoothing / static_cast<double>(num_classes),
                                 arguments.sums[1]};

  for (int64_t row = blockIdx.x; row < arguments.rows; row += gridDim.x) {
    const scalar_t* z = arguments.logits + arguments.logits_layout.offset(row);
    const int64_t z_stride = arguments.logits_layout.class_stride;
    scalar_t* g =
        arguments.gradient ? arguments.gradient + arguments.gradient_layout.offset(row) : nullptr;
    const int64_t g_stride = arguments.gradient_layout.class_stride;
    const int64_t label = arguments.target[row];

    if (label == arguments.ignore_index) {
      for (int64_t c = threadIdx.x; g && c < num_classes; c += kRowThreads) {
        g[c * g_stride] = static_cast<scalar_t>(T(0));
      }
      if (threadIdx.x == 0) {
        if (arguments.row_losses) arguments.row_losses[row] = 0;
        if (!arguments.row_losses) arguments.loss[row] = static_cast<scalar_t>(T(0));
      }
      continue;
    }

    T maximum = -INFINITY;
    for (int64_t c = threadIdx.x; c < num_classes; c += kRowThreads) {
      const T z_c = static_cast<T>(z[c * z_stride]);
      maximum = z_c > maximum ? z_c : maximum;
    }
    maximum = block_max<kRowThreads>(maximum);

    const T n_y = arguments.n[label];
    const T w_y = arguments.weight ? arguments.weight[label] : T(1);
    const T d_y = static_cast<T>(z[label * z_stride]) - maximum;
    RowSums<T> own{};
    for (int64_t c = threadIdx.x; c < num_classes; c += kRowThreads) {
      const T d = static_cast<T>(z[c * z_stride]) - maximum;
      const T e = std::exp(d);
      const T w_c = arguments.weight ? arguments.weight[c] : T(1);
      const T weighted_e = w_c * (arguments.n[c] - n_y) * e;
      own.s += e;
      own.a += weighted_e;
      own.b += zero_or_product(weighted_e, d);
      own.v += zero_or_product(w_c, d);
    }
    const RowSums<double> sums{
        block_sum<kRowThreads, double>(own.s), block_sum<kRowThreads, double>(own.a),
        block_sum<kRowThreads, double>(own.b), block_sum<kRowThreads, double>(own.v)};

    if (threadIdx.x == 0) {
      const double loss = row_loss(sums, d_y, n_y, w_y, smoothing);
      if (arguments.row_losses) arguments.row_losses[row] = loss;
      if (!arguments.row_losses) arguments.loss[row] = static_cast<scalar_t>(static_cast<T>(loss));
    }
    if (!g) continue;

    const auto k = rounded<T>(gradient_coefficients(arguments.calibration, sums, n_y, w_y,
                                                    smoothing, 1 / arguments.sums[0]));
    for (int64_t c = threadIdx.x; c < num_classes; c += kRowThreads) {
      const T e = std::exp(static_cast<T>(z[c * z_stride]) - maximum);
      const T w_c = arguments.weight ? arguments.weight[c] : T(1);
      T g_c = arguments.calibration == Calibration::kLabel
                  ? class_gradient<Calibration::kLabel, true>(e, arguments.n[c], w_c, k)
                  : class_gradient<Calibration::kGradient, true>(e, arguments.n[c], w_c, k);
      if (c == label) g_c -= k.label;
      g[c * g_stride] = static_cast<scalar_t>(g_c);
    }
  }
}

// ---- one block: the loss -----------------------------------------------------------------------

template <typename scalar_t>
__global__ void __launch_bounds__(kSumThreads)
    sum_losses(const CalibratedCECudaArguments<scalar_t> arguments) {
  double sum = 0;
  for (int64_t row = threadIdx.x; row < arguments.rows; row += kSumThreads) {
    sum += arguments.row_losses[row];
  }
  sum = block_sum<kSumThreads>(sum);
  if (threadIdx.x == 0) {
    using T = accumulate_t<scalar_t>;
    *arguments.loss = static_cast<scalar_t>(static_cast<T>(sum / arguments.sums[0]));
  }
}

}  // namespace

template <typename scalar_t>
cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<scalar_t>& arguments,
                                       cudaStream_t stream) {
  const cudaError_t counted =
      count_labels_cuda(arguments.target, arguments.rows, arguments.num_classes,
                        arguments.ignore_index, arguments.histogram, stream);
  if (counted != cudaSuccess) return counted;
  FEDKERN_LAUNCH(prepare_classes<scalar_t>, 1, kSumThreads, stream, arguments);
  FEDKERN_LAUNCH(run_rows<scalar_t>, grid_size(arguments.rows), kRowThreads, stream, arguments);
  if (arguments.row_losses) {
    FEDKERN_LAUNCH(sum_losses<scalar_t>, 1, kSumThreads, stream, arguments);
  }
  return cudaGetLastError();
}

template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<float>&,
                                                cudaStream_t);
template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<double>&,
                                                cudaStream_t);
template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<__half>&,
                                                cudaStream_t);
template cudaError_t calibrated_ce_forward_cuda(const CalibratedCECudaArguments<__nv_bfloat16>&,
                                                cudaStream_t);

}  // namespace fedkern
