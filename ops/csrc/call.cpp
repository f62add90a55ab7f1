#include "call.h"

#include <string>

namespace msda {
namespace {

constexpr int64_t kMaxRows = INT32_MAX / 4;  // the kernels compute row indices in 32 bits

std::string text_of(const Sizes& sizes) {
  std::string text = "(";
  for (size_t i = 0; i < sizes.size(); ++i) {
    text += (i ? ", " : "") + (sizes[i] < 0 ? std::string("*") : std::to_string(sizes[i]));
  }
  return text + (sizes.size() == 1 ? ",)" : ")");
}

void check_device(const Tensor& t, const char* name, const Tensor& value) {
  if (t.is_cuda() != value.is_cuda() || t.is_cpu() != value.is_cpu() ||
      t.get_device_index() != value.get_device_index()) {
    fail(name, " must be on the device of value");
  }
}

const int64_t* integers_of(const Tensor& t, const char* name) {
  check_type(t, name, ScalarType::Long, "int64");
  return static_cast<const int64_t*>(t.const_data_ptr());
}

}  // namespace

void check_sizes(const Tensor& t, const char* name, const Sizes& wanted) {
  const Sizes sizes = sizes_of(t);
  bool same = sizes.size() == wanted.size();
  for (size_t i = 0; same && i < sizes.size(); ++i) same = wanted[i] < 0 || sizes[i] == wanted[i];
  if (!same) fail(name, " must have shape ", text_of(wanted), ", got ", text_of(sizes));
}

void check_type(const Tensor& t, const char* name, ScalarType wanted, const char* wanted_name) {
  if (t.scalar_type() != wanted) fail(name, " must have the dtype ", wanted_name);
}

DType type_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      fail(name, " must be float32, float64, float16 or bfloat16");
  }
}

int32_t Call::count_levels() const {
  const Levels& levels = inputs.levels;
  int64_t count = int64_t(levels.sizes.size()) / 2;
  if (levels.tensor.has_value()) {
    check_sizes(*levels.tensor, "spatial_shapes", {-1, 2});
    check_type(*levels.tensor, "spatial_shapes", ScalarType::Long, "int64");
    count = levels.tensor->size(0);
  }
  if (count < 1 || count > kMaxLevels || levels.sizes.size() % 2) {
    fail("spatial_shapes must be 1 to ", kMaxLevels, " pairs (height, width)");
  }
  return int32_t(count);
}

// Reads level sizes on the host and checks them against the rows of value.
void Call::fill_levels() {
  Problem& p = problem;
  const int64_t* sizes = inputs.levels.sizes.data();
  Tensor dense;
  if (inputs.levels.tensor.has_value()) {
    dense = torch::stable::contiguous(*inputs.levels.tensor);
    sizes = integers_of(dense, "spatial_shapes");
  }
  int64_t total = 0;
  for (int32_t l = 0; l < p.levels; ++l) {
    p.height[l] = sizes[2 * l];
    p.width[l] = sizes[2 * l + 1];
    if (p.height[l] < 1 || p.width[l] < 1) fail("spatial_shapes must be positive");
    if (p.height[l] > kMaxRows / p.width[l]) fail("spatial_shapes: level ", l, " has too many positions");
    p.start[l] = total;
    total += p.height[l] * p.width[l];
  }
  if (total != p.rows || total > kMaxRows) {
    fail("value must have one row (dimension 1) per position of spatial_shapes, ", total, " and at most ", kMaxRows,
         ", got ", p.rows);
  }
  if (inputs.levels.start.has_value() && inputs.levels.start->is_cpu()) {
    const Tensor start = torch::stable::contiguous(*inputs.levels.start);
    check_sizes(start, "level_start_index", {p.levels});
    const int64_t* given = integers_of(start, "level_start_index");
    for (int32_t l = 0; l < p.levels; ++l) {
      if (given[l] != p.start[l]) fail("level_start_index must be ", p.start[l], " for level ", l);
    }
  }
}

Call::Call(Inputs arguments) : inputs(std::move(arguments)) {
  Problem& p = problem;
  Tensor &value = inputs.value, &xy = inputs.xy, &attention = inputs.attention;
  const bool fused = inputs.reference.has_value();
  const char* xy_name = fused ? "sampling_offsets" : "sampling_locations";
  const char* attention_name = fused ? "attention_logits" : "attention_weights";

  check_sizes(value, "value", {-1, -1, -1, -1});
  p.batch = value.size(0);
  p.rows = value.size(1);
  p.heads = value.size(2);
  p.channels = value.size(3);
  if (p.heads < 1 || p.channels < 1) fail("value must have at least one head and one channel");
  p.levels = count_levels();
  check_sizes(xy, xy_name, {p.batch, -1, p.heads, p.levels, -1, 2});
  p.queries = xy.size(1);
  if (xy.size(4) < 1 || xy.size(4) > INT32_MAX / kMaxLevels) fail(xy_name, " has no points or too many");
  p.points = int32_t(xy.size(4));
  check_sizes(attention, attention_name, {p.batch, p.queries, p.heads, p.levels, p.points});
  check_device(xy, xy_name, value);
  check_device(attention, attention_name, value);

  p.value_type = type_of(value, "value");
  p.point_type = type_of(xy, xy_name);
  const bool wide =
      p.point_type == DType::kFloat32 && (p.value_type == DType::kFloat16 || p.value_type == DType::kBFloat16);
  if (!wide) check_type(xy, xy_name, value.scalar_type(), "of value");
  check_type(attention, attention_name, xy.scalar_type(), "of the points");
  p.source = fused ? PointSource::kOffsets : PointSource::kLocations;
  if (fused) {
    Tensor& reference = *inputs.reference;
    check_sizes(reference, "reference_points", {p.batch, p.queries, p.levels, -1});
    p.ref_width = int32_t(reference.size(3));
    if (p.ref_width != 2 && p.ref_width != 4) fail("reference_points must have 2 or 4 values in dimension 3");
    check_type(reference, "reference_points", xy.scalar_type(), "of the offsets");
    check_device(reference, "reference_points", value);
    reference = torch::stable::contiguous(reference);
    p.reference = reference.const_data_ptr();
  }

  shapes_on_device = inputs.levels.tensor.has_value() && !inputs.levels.tensor->is_cpu();
  if (shapes_on_device) {
    check_device(*inputs.levels.tensor, "spatial_shapes", value);
  } else {
    fill_levels();
  }

  if (value.stride(3) != 1 && p.channels > 1) value = torch::stable::contiguous(value);
  xy = torch::stable::contiguous(xy);
  attention = torch::stable::contiguous(attention);
  p.value = value.const_data_ptr();
  p.value_stride_n = value.stride(0);
  p.value_stride_s = value.stride(1);
  p.value_stride_m = value.stride(2);
  p.xy = xy.const_data_ptr();
  p.attention = attention.const_data_ptr();
}

Sizes Call::output_size() const { return {problem.batch, problem.queries, problem.heads * problem.channels}; }

Tensor Call::add_grad_output(const Tensor& grad_output) {
  check_sizes(grad_output, "grad_output", output_size());
  check_type(grad_output, "grad_output", inputs.value.scalar_type(), "of value");
  check_device(grad_output, "grad_output", inputs.value);
  Tensor dense = torch::stable::contiguous(grad_output);
  problem.grad_output = dense.const_data_ptr();
  return dense;
}

}  // namespace msda
