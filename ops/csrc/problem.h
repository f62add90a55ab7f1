// Arguments of one call of multi-scale deformable attention as plain pointers and sizes, and their element types.
// Shared by the registration code, the CPU kernels of every instruction set and the CUDA launchers.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

namespace msda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

// Type in which elements of type T are accumulated.
template <typename T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <typename T>
using Acc = typename AccOf<T>::type;

// Replaces torch's ScalarType, whose header includes complex numbers (and Thrust in CUDA code).
enum class DType : int32_t { kFloat32, kFloat64, kFloat16, kBFloat16 };

constexpr int kMaxLevels = 64;

// Source of the sampling points.
//   kLocations: sampling_locations (N, Q, M, L, K, 2) and attention_weights (N, Q, M, L, K).
//   kOffsets:   reference_points (N, Q, L, R), sampling_offsets (N, Q, M, L, K, 2) and
//               attention_logits (N, Q, M, L, K); softmax and addition happen inside the kernel.
enum class PointSource : int32_t { kLocations, kOffsets };

struct Problem {
  int64_t batch;      // N
  int64_t rows;       // S, the sum of height * width over the levels
  int64_t heads;      // M
  int64_t channels;   // D, per head
  int64_t queries;    // Q
  int32_t levels;     // L
  int32_t points;     // K
  int32_t ref_width;  // R: 2 or 4 values in a reference point; 0 without reference points
  DType value_type;
  DType point_type;  // of locations/offsets, weights/logits and reference points
  PointSource source;
  int64_t height[kMaxLevels];
  int64_t width[kMaxLevels];
  int64_t start[kMaxLevels];  // first row of each level

  // value (N, S, M, D): any strides (in elements) except that channels are adjacent.
  const void* value;
  int64_t value_stride_n, value_stride_s, value_stride_m;
  // All others are contiguous.
  const void* xy;           // sampling_locations or sampling_offsets
  const void* attention;    // attention_weights or attention_logits
  const void* reference;    // reference_points, or null
  void* output;             // (N, Q, M * D), forward only
  const void* grad_output;  // (N, Q, M * D), backward only
  void* grad_value;         // (N, S, M, D), contiguous
  void* grad_xy;
  void* grad_attention;
  // Gradients of the reference points per head, (N, M, Q, L, R) in the accumulation type; null if not needed.
  void* grad_reference;
};

}  // namespace msda
