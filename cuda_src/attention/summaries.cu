// The least and the largest of kSummarized neighbours along an axis of an array of ints that a mask's function looks
// up: what attention/block_lists.cu finds the values of a block by.
#include "attention/range.cuh"
#include "numeric.cuh"
#include "params.cuh"
#include "platform.cuh"
#include "specialization.cuh"

// A thread for each chunk of the array's rows along the axis, its last here.
extern "C" __global__ void __launch_bounds__(32) attention_summaries(const __grid_constant__ SummaryParams params) {
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  if (chunk >= params.rows * params.chunks) return;
  int64_t rest = chunk / params.chunks;
  const Out* data = static_cast<const Out*>(params.data);
#pragma unroll
  for (int axis = kSummaryAxes - 1; axis >= 0; --axis) {
    data += rest % params.sizes[axis] * params.strides[axis];
    rest /= params.sizes[axis];
  }
  const int first = static_cast<int>(chunk % params.chunks) * np::kSummarized;
  const int end = min(first + np::kSummarized, params.length);
  Range found{np::infinite(), -np::infinite()};
  for (int i = first; i < end; ++i) {
    const double x = static_cast<double>(data[i * params.stride]);
    found.low = min(found.low, x), found.high = max(found.high, x);
  }
  static_cast<Range*>(params.summary)[chunk] = found;
}
