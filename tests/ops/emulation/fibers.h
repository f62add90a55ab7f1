// Blocks of a GPU on the host: every thread of a block is a coroutine that runs up to its next shuffle or barrier. A
// warp continues when all 32 threads have reached the same operation. Divergence at an operation, or a write beyond the
// shared memory of the launch, is an error. Shared memory is initialized with NaN. The threads of a block run in
// ascending or descending order: results that depend on the order indicate a missing barrier.
#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/launches.h"

namespace emulation {

constexpr size_t kStack = 64 * 1024, kCanary = 256;

enum class State { kReady, kShuffle, kBallot, kWarpBarrier, kBlockBarrier, kDone };

class Block {
 public:
  std::string error;

  Block(int32_t threads, size_t shared, bool falling)
      : contexts_(threads),
        states_(threads),
        sent_(threads),
        received_(threads),
        falling_(falling),
        shared_size_(shared) {
    stacks_.resize(kStack * size_t(threads));
    shared_.resize((shared + kCanary + 63) / 32);
  }

  void run(std::function<void(int32_t)> body) {
    body_ = std::move(body);
    std::memset(shared_.data(), 0xff, shared_.size() * 32);
    for (int32_t i = 0; i < size(); ++i) start(i);
    while (error.empty() && advance()) {
    }
    const char* end = shared() + shared_size_;
    for (size_t i = 0; i < kCanary && error.empty(); ++i) {
      if (end[i] != char(0xff)) error = "wrote beyond shared memory";
    }
  }

  int32_t size() const { return int32_t(contexts_.size()); }
  char* shared() { return shared_.data()->bytes; }
  void wait(int32_t thread, State reason) {
    states_[thread] = reason;
    swapcontext(&contexts_[thread], &main_);
  }
  uint64_t exchange(int32_t thread, State reason, uint64_t word, int32_t partner) {
    sent_[thread] = word;
    wait(thread, reason);
    return received_[partner];
  }
  // Word of any thread of the warp, after an exchange.
  uint64_t received(int32_t thread) const { return received_[thread]; }
  void stop(int32_t thread, const char* reason) {
    error = reason;
    wait(thread, State::kDone);
  }

 private:
  struct alignas(32) Line {
    char bytes[32];
  };

  // Entry point of a coroutine; makecontext() passes integers only.
  static void enter(unsigned low, unsigned high, int thread) {
    auto* self = reinterpret_cast<Block*>(uintptr_t(low) | uintptr_t(high) << 32);
    self->body_(thread);
    self->wait(thread, State::kDone);
  }

  void start(int32_t i) {
    states_[i] = State::kReady;
    getcontext(&contexts_[i]);
    contexts_[i].uc_stack.ss_sp = stacks_.data() + kStack * size_t(i);
    contexts_[i].uc_stack.ss_size = kStack;
    const uintptr_t address = reinterpret_cast<uintptr_t>(this);
    makecontext(&contexts_[i], reinterpret_cast<void (*)()>(&enter), 3, unsigned(address), unsigned(address >> 32), i);
  }

  // Runs every warp to the next block barrier or its end; returns false when all threads are done.
  bool advance() {
    const int32_t warps = size() / 32;
    int32_t done = 0, at_barrier = 0;
    for (int32_t k = 0; k < warps && error.empty(); ++k) {
      const int32_t first = (falling_ ? warps - 1 - k : k) * 32;
      while (error.empty() && run_warp(first)) {
      }
      done += states_[first] == State::kDone;
      at_barrier += states_[first] == State::kBlockBarrier;
    }
    if (!error.empty() || done == warps) return false;
    if (at_barrier != warps) error = "some warps of a block have finished while others wait at a barrier";
    for (State& state : states_) state = State::kReady;
    return true;
  }

  // Runs a warp to its next operation; returns true if that is within the warp, so that the warp can continue.
  bool run_warp(int32_t first) {
    for (int32_t k = 0; k < 32; ++k) {
      const int32_t i = first + (falling_ ? 31 - k : k);
      if (states_[i] == State::kReady) swapcontext(&main_, &contexts_[i]);
      if (!error.empty()) return false;
    }
    const State met = states_[first];
    for (int32_t i = first; i < first + 32; ++i) {
      if (states_[i] != met) error = "the threads of a warp diverge before a shuffle or barrier";
      received_[i] = sent_[i];
    }
    if (met == State::kDone || met == State::kBlockBarrier) return false;
    for (int32_t i = first; i < first + 32; ++i) states_[i] = State::kReady;
    return true;
  }

  std::function<void(int32_t)> body_;
  ucontext_t main_ = {};
  std::vector<ucontext_t> contexts_;
  std::vector<State> states_;
  std::vector<uint64_t> sent_, received_;
  std::vector<char> stacks_;
  std::vector<Line> shared_;
  bool falling_;
  size_t shared_size_;
};

// The Thread type of the kernels.
struct Thread {
  Block* owner;
  int64_t block_index, block_count;
  int32_t thread;

  int64_t block() const { return block_index; }
  int64_t blocks() const { return block_count; }
  int32_t index() const { return thread; }
  int32_t block_size() const { return owner->size(); }
  char* shared() const { return owner->shared(); }
  void sync_warp() const { owner->wait(thread, State::kWarpBarrier); }
  void sync_block() const { owner->wait(thread, State::kBlockBarrier); }
  template <typename A>
  A shuffle_xor(A x, int32_t mask) const {
    uint64_t word = 0;
    std::memcpy(&word, &x, sizeof(A));
    word = owner->exchange(thread, State::kShuffle, word, thread ^ mask);
    std::memcpy(&x, &word, sizeof(A));
    return x;
  }
  uint32_t ballot(bool x) const {
    owner->exchange(thread, State::kBallot, x, thread);
    uint32_t bits = 0;
    for (int32_t i = 0; i < 32; ++i) bits |= uint32_t(owner->received(thread / 32 * 32 + i)) << i;
    return bits;
  }
  template <int kCount, typename A>
  void add(msda::Pack<A, kCount>& pack, A weight, const A (&x)[kCount]) const {
    for (int i = 0; i < kCount; ++i) pack.at[i] += weight * x[i];
  }
  void check_shapes(bool good) const {
    if (!good) owner->stop(thread, "spatial_shapes do not add up to the rows of value");
  }
};

}  // namespace emulation
