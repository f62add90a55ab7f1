// Dropout with a counter-based generator: the mask is a function of the seed and the index of the element, so that the
// backward pass computes it again, and it does not depend on threads and instruction sets.
#pragma once

#include "kernels.h"
#include "runtime.h"
#include "simd.h"

namespace msda {
namespace {

typedef uint64_t LongVec __attribute__((vector_size(kVectorBytes)));
typedef int16_t SignedShortVec __attribute__((vector_size(kVectorBytes / 2)));
typedef uint16_t LaneVec __attribute__((vector_size(kVectorBytes)));
constexpr int64_t kLanes = kVectorBytes / 2;  // elements that a vector of random bits decides on, 16 bits each
constexpr int64_t kElementsPerTask = int64_t(1) << 14;

// The output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators").
template <typename V>
V mix_bits(V z) {
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
constexpr uint64_t kStep = 0x9e3779b97f4a7c15u;  // increment of SplitMix64: 2^64 divided by the golden ratio

// Sets elements of x whose 16 random bits are below the threshold to zero and multiplies the others by scale.
template <typename T>
void drop_range(const T* x, T* out, int64_t begin, int64_t end, uint16_t threshold, uint64_t state, float scale) {
  LongVec counters;
  for (int i = 0; i < kVectorBytes / 8; ++i) counters[i] = state + uint64_t(begin / 4 + i) * kStep;
  const LongVec step = LongVec{} + kStep * uint64_t(kLanes / 4);
  constexpr int kFloats = kWidth<float>;
  for (int64_t index = begin; index < end; index += kLanes, counters += step) {
    const LaneVec bits = bit_cast<LaneVec>(mix_bits(counters));
    const LaneVec kept = LaneVec(bits >= threshold);
    uint16_t lanes[kLanes];
    std::memcpy(lanes, &kept, sizeof(lanes));
    if (index + kLanes <= end) {
      for (int half = 0; half < 2; ++half) {
        // Sign extension: all bits of kept elements are set.
        const IntVec mask = __builtin_convertvector(load_as<SignedShortVec>(lanes + half * kFloats), IntVec);
        const FloatVec value = load(x + index + half * kFloats) * broadcast(scale);
        store(bit_cast<FloatVec>(bit_cast<IntVec>(value) & mask), out + index + half * kFloats);
      }
    } else {
      for (int64_t i = index; i < end; ++i) out[i] = lanes[i - index] != 0 ? T(float(x[i]) * scale) : T(0.0f);
    }
  }
}

template <typename T>
void drop_all(const Dropout& d) {
  const uint64_t state = mix_bits(d.seed);  // so that consecutive seeds have unrelated sequences
  const int64_t tasks = (d.count + kElementsPerTask - 1) / kElementsPerTask;
  parallel_for(tasks, 2 * kElementsPerTask, [&](int64_t begin, int64_t end) {
    const int64_t last = end * kElementsPerTask < d.count ? end * kElementsPerTask : d.count;
    drop_range(static_cast<const T*>(d.x), static_cast<T*>(d.output), begin * kElementsPerTask, last, d.threshold,
               state, d.scale);
  });
}

bool drop(const Dropout& d) {
  switch (d.type) {
    case DType::kFloat32:
      return drop_all<float>(d), true;
    case DType::kFloat16:
      return drop_all<Half>(d), true;
    case DType::kBFloat16:
      return drop_all<BFloat16>(d), true;
    case DType::kFloat64:
      return false;
  }
  return false;
}

}  // namespace
}  // namespace msda
