// Integers of which each batch element has one: tensors [batch..., Hq, 1, 1] with stride 0 over heads.
#pragma once
#include "attention/matrix.cuh"
#include "attention/place.cuh"

// The number of a block's batch element, the same in all its threads; `wide`: numbers have 64 bits, not 32. Nobody has
// seen what the tensor holds, so it is brought within [low, high], and only then narrowed.
__device__ __forceinline__ int number_of(const Tensor& numbers, bool wide, const Place& place, int low, int high) {
  const int64_t at = batch_offset(numbers, place.shape, place.batch);
  const int64_t number =
      wide ? static_cast<const int64_t*>(numbers.data)[at] : static_cast<const int*>(numbers.data)[at];
  return static_cast<int>(number < low ? low : number > high ? high : number);
}

// How many rows of a sequence exist: all where no tensor says.
__device__ __forceinline__ int length_of(const Tensor& lengths, bool wide, const Place& place, int seqlen) {
  return lengths.data == nullptr ? seqlen : number_of(lengths, wide, place, 0, seqlen);
}
