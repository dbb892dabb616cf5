// Tensor-core fragments: products of 16 x 16 pieces, and which lane owns what.
//
// An accumulator of a warp is float acc[kRows][kCols] a lane, two rows and two columns for each 16 x 8 piece; with
// lane = 4 g + t it holds the element at
//   row_of(i) = 16 (i / 2) + 8 (i % 2) + g,   col_of(j) = 16 (j / 4) + 8 (j % 4 / 2) + 2 t + j % 2
// of the warp's part. The four lanes of a quad share a row. Where kAcross warps share the rows, they take 16-column
// pieces in turn: col_of<kAcross>(j, warp).
#pragma once
#include "mma/tile.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"
#include "ptx/shared.cuh"

constexpr int kQuad = 4;
constexpr int kPiece = 16;  // rows and columns of an operand's piece

__device__ __forceinline__ int row_of(int i) { return i / 2 * kPiece + i % 2 * 8 + threadIdx.x % 32 / kQuad; }
template <int kAcross = 1>
__device__ __forceinline__ int col_of(int j, int warp = 0) {
  return (j / 4 * kAcross + warp) * kPiece + j % 4 / 2 * 8 + threadIdx.x % kQuad * 2 + j % 2;
}

template <int kRows, int kCols>
__device__ __forceinline__ void set_zero(float (&acc)[kRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; ++j) acc[i][j] = 0;
  }
}

// The four 8 x 8 matrices of a 16 x 16 piece in the order in which ldmatrix.x4 returns them. With each, what a
// piece of a tile yields:
//   kRowsFirst (0,0) (8,0) (0,8) (8,8)   plain: A = piece;    transposed: two pieces of B, B[k][n] = piece[k][n]
//   kColsFirst (0,0) (0,8) (8,0) (8,8)   transposed: A = piece^T;  plain: two pieces of B, B[k][n] = piece[n][k]
enum PieceOrder { kRowsFirst, kColsFirst };

// The address that this lane gives to ldmatrix for the pieces of a tile. Pieces start at multiples of 16, rows and
// columns known at compile time: the swizzle then costs one xor for each, shared by all rows.
template <class TileT, PieceOrder kOrder>
struct Pieces {
  uint32_t base;
  int shift = 0;  // bytes; a constant

  // Pieces counted from (row0, col0) of the tile, multiples of 16. The columns asked for later may not carry into
  // those of col0: in each group, adding them is an xor.
  __device__ explicit Pieces(TileT& tile, int row0 = 0, int col0 = 0) {
    const int lane = threadIdx.x % 32, low = lane % 16, high = lane / 16 * 8;
    const int row = kOrder == kRowsFirst ? low : low % 8 + high;
    const int col = kOrder == kRowsFirst ? high : low / 8 * 8;
    base = ptx::shared_address(tile.at(row0 + row, col0 + col));
  }

  // The same pieces of a tile that lies at a constant distance from that of `others`. Where it has the same columns,
  // the addresses are those of the others and a constant, and need no registers.
  template <class Other>
  __device__ Pieces(TileT& tile, int row0, int col0, const Pieces<Other, kOrder>& others, const Other& other)
      : Pieces(tile, row0, col0) {
    if (TileT::kCols == Other::kCols) {
      base = others.base;
      shift = static_cast<int>(reinterpret_cast<const char*>(&tile) - reinterpret_cast<const char*>(&other));
    }
  }

  __device__ uint32_t at(int row, int col) const {
    constexpr int kGroup = TileT::kGroup;
    const uint32_t within = col % kGroup * sizeof(Element), group = col / kGroup * kGroup * sizeof(Element);
    return (base ^ within) + group + row * (TileT::kCols * sizeof(Element)) + shift;
  }

  // A fragment of the piece at (row, col), or of its transpose.
  __device__ void load_a(uint32_t (&a)[4], int row, int col) const {
    if (kOrder == kRowsFirst) {
      ptx::ldmatrix_x4(a, at(row, col));
    } else {
      ptx::ldmatrix_x4_trans(a, at(row, col));
    }
  }

  // B fragments of 16 columns n: b[0..1] of the first eight, b[2..3] of the others.
  __device__ void load_b(uint32_t (&b)[4], int row, int col) const {
    if (kOrder == kRowsFirst) {
      ptx::ldmatrix_x4_trans(b, at(row, col));
    } else {
      ptx::ldmatrix_x4(b, at(row, col));
    }
  }
};

// Whether adding columns below kPart to a multiple of kPart carries in no group, nor does adding multiples of kPart to
// columns below it.
template <class TileT, int kPart>
constexpr bool kNoCarry = kPart % TileT::kGroup == 0 || TileT::kGroup % kPart == 0;

__device__ __forceinline__ uint32_t pack(float lo, float hi, Float16) { return ptx::f16x2_from_f32(lo, hi); }
__device__ __forceinline__ uint32_t pack(float lo, float hi, BFloat16) { return ptx::bf16x2_from_f32(lo, hi); }

__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Float16) {
  if (kMmaDepth == 16) {
    ptx::mma_m16n8k16_f16(d, a, b, d);
  } else {  // Turing's instruction has half the depth
    const uint32_t a_low[2] = {a[0], a[1]}, a_high[2] = {a[2], a[3]}, b_low[1] = {b[0]}, b_high[1] = {b[1]};
    ptx::mma_m16n8k8_f16(d, a_low, b_low, d);
    ptx::mma_m16n8k8_f16(d, a_high, b_high, d);
  }
}
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], BFloat16) {
  ptx::mma_m16n8k16_bf16(d, a, b, d);
}

// acc += A B for the piece of acc at rows 2 i.., columns 4 j..: 16 x 16 outputs, depth 16.
template <int kRows, int kCols>
__device__ __forceinline__ void mma_piece(float (&acc)[kRows][kCols], int i, int j, const uint32_t (&a)[4],
                                          const uint32_t (&b)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = 2 * i, col = 4 * j + 2 * half;
    const uint32_t b_half[2] = {b[2 * half], b[2 * half + 1]};
    float d[4] = {acc[row][col], acc[row][col + 1], acc[row + 1][col], acc[row + 1][col + 1]};
    mma_16x8x16(d, a, b_half, Element());
    acc[row][col] = d[0];
    acc[row][col + 1] = d[1];
    acc[row + 1][col] = d[2];
    acc[row + 1][col + 1] = d[3];
  }
}

// acc += A B with both operands in shared memory, depth kDepth. A runs over pieces (i, k), or (k, i) where the tile
// holds its transpose; B over (k, j), or (j, k), every kAcross-th piece j.
template <int kDepth, int kAcross = 1, int kRows, int kCols, class TileA, PieceOrder kOrderA, class TileB,
          PieceOrder kOrderB>
__device__ __forceinline__ void matmul(float (&acc)[kRows][kCols], const Pieces<TileA, kOrderA>& sA,
                                       const Pieces<TileB, kOrderB>& sB) {
#pragma unroll
  for (int k = 0; k < kDepth; k += kPiece) {
    uint32_t a[kRows / 2][4];
#pragma unroll
    for (int i = 0; i < kRows / 2; ++i) {
      const int row = i * kPiece;
      sA.load_a(a[i], kOrderA == kRowsFirst ? row : k, kOrderA == kRowsFirst ? k : row);
    }
#pragma unroll
    for (int j = 0; j < kCols / 4; ++j) {
      const int col = j * kAcross * kPiece;
      uint32_t b[4];
      sB.load_b(b, kOrderB == kRowsFirst ? k : col, kOrderB == kRowsFirst ? col : k);
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) mma_piece(acc, i, j, a[i], b);
    }
  }
}

// P, an accumulator, rounded to the storage type as operand A of products: half as many registers.
template <int kRows, int kDepth>
struct PackedOperand {
  uint32_t a[kDepth / 4][kRows / 2][4];

  __device__ __forceinline__ explicit PackedOperand(const float (&p)[kRows][kDepth]) {
#pragma unroll
    for (int k = 0; k < kDepth / 4; ++k) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) {
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          const int row = 2 * i + r % 2, col = 4 * k + r / 2 * 2;
          a[k][i][r] = pack(p[row][col], p[row][col + 1], Element());
        }
      }
    }
  }
};

// acc += P B.
template <int kRows, int kCols, int kDepth, class TileB>
__device__ __forceinline__ void matmul(float (&acc)[kRows][kCols], const PackedOperand<kRows, kDepth>& p,
                                       const Pieces<TileB, kRowsFirst>& sB) {
#pragma unroll
  for (int k = 0; k < kDepth / 4; ++k) {
#pragma unroll
    for (int j = 0; j < kCols / 4; ++j) {
      uint32_t b[4];
      sB.load_b(b, k * kPiece, j * kPiece);
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) mma_piece(acc, i, j, p.a[k][i], b);
    }
  }
}

// An accumulator as it is to global memory: rows from row0, of contiguous columns.
template <int kRows, int kCols, class Destination>
__device__ __forceinline__ void store_unrounded(const Destination& g, int row0, const float (&acc)[kRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = row0 + row_of(i);
    if (row >= g.rows) continue;
    float* dst = g.vector_at(row, 0);
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      if (g.holds(row, col_of(j))) dst[col_of(j)] = acc[i][j];
    }
  }
}

// Round an accumulator to the storage type into a tile: rows from row0, columns of warp `across` of kAcross.
template <int kAcross, int kRows, int kCols, class TileT>
__device__ __forceinline__ void store_fragment(TileT& tile, int row0, int across, const float (&acc)[kRows][kCols]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kCols; j += 2) {
      const ptx::Vec<uint32_t, 1> pair = {{pack(acc[i][j], acc[i][j + 1], Element())}};
      ptx::store_shared(reinterpret_cast<uint32_t*>(tile.at(row0 + row_of(i), col_of<kAcross>(j, across))), pair);
    }
  }
}
