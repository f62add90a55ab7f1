// Distribution of a call over the threads of a GPU. Plain C++ that runs on the host.
//
// One item is one (batch, query, head). A group of `lanes` neighboring threads processes one item; each of them holds
// `vector` adjacent channels and, if D is larger than lanes * vector, loops over the rest with that stride.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../problem.h"

namespace msda {

constexpr int32_t kSharedBytes = 48 * 1024;  // available to a block on every GPU without opt-in
constexpr int64_t kMaxBlocks = 0x7fffffff;
constexpr int32_t kTileRows = 64;      // rows of a level that one block of the deterministic kernel owns
constexpr int32_t kTileChannels = 64;  // and at most as many channels
constexpr int32_t kDeterministicBlock = 256;

// The kernels' argument, made from a Problem and a Plan.
struct Args {
  int64_t items, queries, rows;
  int32_t heads, channels, levels, points, count;  // count = levels * points
  int32_t ref_width;
  int32_t lanes_log2;
  int32_t level_bytes;   // of shared memory, for the table of levels
  bool queries_inner;    // order of items: (n, m, q) or (n, q, m)
  int64_t tiles, slabs;  // of the deterministic kernel: tiles of rows over all levels, slabs of channels

  const int64_t* shapes;  // (L, 2) on the device, or null: height and width below
  int32_t height[kMaxLevels], width[kMaxLevels];

  const char* value;
  int64_t value_stride_n, value_stride_m;  // bytes
  int32_t value_step;                      // from row to row of value, in vectors of a thread
  const void *xy, *attention, *reference;
  void* output;
  const void* grad_output;
  void* grad_rows;   // (N, S, M, D) of the accumulation type, zeroed: receives atomic additions; null for none
  void* grad_value;  // (N, S, M, D) of the value type: the deterministic kernel's result
  void *grad_xy, *grad_attention, *grad_reference;
  void* stash;  // 3 gradients per point of the fused backward if shared memory is too small, or null
  void *saved_xy,
      *saved_attention;  // the fused backward's locations and weights, for the deterministic kernel; or null
};

struct Plan {
  int32_t vector;  // 16 bytes of channels, or 1
  int32_t lanes;   // threads per item: a power of two up to 32
  int32_t block;   // threads per block
  bool queries_inner;
  bool stash_in_shared;
  int64_t blocks;
};

// Bytes of shared memory: the table of levels, and per thread one point's four weights, four rows and, in the
// backward, four dot products; a fused backward also keeps three numbers for all points of its items.
struct SharedNeed {
  int32_t acc_size, per_thread, per_point;
};
inline SharedNeed forward_need(int32_t acc_size) { return {acc_size, 4 * acc_size + 16, 0}; }
inline SharedNeed backward_need(int32_t acc_size, bool fused) {
  return {acc_size, 8 * acc_size + 16, fused ? 3 * acc_size : 0};
}
inline int32_t level_bytes(int32_t acc_size, int32_t levels) { return ((2 * acc_size + 8) * levels + 31) / 32 * 32; }
inline int64_t shared_bytes(const SharedNeed& need, const Plan& plan, int32_t levels, int64_t count) {
  const int64_t stash = plan.stash_in_shared ? plan.block / plan.lanes * count * need.per_point : 0;
  return level_bytes(need.acc_size, levels) + plan.block * need.per_thread + stash;
}

// aligned: value, its gradient and the output may be accessed 16 bytes at a time.
inline Plan make_plan(const Problem& p, int32_t element_size, int32_t point_size, bool aligned,
                      const SharedNeed& need) {
  Plan plan = {};
  plan.vector = aligned ? 16 / element_size : 1;
  const int64_t steps = (p.channels + plan.vector - 1) / plan.vector;
  plan.lanes = 1;
  while (plan.lanes < 32 && plan.lanes < steps) plan.lanes *= 2;
  const int64_t items = p.batch * p.queries * p.heads;
  const int64_t count = int64_t(p.levels) * p.points;
  // Small blocks for few items, so that every multiprocessor gets one.
  plan.block = items * plan.lanes >= 65536 ? 256 : 64;
  // Neighboring queries sample neighboring pixels, so a block takes many queries of one head: its rows then come
  // from L1. If an item's points or channels fill no 32-byte sector this order would waste bandwidth.
  plan.queries_inner = count * 2 * point_size >= 32 && p.channels * element_size >= 32;
  plan.stash_in_shared = need.per_point > 0;
  if (plan.stash_in_shared) {
    while (plan.block > 32 && shared_bytes(need, plan, p.levels, count) > kSharedBytes) plan.block /= 2;
    if (shared_bytes(need, plan, p.levels, count) > kSharedBytes) {
      plan.stash_in_shared = false;
      plan.block = 64;
    }
  }
  const int64_t per_block = plan.block / plan.lanes;
  plan.blocks = (items + per_block - 1) / per_block;
  if (plan.blocks > kMaxBlocks) plan.blocks = kMaxBlocks;  // blocks stride over the rest
  return plan;
}

// Elements of the accumulation type that the stash in device memory needs; 0 if shared memory holds it.
inline int64_t stash_elements(const Problem& p, const Plan& plan, bool fused) {
  if (!fused || plan.stash_in_shared) return 0;
  return 3 * p.batch * p.queries * p.heads * p.levels * p.points;
}

inline bool is_aligned(const Problem& p, int32_t element_size) {
  const int64_t sizes[] = {p.batch, p.rows, p.heads, 2};  // the stride of a dimension of size 1 is arbitrary
  const int64_t strides[] = {p.value_stride_n, p.value_stride_s, p.value_stride_m, p.channels};
  for (int i = 0; i < 4; ++i) {
    if (sizes[i] > 1 && strides[i] * element_size % 16 != 0) return false;
  }
  const void* const addresses[] = {p.value, p.output, p.grad_output, p.grad_value};
  for (const void* address : addresses) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) return false;
  }
  return true;
}

// Sets all arguments except the buffers.
inline Args make_args(const Problem& p, const Plan& plan, int32_t element_size, int32_t acc_size) {
  Args a = {};
  a.items = p.batch * p.queries * p.heads;
  a.queries = p.queries;
  a.rows = p.rows;
  a.heads = int32_t(p.heads);
  a.channels = int32_t(p.channels);
  a.levels = p.levels;
  a.points = p.points;
  a.count = p.levels * p.points;
  a.ref_width = p.ref_width;
  while ((1 << a.lanes_log2) < plan.lanes) ++a.lanes_log2;
  a.level_bytes = level_bytes(acc_size, p.levels);
  a.queries_inner = plan.queries_inner;
  for (int32_t l = 0; l < p.levels; ++l) {
    a.height[l] = int32_t(p.height[l]);
    a.width[l] = int32_t(p.width[l]);
  }
  a.value = static_cast<const char*>(p.value);
  a.value_stride_n = p.value_stride_n * element_size;
  a.value_stride_m = p.value_stride_m * element_size;
  a.value_step = int32_t(p.value_stride_s / plan.vector);
  a.xy = p.xy;
  a.attention = p.attention;
  a.reference = p.reference;
  a.output = p.output;
  a.grad_output = p.grad_output;
  a.grad_value = p.grad_value;
  a.grad_xy = p.grad_xy;
  a.grad_attention = p.grad_attention;
  a.grad_reference = p.grad_reference;
  return a;
}

// Changes the arguments of a backward kernel into those of the deterministic kernel; returns the number of blocks.
inline int64_t make_deterministic(const Problem& p, bool shapes_on_device, Args& a) {
  if (shapes_on_device) {
    a.tiles = p.rows / kTileRows + p.levels;  // at least as many as there can be
  } else {
    a.tiles = 0;
    for (int32_t l = 0; l < p.levels; ++l) a.tiles += (p.height[l] * p.width[l] + kTileRows - 1) / kTileRows;
  }
  a.slabs = (p.channels + kTileChannels - 1) / kTileChannels;
  a.lanes_log2 = 0;
  while ((1 << a.lanes_log2) < p.channels && (1 << a.lanes_log2) < kTileChannels) ++a.lanes_log2;
  const int64_t tasks = p.batch * p.heads * a.slabs * a.tiles;
  return tasks < kMaxBlocks ? tasks : kMaxBlocks;
}

}  // namespace msda
