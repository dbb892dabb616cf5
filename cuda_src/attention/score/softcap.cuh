// score = cap * tanh(score / cap). What goes out lacks the cap, which is its unit; its derivative is 1 - tanh^2.
#pragma once
#include "attention/place.cuh"
#include "attention/score/uniform.cuh"
#include "numeric.cuh"
#include "ptx/math.cuh"

struct SoftcapParams {
  double cap;
};

template <class Accumulator>
struct Softcap {
  template <class Columns>
  using Row = UniformRow<Softcap>;

  // Numbers may be divided by as much as this, and multiplied by it.
  static constexpr Accumulator kLargest = sizeof(Accumulator) == 4 ? 0x1p126 : 0x1p1022;
  Accumulator cap_log2, shrink;

  __device__ Softcap(const SoftcapParams& params, const Place& place, Accumulator unit)
      : cap_log2(min(static_cast<Accumulator>(params.cap) * static_cast<Accumulator>(kLog2E), unit * kLargest)),
        shrink(min(unit / cap_log2, kLargest)) {}

  __device__ Accumulator unit() const { return cap_log2; }

  // For half types an instruction, wrong by 2^-11: as in other kernels, speed is worth that to most.
  __device__ Accumulator forward(Accumulator x) const {
    if constexpr (sizeof(Element) == 2) {
      return ptx::tanh_approx(x * shrink);
    } else {
      return tanh(x * shrink);
    }
  }

  __device__ Accumulator backward(Accumulator dy, Accumulator x) const {
    const Accumulator y = forward(x);
    return dy * fma(-y, y, Accumulator(1));
  }
};
