#pragma once

// Uniform points of R = {alpha in the simplex : |alpha - beta|_1 <= rho}, shared by the CPU and
// CUDA. M is the number of coordinates, F the positive coordinates of the centre beta, f their
// number.
//
// The ball. u = alpha - beta sums to 0, so its positive and its negative part both sum to some
// t <= rho / 2. Given that q coordinates are negative, of F all, the volume is proportional to
// 1 / ((M - q - 1)! (q - 1)!), and t has a density proportional to t^(M - 2). So q is drawn with
// weight C(f, q) / ((M - q - 1)! (q - 1)!), then a q-subset of F, t = (rho / 2) U^(1 / (M - 1)),
// and both parts as t times a uniform point of their simplex. What falls outside the simplex is
// drawn anew.
//
// The region drawn from. By Vandermonde the volume of that, over the simplex's, is
// (rho / 2)^(M - 1) C(M - 2 + f, M - 1), and R's part of it is the chance of acceptance. Where that
// is small, a region that contains R may be smaller: the simplex itself, or, with the entries of
// beta below a threshold (their sum is d) moved onto the largest, the ball around that centre of
// radius rho + 2 d. plan_ball takes the smallest. Points further than rho from beta are drawn anew.
//
// An end. After kTries a point is a hit-and-run walk's from beta, which is uniform in the limit.

#include <cstdint>

#include "common/reproducible_math.h"
#include "ops/simplex_sample_math.h"

namespace fedkern {

constexpr uint32_t kTries = 1024;
constexpr int64_t kSweeps = 64;  // steps of a walk for each coordinate

// Where else than at a group's index a draw's words are: in the upper half of the blocks.
constexpr uint32_t kChoices =
    0x80000000u;                         // + the group's index: which of its members are negative
constexpr uint32_t kHead = 0xffffffffu;  // q and t

constexpr double kCenterTolerance = 1e-3;  // of the sum of a centre

enum class BallMethod { kExact, kPublished };

enum class Region { kCenter, kSimplex, kBall, kPublished };

// How the points of a centre are drawn.
template <typename T>
struct BallPlan {
  Region region;
  int64_t size;        // M
  const T* center;     // beta
  T radius;            // rho
  T limit;             // the largest distance to accept; infinite where rounding alone exceeds rho
  T half_radius;       // half the radius of the region drawn from
  T* folded;           // its centre
  int64_t positive;    // f of that
  uint32_t* q_above;   // q > i + 1 where a word is at least q_above[i]
  int64_t thresholds;  // how many of these
};

// Memory for the arrays of a plan; `sorted` is scratch.
template <typename T>
struct BallPlanMemory {
  double* sorted;
  T* folded;
  uint32_t* q_above;

  static constexpr int64_t kBytes = sizeof(double) + sizeof(T) + sizeof(uint32_t);

  // `memory` has size * kBytes bytes and is aligned to 8.
  FEDKERN_HOST_DEVICE BallPlanMemory(void* memory, int64_t size)
      : sorted(static_cast<double*>(memory)),
        folded(reinterpret_cast<T*>(sorted + size)),
        q_above(reinterpret_cast<uint32_t*>(folded + size)) {}
};

// ---- checks -------------------------------------------------------------------------------------

// Whether a centre is a point of the simplex. Not so for nan.
template <typename T>
FEDKERN_HOST_DEVICE bool is_center(const T* center, int64_t size) {
  double sum = 0;
  bool positive = true;
  for (int64_t j = 0; j < size; ++j) {
    positive = positive && center[j] >= 0;
    sum += center[j];
  }
  return positive && sum >= 1 - kCenterTolerance && sum <= 1 + kCenterTolerance;
}

// Not so for nan and infinity.
FEDKERN_HOST_DEVICE bool is_radius(double radius) {
  return radius >= 0 && radius < __builtin_huge_val();
}

// ---- the plan -----------------------------------------------------------------------------------

// Shell sort, ascending.
FEDKERN_HOST_DEVICE void sort_entries(double* entries, int64_t size) {
  int64_t gap = 1;
  while (gap < size / 3) gap = 3 * gap + 1;
  for (; gap > 0; gap /= 3) {
    for (int64_t i = gap; i < size; ++i) {
      const double entry = entries[i];
      int64_t j = i;
      for (; j >= gap && entries[j - gap] > entry; j -= gap) entries[j] = entries[j - gap];
      entries[j] = entry;
    }
  }
}

struct Fold {
  bool simplex;      // rather the whole simplex
  double threshold;  // entries below it move
  double moved;      // d, their sum
};

// C(M - 2 + f, M - 1) / C(M - 3 + f, M - 1)
FEDKERN_HOST_DEVICE double binomial_ratio(int64_t f, int64_t size) {
  return static_cast<double>(size + f - 2) / static_cast<double>(f - 1);
}

// The smallest region. Between equal entries the logarithm of the volume is a concave function of
// how many of them move, so all or none do.
FEDKERN_HOST_DEVICE Fold choose_fold(const double* sorted, int64_t positive, double radius,
                                     int64_t size) {
  const double dimension = static_cast<double>(size - 1);
  double log_binomial = 0;
  for (int64_t f = 2; f <= positive; ++f) log_binomial += reproducible_log(binomial_ratio(f, size));
  Fold best{true, 0, 0};
  double least = 0, moved = 0;
  for (int64_t s = 0; s < positive; ++s) {
    if (s == 0 || sorted[s] > sorted[s - 1]) {
      const double volume = dimension * reproducible_log(radius / 2 + moved) + log_binomial;
      if (volume < least) {
        least = volume;
        best = {false, sorted[s], moved};
      }
    }
    moved += sorted[s];
    if (positive - s > 1) log_binomial -= reproducible_log(binomial_ratio(positive - s, size));
  }
  return best;
}

// The weight of q + 1 negative coordinates over that of q.
FEDKERN_HOST_DEVICE double weight_ratio(int64_t q, int64_t positive, int64_t size) {
  return static_cast<double>(positive - q) * static_cast<double>(size - q - 1) /
         (static_cast<double>(q + 1) * static_cast<double>(q));
}

// Thresholds for q in 1..min(f, M - 1), and their number. The ratios fall, so the weights are
// computed from the largest on, and none overflows. What is too rare for a 32-bit word has none.
FEDKERN_HOST_DEVICE int64_t choose_q(int64_t positive, int64_t size, double* weights,
                                     uint32_t* q_above) {
  const int64_t most = positive < size - 1 ? positive : size - 1;
  int64_t mode = 1;
  while (mode < most && weight_ratio(mode, positive, size) > 1) ++mode;
  double sum = weights[mode - 1] = 1;
  for (int64_t q = mode; q < most; ++q) {
    sum += weights[q] = weights[q - 1] * weight_ratio(q, positive, size);
  }
  for (int64_t q = mode - 1; q >= 1; --q) {
    sum += weights[q - 1] = weights[q] / weight_ratio(q, positive, size);
  }
  double below = 0;
  int64_t count = 0;
  for (; count < most - 1; ++count) {
    below += weights[count];
    const double threshold = below / sum * 0x1p32 + 0.5;
    if (threshold >= 0x1p32) break;
    q_above[count] = static_cast<uint32_t>(threshold);
  }
  return count;
}

template <typename T>
FEDKERN_HOST_DEVICE BallPlan<T> plan_ball(const T* center, int64_t size, double radius,
                                          BallMethod method, BallPlanMemory<T> memory) {
  constexpr T kInfinity = static_cast<T>(__builtin_huge_val());
  BallPlan<T> plan{};
  plan.region = Region::kPublished;
  plan.size = size;
  plan.center = center;
  plan.radius = static_cast<T>(radius);
  plan.limit = kInfinity;
  if (method == BallMethod::kPublished) return plan;
  plan.region = radius == 0 ? Region::kCenter : Region::kSimplex;
  if (radius == 0 || radius >= 2 || size == 1) return plan;

  plan.limit = plan.radius;
  int64_t largest = 0, positive = 0;
  for (int64_t j = 0; j < size; ++j) {
    if (center[j] > 0) memory.sorted[positive++] = center[j];
    if (center[j] > center[largest]) largest = j;
  }
  sort_entries(memory.sorted, positive);
  const Fold fold = choose_fold(memory.sorted, positive, radius, size);
  if (fold.simplex) return plan;

  plan.region = Region::kBall;
  plan.half_radius = static_cast<T>(radius / 2 + fold.moved);
  if (fold.moved == 0) plan.limit = kInfinity;
  plan.folded = memory.folded;
  plan.q_above = memory.q_above;
  for (int64_t j = 0; j < size; ++j) {
    const bool moves = center[j] < fold.threshold;
    plan.folded[j] = moves ? T(0) : center[j];
    plan.positive += !moves;
  }
  plan.folded[largest] = static_cast<T>(center[largest] + fold.moved);
  plan.thresholds = choose_q(plan.positive, size, memory.sorted, plan.q_above);
  return plan;
}

template <typename T>
FEDKERN_HOST_DEVICE T absolute(T x) {
  return x < 0 ? -x : x;
}

// ---- a draw: row[j * stride + l] for coordinate j of lane l -------------------------------------

template <typename T, int kLanes>
FEDKERN_HOST_DEVICE void draw_from_ball(const BallPlan<T>& plan, uint64_t key,
                                        const Counters<kLanes>& at, T* row, int64_t stride) {
  const auto head = draw_words(key, kHead, at);
  uint32_t wanted[kLanes];  // members of F that are still to be chosen as negative
  T t[kLanes], rise[kLanes] = {}, fall[kLanes] = {};  // sums, then factors, of the two parts
  for (int l = 0; l < kLanes; ++l) wanted[l] = 1;
  for (int64_t i = 0; i < plan.thresholds; ++i) {
    for (int l = 0; l < kLanes; ++l) wanted[l] += head.word[0][l] >= plan.q_above[i];
  }
  const T power = 1 / static_cast<T>(plan.size - 1);
  for (int l = 0; l < kLanes; ++l) {
    const T e = exponential<T>(head.word[2][l], head.word[3][l]);
    t[l] = plan.half_radius * reproducible_exp(-e * power);
  }

  // Exponential variables, those of negative coordinates with that sign. One of the `left` members
  // of F that are not yet decided is chosen with probability wanted / left.
  uint32_t left = static_cast<uint32_t>(plan.positive);
  for (int64_t first = 0; first < plan.size; first += kGroup<T>) {
    const uint32_t group = static_cast<uint32_t>(first / kGroup<T>);
    bool any = false;
    FEDKERN_UNROLL
    for (int i = 0; i < kGroup<T>; ++i) {
      any = any || (first + i < plan.size && plan.folded[first + i] > 0);
    }
    const auto words = draw_words(key, group, at);
    Words<kLanes> choices{};
    if (any) choices = draw_words(key, kChoices + group, at);
    FEDKERN_UNROLL
    for (int i = 0; i < kGroup<T>; ++i) {
      const int64_t j = first + i;
      if (j >= plan.size) break;
      if (plan.folded[j] > 0) {
        for (int l = 0; l < kLanes; ++l) {
          const T e = exponential<T>(words, i, l);
          const bool negative = multiply_high(choices.word[i][l], left) < wanted[l];
          row[j * stride + l] = negative ? -e : e;
          rise[l] += negative ? T(0) : e;
          fall[l] += negative ? e : T(0);
          wanted[l] -= negative;
        }
        --left;
      } else {
        for (int l = 0; l < kLanes; ++l) {
          const T e = exponential<T>(words, i, l);
          row[j * stride + l] = e;
          rise[l] += e;
        }
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    rise[l] = t[l] / rise[l];
    fall[l] = t[l] / fall[l];
  }
  for (int64_t j = 0; j < plan.size; ++j) {
    for (int l = 0; l < kLanes; ++l) {
      const T e = row[j * stride + l];
      row[j * stride + l] = plan.folded[j] + e * (e < 0 ? fall[l] : rise[l]);
    }
  }
}

// What the published code draws: beta + U(0, rho) v / |v|_1 with v uniform on (-1, 1)^M.
template <typename T, int kLanes>
FEDKERN_HOST_DEVICE void draw_as_published(const BallPlan<T>& plan, uint64_t key,
                                           const Counters<kLanes>& at, T* row, int64_t stride) {
  const auto head = draw_words(key, kHead, at);
  T scale[kLanes] = {};
  for (int64_t first = 0; first < plan.size; first += kGroup<T>) {
    const auto words = draw_words(key, static_cast<uint32_t>(first / kGroup<T>), at);
    FEDKERN_UNROLL
    for (int i = 0; i < kGroup<T>; ++i) {
      if (first + i >= plan.size) break;
      for (int l = 0; l < kLanes; ++l) {
        const T v = signed_uniform<T>(words, i, l);
        row[(first + i) * stride + l] = v;
        scale[l] += absolute(v);
      }
    }
  }
  for (int l = 0; l < kLanes; ++l) {
    const T u = uniform<T>(head.word[2][l], head.word[3][l]);
    scale[l] = plan.radius * u / scale[l];
  }
  for (int64_t j = 0; j < plan.size; ++j) {
    for (int l = 0; l < kLanes; ++l) {
      row[j * stride + l] = plan.center[j] + row[j * stride + l] * scale[l];
    }
  }
}

// One try for each lane, and whether it is in R.
template <typename T, int kLanes>
FEDKERN_HOST_DEVICE void try_ball(const BallPlan<T>& plan, uint64_t key, const Counters<kLanes>& at,
                                  T* row, int64_t stride, bool (&accepted)[kLanes]) {
  for (int l = 0; l < kLanes; ++l) accepted[l] = true;
  if (plan.region == Region::kPublished) return draw_as_published(plan, key, at, row, stride);
  if (plan.region == Region::kCenter) {
    for (int64_t j = 0; j < plan.size; ++j) {
      for (int l = 0; l < kLanes; ++l) row[j * stride + l] = plan.center[j];
    }
    return;
  }
  if (plan.region == Region::kSimplex) {
    draw_from_simplex(key, at, plan.size, row, stride);
  } else {
    draw_from_ball(plan, key, at, row, stride);
  }
  T least[kLanes] = {}, distance[kLanes] = {};
  for (int64_t j = 0; j < plan.size; ++j) {
    for (int l = 0; l < kLanes; ++l) {
      const T alpha = row[j * stride + l];
      least[l] = alpha < least[l] ? alpha : least[l];
      distance[l] += absolute(alpha - plan.center[j]);
    }
  }
  for (int l = 0; l < kLanes; ++l) accepted[l] = least[l] == 0 && distance[l] <= plan.limit;
}

// ---- hit-and-run --------------------------------------------------------------------------------

// From beta, kSweeps * M steps along alpha_i + s, alpha_j - s for random pairs i, j, s uniform on
// all that stays in R. With x = alpha_i, the pair's sum p, a = beta_i and b = p - beta_j, that is
// 0 <= x <= p and |x - a| + |x - b| <= g, what the others leave of the radius:
// |2 x - (a + b)| <= g.
template <typename T>
FEDKERN_HOST_DEVICE void walk_in_ball(const BallPlan<T>& plan, uint64_t key, int64_t point, T* row,
                                      int64_t stride) {
  const uint32_t size = static_cast<uint32_t>(plan.size);
  const T* center = plan.center;
  Counters<1> at;
  at.set(0, point, kTries);
  uint32_t step = 0;
  for (uint32_t j = 0; j < size; ++j) row[j * stride] = center[j];
  for (int64_t sweep = 0; sweep < kSweeps; ++sweep) {
    T distance = 0;  // anew in each sweep: it collects rounding errors
    for (uint32_t j = 0; j < size; ++j) distance += absolute(row[j * stride] - center[j]);
    for (uint32_t n = 0; n < size; ++n) {
      const auto words = draw_words(key, step++, at);
      const uint32_t i = multiply_high(words.word[0][0], size);
      uint32_t j = multiply_high(words.word[1][0], size - 1);
      j += j >= i;
      T &x = row[i * stride], &y = row[j * stride];
      const T sum = x + y, a = center[i], b = sum - center[j];
      const T others = distance - (absolute(x - a) + absolute(y - center[j]));
      const T g = plan.radius - others;
      T low = (a + b - g) / 2, high = (a + b + g) / 2;
      low = low < 0 ? T(0) : low;
      high = high > sum ? sum : high;
      if (!(low < high)) continue;
      x = low + uniform<T>(words.word[2][0], words.word[3][0]) * (high - low);
      x = x > high ? high : x;
      y = sum - x;
      distance = others + (absolute(x - a) + absolute(y - center[j]));
    }
  }
}

}  // namespace fedkern
