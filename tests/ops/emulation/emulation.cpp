// The CUDA launches and kernels of ops/csrc/cuda on the host, for tests/ops/test_cuda_emulation.py.
#include <memory>
#include <sstream>

#include "fibers.h"

namespace {

using namespace msda;

class Device {
 public:
  std::string error;
  std::ostringstream log;

  Device(int64_t max_blocks, bool falling) : max_blocks_(max_blocks), falling_(falling) {}

  void* allocate(int64_t bytes) {
    log << "allocate " << bytes << "\n";
    kept_.emplace_back(new char[size_t(bytes) + 32]);
    std::memset(kept_.back().get(), 0xff, size_t(bytes) + 32);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(kept_.back().get()) + 31) / 32 * 32);
  }
  void zero(void* memory, int64_t bytes) { std::memset(memory, 0, size_t(bytes)); }

  template <typename Kernel>
  void launch(const Args& args, int64_t blocks, int32_t threads, int64_t shared) {
    log << Kernel::kName << " " << blocks << " " << threads << " " << shared << "\n";
    if (blocks < 1 || blocks > kMaxBlocks || threads % 32 || threads < 32 || threads > 1024 || shared > kSharedBytes) {
      error = "invalid launch configuration";
    }
    const int64_t count = blocks < max_blocks_ ? blocks : max_blocks_;
    emulation::Block block(threads, size_t(shared), falling_);
    for (int64_t b = 0; b < count && error.empty(); ++b) {
      block.run([&](int32_t i) { Kernel::run(args, emulation::Thread{&block, b, count, i}); });
      error = block.error;
    }
  }

 private:
  int64_t max_blocks_;
  bool falling_;
  std::vector<std::unique_ptr<char[]>> kept_;
};

std::string report;

}  // namespace

extern "C" {

size_t problem_size() { return sizeof(Problem); }

struct Settings {
  const int64_t* shapes;  // as if in device memory; null: those of the problem
  int64_t max_blocks;     // fewer blocks than planned stride over the items
  int32_t backward, deterministic, falling;
};

// Returns true, with a log of the launches in last_report(), or false, with an error.
bool emulate(const Problem* p, const Settings* settings) {
  Device device(settings->max_blocks, settings->falling);
  const Options options = {settings->shapes, settings->deterministic != 0};
  const bool backward = settings->backward != 0;
  if (p->value_type == DType::kFloat32) run_typed<float>(*p, options, backward, device);
  if (p->value_type == DType::kFloat64) run_typed<double>(*p, options, backward, device);
  if (p->value_type == DType::kFloat16) run_typed<Half>(*p, options, backward, device);
  if (p->value_type == DType::kBFloat16) run_typed<BFloat16>(*p, options, backward, device);
  report = device.error.empty() ? device.log.str() : device.error;
  return device.error.empty();
}

const char* last_report() { return report.c_str(); }

// vector, lanes, block, queries_inner, stash_in_shared, blocks
void plan_of(const Problem* p, int32_t element_size, int32_t point_size, int32_t aligned, int32_t backward,
             int64_t* out) {
  const int32_t acc_size = element_size == 8 ? 8 : 4;
  const bool fused = p->source == PointSource::kOffsets;
  const SharedNeed need = backward ? backward_need(acc_size, fused) : forward_need(acc_size);
  const Plan plan = make_plan(*p, element_size, point_size, aligned != 0, need);
  const int64_t values[] = {plan.vector, plan.lanes, plan.block, plan.queries_inner, plan.stash_in_shared, plan.blocks};
  std::memcpy(out, values, sizeof(values));
}
}
