// Matrix instructions on fragments: PTX ISA, "Matrix fragments for mma.m16n8k16 / m16n8k8 with floating point
// type", "ldmatrix" and "stmatrix". A register holds two 16-bit elements, the one of lower index in the lower
// half. For lane l, g = l / 4 and t = l % 4.
#pragma once
#include "../half.h"
#include "arithmetic.h"
#include "collectives.h"

namespace emulator {

struct MmaSlot {
  float* d;
  const uint32_t *a, *b;
  const float* c;
};

// A row of A times B, plus c. Exact arithmetic sums up in float32 and then adds c; of a tensor core's eight products at
// once, the first eight meet c and the next their sum.
template <int kK>
inline void multiply_row(const float (&a)[kK], const float (&b)[kK][8], float (&c)[8]) {
  float sum[8] = {};
  for (int k = 0; k < kK; ++k)
    for (int column = 0; column < 8; ++column) sum[column] += a[k] * b[k][column];
  for (int column = 0; column < 8; ++column) c[column] = sum[column] + c[column];
}

template <int kK>
inline void multiply_row_truncated(const float (&a)[kK], const float (&b)[kK][8], float (&c)[8]) {
  for (int column = 0; column < 8; ++column) {
    for (int k0 = 0; k0 < kK; k0 += 8) {
      double terms[9] = {c[column]};
      for (int k = 0; k < 8; ++k) terms[1 + k] = static_cast<double>(a[k0 + k]) * b[k0 + k][column];
      c[column] = truncated_sum(terms);
    }
  }
}

template <int kK, bool kBf16>
inline void execute_mma(const Meeting& meeting) {
  const auto element = [](uint32_t pair, int half) {
    const uint16_t bits = static_cast<uint16_t>(pair >> 16 * half);
    return kBf16 ? f32_from_bf16(bits) : f32_from_f16(bits);
  };
  float a[16][kK], b[kK][8], d[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaSlot& s = slot<MmaSlot>(meeting, lane);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      for (int i = 0; i < kK / 4; ++i) a[g + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = element(s.a[i], half);
      for (int i = 0; i < kK / 8; ++i) b[2 * t + half + 8 * i][g] = element(s.b[i], half);
    }
    for (int i = 0; i < 4; ++i) d[g + 8 * (i / 2)][2 * t + i % 2] = s.c[i];
  }
  const auto multiply = is_exact() ? multiply_row<kK> : multiply_row_truncated<kK>;
  for (int row = 0; row < 16; ++row) multiply(a[row], b, d[row]);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const MmaSlot& s = slot<MmaSlot>(meeting, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) s.d[i] = d[g + 8 * (i / 2)][2 * t + i % 2];
  }
}

// The whole warp takes part; a partial warp has no matrices.
inline void require_full_warp(Machine& m, const char* operation, Site at) {
  if (m.live_lanes(m.current->thread / kWarpSize) != 0xffffffffu)
    m.fail("divergence", format("%s at {0} in a warp of fewer than 32 threads", operation), at);
}

template <int kK>
inline void mma(const char* name, float* d, const uint32_t* a, const uint32_t* b, const float* c, int half,
                Site at) {
  Machine& m = *machine;
  require_full_warp(m, name, at);
  MmaSlot arguments{d, a, b, c};
  collective(m, name, static_cast<uint32_t>(half), 0xffffffffu, &arguments, at, [&](Meeting& meeting) {
    ++m.counters.mma;
    half == kHalfBf16 ? execute_mma<kK, true>(meeting) : execute_mma<kK, false>(meeting);
  });
}

// `Register` is uint32_t for ldmatrix, const uint32_t for stmatrix.
template <class Register>
struct MatrixSlot {
  Register* r;
  uint32_t address;
};

// The eight rows of a matrix in shared memory, as the lanes 8 * matrix + row give them.
template <class Register>
inline void matrix_rows(Machine& m, const Meeting& meeting, int matrix, const char* operation, Access kind,
                        SiteId site, uint32_t (&rows)[8]) {
  const int first = m.current->thread / kWarpSize * kWarpSize;
  for (int row = 0; row < 8; ++row) {
    const int lane = matrix * 8 + row;
    rows[row] = slot<MatrixSlot<Register>>(meeting, lane).address;
    if (rows[row] % 16)
      m.fail({"misaligned",
              format("%s at {0}: lane %d gives shared+%u, not a multiple of 16", operation, lane, rows[row]),
              {first + lane},
              {site}});
    m.shared_access(*m.fibers[first + lane], rows[row], 16, kind, site);
  }
  if (m.counting) m.bank_conflicts.matrix(rows, site);
}

inline void execute_ldmatrix(Machine& m, const Meeting& meeting, int matrices, bool transposed) {
  const SiteId site = m.named_site(meeting.site);
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint32_t rows[8];
    uint16_t elements[8][8];
    matrix_rows<uint32_t>(m, meeting, matrix, "ldmatrix", Access::kRead, site, rows);
    for (int row = 0; row < 8; ++row) memcpy(elements[row], m.shared + rows[row], 16);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const uint32_t low = transposed ? elements[2 * t][g] : elements[g][2 * t];
      const uint32_t high = transposed ? elements[2 * t + 1][g] : elements[g][2 * t + 1];
      slot<MatrixSlot<uint32_t>>(meeting, lane).r[matrix] = low | high << 16;
    }
  }
}

inline void execute_stmatrix(Machine& m, const Meeting& meeting, int matrices, bool transposed) {
  const SiteId site = m.named_site(meeting.site);
  for (int matrix = 0; matrix < matrices; ++matrix) {
    uint32_t rows[8];
    uint16_t elements[8][8];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const uint32_t pair = slot<MatrixSlot<const uint32_t>>(meeting, lane).r[matrix];
      for (int half = 0; half < 2; ++half) {
        const int g = lane / 4, column = lane % 4 * 2 + half;
        (transposed ? elements[column][g] : elements[g][column]) = static_cast<uint16_t>(pair >> 16 * half);
      }
    }
    matrix_rows<const uint32_t>(m, meeting, matrix, "stmatrix", Access::kWrite, site, rows);
    for (int row = 0; row < 8; ++row) memcpy(m.shared + rows[row], elements[row], 16);
  }
}

}  // namespace emulator

extern "C" {

void emulator_mma_m16n8k16(float* d, const uint32_t* a, const uint32_t* b, const float* c, int half,
                           const char* file, int line) {
  emulator::mma<16>("mma.m16n8k16", d, a, b, c, half, EMULATOR_HERE);
}

void emulator_mma_m16n8k8(float* d, const uint32_t* a, const uint32_t* b, const float* c, int half,
                          const char* file, int line) {
  emulator::mma<8>("mma.m16n8k8", d, a, b, c, half, EMULATOR_HERE);
}

void emulator_ldmatrix(uint32_t* r, int matrices, uint32_t shared_address, int transposed, const char* file,
                       int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::require_full_warp(m, "ldmatrix", EMULATOR_HERE);
  emulator::MatrixSlot<uint32_t> arguments{r, shared_address};
  emulator::collective(m, "ldmatrix", static_cast<uint32_t>(matrices * 2 + transposed), 0xffffffffu,
                       &arguments, EMULATOR_HERE, [&](emulator::Meeting& meeting) {
                         ++m.counters.ldmatrix;
                         emulator::execute_ldmatrix(m, meeting, matrices, transposed);
                       });
}

void emulator_stmatrix(uint32_t shared_address, const uint32_t* r, int matrices, int transposed, const char* file,
                       int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::require_full_warp(m, "stmatrix", EMULATOR_HERE);
  emulator::MatrixSlot<const uint32_t> arguments{r, shared_address};
  emulator::collective(m, "stmatrix", static_cast<uint32_t>(matrices * 2 + transposed), 0xffffffffu,
                       &arguments, EMULATOR_HERE, [&](emulator::Meeting& meeting) {
                         emulator::execute_stmatrix(m, meeting, matrices, transposed);
                       });
}
}
