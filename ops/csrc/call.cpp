#include "call.h"

#include <string>

namespace msda {
namespace {

std::string shape_of(const Tensor& t) {
  std::string text = "(";
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return text + (t.dim() == 1 ? ",)" : ")");
}

const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return "another type";
  }
}

DType floating_type(const Tensor& t, const char* name) {
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
      fail(name, " must be float32, float64, float16 or bfloat16, got ", name_of(t.scalar_type()));
  }
}

void check_rank(const Tensor& t, int64_t rank, const char* name, const char* layout) {
  if (t.dim() != rank) {
    fail(name, " must have ", rank, " dimensions ", layout, ", got ", t.dim(), ": shape ", shape_of(t));
  }
}

void check_size(const Tensor& t, int64_t dim, int64_t wanted, const char* name, const char* layout) {
  if (t.size(dim) != wanted) {
    fail(name, " must have size ", wanted, " in dimension ", dim, " of ", layout, ", got shape ", shape_of(t));
  }
}

void check_device(const Tensor& t, const Tensor& value, const char* name) {
  if (t.is_cuda() != value.is_cuda() || t.is_cpu() != value.is_cpu() ||
      t.get_device_index() != value.get_device_index()) {
    fail(name, " must be on the device of value");
  }
}

const int64_t* integers_of(const Tensor& t, int64_t rank, const char* name) {
  if (t.scalar_type() != ScalarType::Long) fail(name, " must be int64, got ", name_of(t.scalar_type()));
  if (t.dim() != rank) fail(name, " must have ", rank, " dimension(s), got shape ", shape_of(t));
  return static_cast<const int64_t*>(t.const_data_ptr());
}

int32_t count_levels(const Levels& levels) {
  int64_t count;
  if (levels.tensor.has_value()) {
    integers_of(*levels.tensor, 2, "spatial_shapes");
    if (levels.tensor->size(1) != 2) {
      fail("spatial_shapes must have shape (L, 2), got ", shape_of(*levels.tensor));
    }
    count = levels.tensor->size(0);
  } else {
    if (levels.sizes.size() % 2) fail("spatial_shapes must hold pairs (height, width)");
    count = int64_t(levels.sizes.size()) / 2;
  }
  if (count < 1 || count > kMaxLevels) {
    fail("spatial_shapes must have 1 to ", kMaxLevels, " levels, got ", count);
  }
  return int32_t(count);
}

// Reads sizes on the host and checks them against the rows of value.
void fill_levels(Problem& p, const Levels& levels) {
  const int64_t* sizes = levels.sizes.data();
  Tensor dense;
  if (levels.tensor.has_value()) {
    dense = torch::stable::contiguous(*levels.tensor);
    sizes = integers_of(dense, 2, "spatial_shapes");
  }
  int64_t total = 0;
  for (int32_t l = 0; l < p.levels; ++l) {
    p.height[l] = sizes[2 * l];
    p.width[l] = sizes[2 * l + 1];
    if (p.height[l] < 1 || p.width[l] < 1) {
      fail("spatial_shapes must be positive, got (", p.height[l], ", ", p.width[l], ") for level ", l);
    }
    if (p.height[l] > INT32_MAX / 4 / p.width[l]) {
      fail("spatial_shapes: level ", l, " of (", p.height[l], ", ", p.width[l], ") has too many positions");
    }
    p.start[l] = total;
    total += p.height[l] * p.width[l];
  }
  if (total != p.rows) {
    fail("value must have as many rows (dimension 1) as spatial_shapes has positions, ", total, ", got ", p.rows);
  }
  if (total > INT32_MAX / 4) fail("spatial_shapes: ", total, " positions are too many");
  if (levels.start.has_value() && levels.start->is_cpu()) {
    const Tensor start = torch::stable::contiguous(*levels.start);
    const int64_t* given = integers_of(start, 1, "level_start_index");
    if (start.size(0) != p.levels) {
      fail("level_start_index must have shape (", p.levels, ",), got ", shape_of(start));
    }
    for (int32_t l = 0; l < p.levels; ++l) {
      if (given[l] != p.start[l]) {
        fail("level_start_index must be ", p.start[l], " for level ", l, " by spatial_shapes, got ", given[l]);
      }
    }
  }
}

}  // namespace

Call::Call(Inputs arguments, bool cuda) : inputs(std::move(arguments)) {
  Problem& p = problem;
  const bool fused = inputs.reference.has_value();
  const char* xy_name = fused ? "sampling_offsets" : "sampling_locations";
  const char* attention_name = fused ? "attention_logits" : "attention_weights";
  const char* xy_layout = "(N, Q, M, L, K, 2)";
  const char* attention_layout = "(N, Q, M, L, K)";

  check_rank(inputs.value, 4, "value", "(N, S, M, D)");
  p.batch = inputs.value.size(0);
  p.rows = inputs.value.size(1);
  p.heads = inputs.value.size(2);
  p.channels = inputs.value.size(3);
  if (p.heads < 1 || p.channels < 1) {
    fail("value must have at least one head and one channel, got shape ", shape_of(inputs.value));
  }
  p.levels = count_levels(inputs.levels);

  check_rank(inputs.xy, 6, xy_name, xy_layout);
  p.queries = inputs.xy.size(1);
  check_size(inputs.xy, 0, p.batch, xy_name, xy_layout);
  check_size(inputs.xy, 2, p.heads, xy_name, xy_layout);
  check_size(inputs.xy, 3, p.levels, xy_name, xy_layout);
  check_size(inputs.xy, 5, 2, xy_name, xy_layout);
  if (inputs.xy.size(4) < 1 || inputs.xy.size(4) > INT32_MAX / kMaxLevels) {
    fail(xy_name, " must have at least one point in dimension 4 of ", xy_layout, ", got shape ", shape_of(inputs.xy));
  }
  p.points = int32_t(inputs.xy.size(4));
  check_rank(inputs.attention, 5, attention_name, attention_layout);
  for (int64_t d = 0; d < 5; ++d) check_size(inputs.attention, d, inputs.xy.size(d), attention_name, attention_layout);
  check_device(inputs.xy, inputs.value, xy_name);
  check_device(inputs.attention, inputs.value, attention_name);

  p.value_type = floating_type(inputs.value, "value");
  p.point_type = floating_type(inputs.xy, xy_name);
  const bool wide =
      p.point_type == DType::kFloat32 && (p.value_type == DType::kFloat16 || p.value_type == DType::kBFloat16);
  if (p.point_type != p.value_type && !wide) {
    fail(xy_name, " must be ", name_of(inputs.value.scalar_type()),
         " like value, or float32 beside a 16-bit value, got ", name_of(inputs.xy.scalar_type()));
  }
  if (inputs.attention.scalar_type() != inputs.xy.scalar_type()) {
    fail(attention_name, " must be ", name_of(inputs.xy.scalar_type()), " like ", xy_name, ", got ",
         name_of(inputs.attention.scalar_type()));
  }
  p.source = fused ? PointSource::kOffsets : PointSource::kLocations;
  if (fused) {
    Tensor& reference = *inputs.reference;
    check_rank(reference, 4, "reference_points", "(N, Q, L, 2 or 4)");
    check_size(reference, 0, p.batch, "reference_points", "(N, Q, L, 2 or 4)");
    check_size(reference, 1, p.queries, "reference_points", "(N, Q, L, 2 or 4)");
    check_size(reference, 2, p.levels, "reference_points", "(N, Q, L, 2 or 4)");
    check_device(reference, inputs.value, "reference_points");
    if (reference.size(3) != 2 && reference.size(3) != 4) {
      fail("reference_points must have 2 or 4 values in dimension 3, got shape ", shape_of(reference));
    }
    if (reference.scalar_type() != inputs.xy.scalar_type()) {
      fail("reference_points must be ", name_of(inputs.xy.scalar_type()), " like sampling_offsets, got ",
           name_of(reference.scalar_type()));
    }
    p.ref_width = int32_t(reference.size(3));
    reference = torch::stable::contiguous(reference);
    p.reference = reference.const_data_ptr();
  }

  shapes_on_device = inputs.levels.tensor.has_value() && inputs.levels.tensor->is_cuda();
  if (shapes_on_device) {
    if (!cuda) fail("spatial_shapes must be on the CPU or be integers when value is on the CPU");
  } else {
    fill_levels(p, inputs.levels);
  }

  if (inputs.value.stride(3) != 1 && p.channels > 1) inputs.value = torch::stable::contiguous(inputs.value);
  inputs.xy = torch::stable::contiguous(inputs.xy);
  inputs.attention = torch::stable::contiguous(inputs.attention);
  p.value = inputs.value.const_data_ptr();
  p.value_stride_n = inputs.value.stride(0);
  p.value_stride_s = inputs.value.stride(1);
  p.value_stride_m = inputs.value.stride(2);
  p.xy = inputs.xy.const_data_ptr();
  p.attention = inputs.attention.const_data_ptr();
}

std::vector<int64_t> Call::output_size() const {
  return {problem.batch, problem.queries, problem.heads * problem.channels};
}

Tensor Call::take_grad_output(const Tensor& grad_output) {
  check_rank(grad_output, 3, "grad_output", "(N, Q, M * D)");
  const std::vector<int64_t> wanted = output_size();
  for (int64_t d = 0; d < 3; ++d) check_size(grad_output, d, wanted[d], "grad_output", "(N, Q, M * D)");
  check_device(grad_output, inputs.value, "grad_output");
  if (grad_output.scalar_type() != inputs.value.scalar_type()) {
    fail("grad_output must be ", name_of(inputs.value.scalar_type()), " like value, got ",
         name_of(grad_output.scalar_type()));
  }
  Tensor dense = torch::stable::contiguous(grad_output);
  problem.grad_output = dense.const_data_ptr();
  return dense;
}

}  // namespace msda
