// How the CUDA kernels divide a call among threads. Plain C++: the emulation in tests compiles it without CUDA.
//
// One item is one (batch, query, head). A group of `lanes` neighbouring threads serves one item; each of its
// threads holds `vector` adjacent channels, 16 bytes where D allows it, and walks over the remaining channels in steps
// of lanes * vector.
#pragma once

#include "../problem.h"

#if defined(__CUDACC__)
#define MSDA_PLAN __host__ __device__ inline
#else
#define MSDA_PLAN inline
#endif

namespace msda {

struct Plan {
  int32_t vector;  // channels per thread and step: 1, 2, 4 or 8
  int32_t lanes;   // threads per item: a power of two up to 32
  int32_t block;   // threads per block
  int64_t items;   // N * Q * M
  int64_t blocks;  // grid size; the kernel strides over the rest
};

struct Place {
  int64_t n, q, m;
  int64_t item;
  int32_t lane;
};

// element_size: bytes of one value. aligned: every row of value starts at a multiple of 16 bytes.
MSDA_PLAN Plan make_plan(const Problem& p, int32_t element_size, bool aligned) {
  Plan plan = {};
  plan.vector = aligned ? 16 / element_size : 1;
  while (plan.vector > 1 && p.channels % plan.vector != 0) plan.vector /= 2;
  const int64_t steps = (p.channels + plan.vector - 1) / plan.vector;
  plan.lanes = 1;
  while (plan.lanes < 32 && plan.lanes < steps) plan.lanes *= 2;
  plan.items = p.batch * p.queries * p.heads;
  // Few items: small blocks, so that every multiprocessor gets one.
  plan.block = plan.items * plan.lanes >= 65536 ? 256 : 64;
  const int64_t per_block = plan.block / plan.lanes;
  plan.blocks = (plan.items + per_block - 1) / per_block;
  if (plan.blocks > 0x7fffffff) plan.blocks = 0x7fffffff;
  return plan;
}

// Item and lane of a thread; `round` counts the grid's strides over the items.
MSDA_PLAN Place place_of(const Problem& p, const Plan& plan, int64_t block_index, int32_t thread, int64_t round) {
  const int32_t per_block = plan.block / plan.lanes;
  Place place;
  place.item = (block_index + round * plan.blocks) * per_block + thread / plan.lanes;
  place.lane = thread % plan.lanes;
  place.m = place.item % p.heads;
  const int64_t nq = place.item / p.heads;
  place.q = nq % p.queries;
  place.n = nq / p.queries;
  return place;
}

}  // namespace msda
