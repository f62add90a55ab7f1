// The sequence of launches of one call, for any device that launches kernels and allocates and clears memory: the GPU
// or the emulation.
#pragma once

#include <type_traits>

#include "backward.h"
#include "deterministic.h"
#include "forward.h"

namespace msda {

struct Options {
  const int64_t* shapes;  // level sizes (L, 2) on the device; null: those of the problem
  bool deterministic;
};

// Calls launch(vector, channels) with integral constants: specialized kernels for the usual 32 channels, general ones
// (0) otherwise.
template <typename T, typename Launch>
void with_shape(const Problem& p, const Plan& plan, Launch launch) {
  constexpr std::integral_constant<int, 16 / int(sizeof(T))> full{};
  constexpr std::integral_constant<int, 0> any{};
  if (plan.vector == 1) return launch(std::integral_constant<int, 1>{}, any);
  if constexpr (sizeof(T) < 8) {
    if (p.channels == 32) return launch(full, std::integral_constant<int, 32>{});
  }
  launch(full, any);
}

template <typename T, typename P, bool kFused, typename Device>
void forward_pass(const Problem& p, const Options& options, Device& device) {
  const SharedNeed need = forward_need(sizeof(Acc<T>));
  const Plan plan = make_plan(p, sizeof(T), sizeof(P), is_aligned(p, sizeof(T)), need);
  if (plan.blocks == 0) return;
  Args a = make_args(p, plan, sizeof(T), sizeof(Acc<T>));
  a.shapes = options.shapes;
  const int64_t shared = shared_bytes(need, plan, p.levels, a.count);
  with_shape<T>(p, plan, [&](auto vector, auto channels) {
    using Kernel = ForwardKernel<T, P, decltype(vector)::value, decltype(channels)::value, kFused>;
    device.template launch<Kernel>(a, plan.blocks, plan.block, shared);
  });
}

template <typename T, typename P, typename Device>
void deterministic_pass(const Problem& p, const Options& options, Args a, Device& device) {
  const int64_t blocks = make_deterministic(p, options.shapes != nullptr, a);
  device.template launch<DeterministicKernel<T, P>>(a, blocks, kDeterministicBlock,
                                                    DeterministicKernel<T, P>::shared_bytes(p.levels));
}

// The rows of value must have the same stride as those of its gradient: M * D elements.
template <typename T, typename P, bool kFused, typename Device>
void backward_pass(const Problem& p, const Options& options, Device& device) {
  using A = Acc<T>;
  constexpr bool kSame = sizeof(T) == sizeof(A);
  const SharedNeed need = backward_need(sizeof(A), kFused);
  const Plan plan = make_plan(p, sizeof(T), sizeof(P), is_aligned(p, sizeof(T)), need);
  const int64_t values = p.batch * p.rows * p.heads * p.channels;
  if (plan.blocks == 0) return device.zero(p.grad_value, values * int64_t(sizeof(T)));
  Args a = make_args(p, plan, sizeof(T), sizeof(Acc<T>));
  a.shapes = options.shapes;
  const int64_t stash = stash_elements(p, plan, kFused);
  if (stash > 0) a.stash = device.allocate(stash * int64_t(sizeof(A)));
  if (!options.deterministic) {
    a.grad_rows = kSame ? p.grad_value : device.allocate(values * int64_t(sizeof(A)));
    device.zero(a.grad_rows, values * int64_t(sizeof(A)));
  } else if (kFused) {
    a.saved_xy = device.allocate(a.items * a.count * 2 * int64_t(sizeof(A)));
    a.saved_attention = device.allocate(a.items * a.count * int64_t(sizeof(A)));
  }
  const int64_t shared = shared_bytes(need, plan, p.levels, a.count);
  with_shape<T>(p, plan, [&](auto vector, auto channels) {
    using Kernel = BackwardKernel<T, P, decltype(vector)::value, decltype(channels)::value, kFused>;
    device.template launch<Kernel>(a, plan.blocks, plan.block, shared);
  });
  if (options.deterministic) {
    if constexpr (kFused) {
      a.xy = a.saved_xy;
      a.attention = a.saved_attention;
      deterministic_pass<T, A>(p, options, a, device);
    } else {
      deterministic_pass<T, P>(p, options, a, device);
    }
  } else if constexpr (!kSame) {
    a.items = values;
    const int64_t blocks = (values + 1023) / 1024;
    device.template launch<RoundKernel<T>>(a, blocks < kMaxBlocks ? blocks : kMaxBlocks, 256, 0);
  }
}

template <typename T, typename P, typename Device>
void run_source(const Problem& p, const Options& options, bool backward, Device& device) {
  const bool fused = p.source == PointSource::kOffsets;
  if (backward) {
    return fused ? backward_pass<T, P, true>(p, options, device) : backward_pass<T, P, false>(p, options, device);
  }
  return fused ? forward_pass<T, P, true>(p, options, device) : forward_pass<T, P, false>(p, options, device);
}

// T is the problem's value type; the points have the same type or, with a 16-bit value, float32.
template <typename T, typename Device>
void run_typed(const Problem& p, const Options& options, bool backward, Device& device) {
  if constexpr (sizeof(T) == 2) {
    if (p.point_type == DType::kFloat32) return run_source<T, float>(p, options, backward, device);
  }
  run_source<T, T>(p, options, backward, device);
}

}  // namespace msda
