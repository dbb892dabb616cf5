// What is in the sum of a row beside its keys: nothing, or a logit that has no value.
//
// logit(query, head): natural, of a query in the head that is so many after place.head; -inf if it has none
#pragma once
#include "attention/place.cuh"
#include "numeric.cuh"
#include "ptx/math.cuh"

template <class... Part>
struct SinkOf;

template <>
struct SinkOf<> {
  static constexpr bool kExists = false;

  __device__ SinkOf(const Components& params, const Place& place) {}
  __device__ float logit(int query, int head) const { return -infinity<float>(); }
};

template <class Part>
struct SinkOf<Part> : Part {
  static constexpr bool kExists = true;

  __device__ SinkOf(const Components& params, const Place& place) : Part(params, place) {}
};

// A row whose sum has a sink too.
template <class Accumulator>
struct Joined {
  Accumulator lse;    // natural
  Accumulator share;  // of the keys: what their mean is multiplied by

  // `keys`: the log-sum-exp without it. Both are -inf for a row that has neither.
  __device__ Joined(Accumulator keys, Accumulator logit) {
    const Accumulator larger = max(keys, logit), base = larger == -infinity<Accumulator>() ? Accumulator(0) : larger;
    const Accumulator of_keys = exp(keys - base), sum = of_keys + exp(logit - base);
    lse = base + ptx::lg2(sum) * static_cast<Accumulator>(kLn2);
    share = sum == 0 ? Accumulator(0) : of_keys / sum;
  }

 private:
  __device__ static Accumulator exp(Accumulator x) { return ptx::ex2(x * static_cast<Accumulator>(kLog2E)); }
};
