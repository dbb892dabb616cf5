// Backward of one block of keys and one of queries, by recomputation (FlashAttention-2, arXiv:2307.08691, Algorithm 2):
//   P = exp2(score(S) - lse);  delta = rowsum(dO * O) - dlse;  dS = score'(P * (dO V^T - delta))
//   dV += P^T dO;  dK += dS^T Q;  dQ = dS K
// As in the forward, S^T and dS^T have queries in the lanes. K, V, dK and dV stay in scratch while the blocks of
// queries pass by.
#pragma once
#include "cpu/forward.h"

template <class T>
struct BackwardScratch {
  int64_t pitch, pitch_v, columns;
  T *k, *v, *dk, *dv;                            // of the block of keys, rows
  T *q, *dout, *out;                             // of the block of queries, rows
  T *q_panels, *dout_panels, *dq, *lse, *delta;  // panels
  T *p, *ds;                                     // [kKeyTile][columns]

  BackwardScratch(void* memory, const Shape& shape, int64_t keys, int64_t queries) {
    Scratch scratch(memory);
    take(scratch, shape, keys, queries);
  }

  BackwardScratch(Scratch& scratch, const Shape& shape, int64_t keys, int64_t queries) {
    take(scratch, shape, keys, queries);
  }

 private:
  void take(Scratch& scratch, const Shape& shape, int64_t keys, int64_t queries) {
    pitch = whole_vectors<T>(shape.head_dim), pitch_v = whole_vectors<T>(shape.head_dim_v);
    columns = whole_panels<T>(queries);
    k = scratch.take<T>(keys * pitch);
    dk = scratch.take<T>(keys * pitch);
    v = scratch.take<T>(keys * pitch_v);
    dv = scratch.take<T>(keys * pitch_v);
    q = scratch.take<T>(queries * pitch);
    dout = scratch.take<T>(queries * pitch_v);
    out = scratch.take<T>(pitch_v);
    q_panels = scratch.take<T>(columns * shape.head_dim);
    dout_panels = scratch.take<T>(columns * shape.head_dim_v);
    dq = scratch.take<T>(columns * shape.head_dim);
    lse = scratch.take<T>(columns);
    delta = scratch.take<T>(columns);
    p = scratch.take<T>(kKeyTile * columns);
    ds = scratch.take<T>(kKeyTile * columns);
  }
};

// The heads' pointers of one step.
struct BackwardHead {
  const char *dout, *q, *out, *lse, *dlse;
};

template <class T>
T statistic(const char* x, int64_t stride, int64_t i) {
  T value;
  __builtin_memcpy(&value, x + i * stride, sizeof value);
  return value;
}

// Q and dO as rows and as panels, lse in log2 units, delta.
template <class T>
void load_queries(const Shape& shape, const BackwardHead& head, int64_t i0, int64_t queries,
                  const BackwardScratch<T>& x) {
  load_rows(shape.dtype, x.q, x.pitch, head.q + i0 * shape.q.row, shape.q, queries, shape.head_dim);
  load_rows(shape.dtype, x.dout, x.pitch_v, head.dout + i0 * shape.dout.row, shape.dout, queries, shape.head_dim_v);
  transpose(x.q_panels, x.q, x.pitch, queries, shape.head_dim);
  transpose(x.dout_panels, x.dout, x.pitch_v, queries, shape.head_dim_v);
  for (int64_t i = 0; i < x.columns; ++i) {
    // +inf makes p = 0: for a row without finite score, and past the last row.
    T lse = -kInfinity<T>, delta = 0;
    if (i < queries) {
      lse = statistic<T>(head.lse, shape.lse, i0 + i);
      load_row(shape.dtype, x.out, head.out + (i0 + i) * shape.out.row, shape.out.col, shape.head_dim_v);
      Vector<T> sum = {};
      for (int64_t c = 0; c < x.pitch_v; c += kLanes<T>) sum += load(x.out + c) * load(x.dout + i * x.pitch_v + c);
      for (int n = 0; n < kLanes<T>; ++n) delta += sum[n];
      if (head.dlse) delta -= statistic<T>(head.dlse, shape.dlse, i0 + i);
    }
    x.lse[i] = lse == -kInfinity<T> ? kInfinity<T> : T(double(lse) * kLog2E);
    x.delta[i] = delta;
  }
}

// P of a panel; row0 is its first query, s its first column.
template <class T>
__attribute__((noinline)) void panel_p(const CausalMask& mask, const ScaledScore<T>& score, int64_t row0, int64_t col0,
                                       int64_t keys, int64_t depth, Operand<T> k, const T* q, const T* lse, T* p,
                                       int64_t pitch) {
  const bool cut = !mask.covers(row0, col0, keys);
  multiply<T, kVectors>(keys, depth, k, q, kPanel<T>, [&](auto& sum, int64_t r) ALWAYS_INLINE {
    constexpr int kM = sizeof(sum) / sizeof(sum[0]);
    UNROLL
    for (int m = 0; m < kM; ++m) {
      UNROLL
      for (int n = 0; n < kVectors; ++n) {
        const int64_t row = row0 + n * kLanes<T>, col = col0 + r + m;
        const Vector<T> x = score.forward(sum[m][n], row, col) - load(lse + n * kLanes<T>);
        const Vector<T> top = splat(T(Exp2<T>::kBias + 1));  // a foreign lse may overflow exp2
        Vector<T> y = exp2<T>(x > top ? top : x);
        if (cut) y = mask.lanes_see<T>(row, col) ? y : Vector<T>{};
        store(p + (r + m) * pitch + n * kLanes<T>, y);
      }
    }
  });
}

template <class T>
__attribute__((noinline)) void panel_ds(const CausalMask& mask, const ScaledScore<T>& score, int64_t row0,
                                        int64_t col0, int64_t keys, int64_t depth, Operand<T> v, const T* dout,
                                        const T* delta, const T* p, T* ds, int64_t pitch) {
  const bool cut = !mask.covers(row0, col0, keys);
  multiply<T, kVectors>(keys, depth, v, dout, kPanel<T>, [&](auto& sum, int64_t r) ALWAYS_INLINE {
    constexpr int kM = sizeof(sum) / sizeof(sum[0]);
    UNROLL
    for (int m = 0; m < kM; ++m) {
      UNROLL
      for (int n = 0; n < kVectors; ++n) {
        const int64_t row = row0 + n * kLanes<T>, col = col0 + r + m;
        const int64_t at = (r + m) * pitch + n * kLanes<T>;
        Vector<T> x = load(p + at) * (sum[m][n] - load(delta + n * kLanes<T>));
        x = score.backward(x, row, col);
        if (cut) x = mask.lanes_see<T>(row, col) ? x : Vector<T>{};  // p = 0 hides no inf or nan
        store(ds + at, x);
      }
    }
  });
}

// One tile of the keys in scratch, rows u on and keys j0 on, against the block of queries.
template <class T>
void backward_tile(const Shape& shape, int64_t u, int64_t j0, int64_t keys, int64_t i0, int64_t queries,
                   const BackwardScratch<T>& x) {
  const CausalMask mask(shape);
  const ScaledScore<T> score(shape);
  const int64_t d = shape.head_dim, dv = shape.head_dim_v, columns = x.columns;
  const T *k = x.k + u * x.pitch, *v = x.v + u * x.pitch_v;
  T *dk = x.dk + u * x.pitch, *dvalue = x.dv + u * x.pitch_v;
  const int64_t first = clamp(mask.query_begin(j0) - i0, 0, queries) / kPanel<T> * kPanel<T>;
  const bool cut = !mask.covers(i0 + first, j0, keys);
  const bool finite_k = !cut || all_finite(k, keys * x.pitch);

  for (int64_t i = first; i < queries; i += kPanel<T>) {
    const int64_t rows = clamp(queries - i, 0, kPanel<T>), row0 = i0 + i;
    const int64_t seen = clamp(mask.key_end(row0 + rows - 1) - j0, 0, keys);
    panel_p<T>(mask, score, row0, j0, seen, d, {k, x.pitch, 1}, x.q_panels + i * d, x.lse + i, x.p + i, columns);
    panel_ds<T>(mask, score, row0, j0, seen, dv, {v, x.pitch_v, 1}, x.dout_panels + i * dv, x.delta + i, x.p + i,
                x.ds + i, columns);
    for (int64_t j = seen; j < keys; ++j) {
      __builtin_memset(x.p + j * columns + i, 0, kPanel<T> * sizeof(T));
      __builtin_memset(x.ds + j * columns + i, 0, kPanel<T> * sizeof(T));
    }
    T* dq = x.dq + i * d;
    if (finite_k || mask.covers(row0, j0, seen)) {
      accumulate<T, kVectors>(d, seen, {k, 1, x.pitch}, x.ds + i, columns, dq, kPanel<T>);
    } else {
      accumulate_seen<T>(mask, row0, rows, j0, seen, x.ds + i, columns, {k, 0, x.pitch, 1}, {dq, 1, 0, kPanel<T>}, d);
    }
  }

  const int64_t depth = queries - first, i = i0 + first;
  const T *q = x.q + first * x.pitch, *dout = x.dout + first * x.pitch_v;
  if (!cut || all_finite(dout, depth * x.pitch_v)) {
    accumulate_wide<T>(keys, depth, {x.p + first, columns, 1}, dout, dvalue, x.pitch_v);
  } else {
    accumulate_seen<T>(mask, i, depth, j0, keys, x.p + first, columns, {dout, x.pitch_v, 0, 1},
                       {dvalue, 0, x.pitch_v, 1}, dv);
  }
  if (!cut || all_finite(q, depth * x.pitch)) {
    accumulate_wide<T>(keys, depth, {x.ds + first, columns, 1}, q, dk, x.pitch);
  } else {
    accumulate_seen<T>(mask, i, depth, j0, keys, x.ds + first, columns, {q, x.pitch, 0, 1}, {dk, 0, x.pitch, 1}, d);
  }
}

template <class T>
void load_keys(const Shape& shape, const char* k, const char* v, int64_t j0, int64_t keys,
               const BackwardScratch<T>& x) {
  load_rows(shape.dtype, x.k, x.pitch, k + j0 * shape.k.row, shape.k, keys, shape.head_dim);
  load_rows(shape.dtype, x.v, x.pitch_v, v + j0 * shape.v.row, shape.v, keys, shape.head_dim_v);
  __builtin_memset(x.dk, 0, keys * x.pitch * sizeof(T));
  __builtin_memset(x.dv, 0, keys * x.pitch_v * sizeof(T));
}

// dk and dv are contiguous.
template <class T>
void store_keys(const Shape& shape, char* dk, char* dv, int64_t j0, int64_t keys, const BackwardScratch<T>& x) {
  const int64_t bytes = shape.dtype == kFloat64 ? 8 : shape.dtype == kFloat32 ? 4 : 2;
  const Strides k = {shape.head_dim * bytes, bytes}, v = {shape.head_dim_v * bytes, bytes};
  store_rows(shape.dtype, dk + j0 * k.row, k, x.dk, x.pitch, keys, shape.head_dim);
  store_rows(shape.dtype, dv + j0 * v.row, v, x.dv, x.pitch_v, keys, shape.head_dim_v);
}

// The part of dQ that comes from this block of keys stays in scratch, for add_dq.
template <class T>
void backward_block(const Shape& shape, const BackwardHead& head, int64_t j0, int64_t keys, int64_t i0,
                    int64_t queries, const BackwardScratch<T>& x) {
  load_queries(shape, head, i0, queries, x);
  __builtin_memset(x.dq, 0, x.columns * shape.head_dim * sizeof(T));
  const int64_t end = clamp(CausalMask(shape).key_end(i0 + queries - 1) - j0, 0, keys);
  for (int64_t u = 0; u < end; u += kKeyTile) {
    backward_tile(shape, u, j0 + u, clamp(end - u, 0, kKeyTile), i0, queries, x);
  }
}

// dq is contiguous.
template <class T>
void add_dq(const Shape& shape, T* dq, int64_t i0, int64_t queries, const BackwardScratch<T>& x) {
  const int64_t d = shape.head_dim;
  for (int64_t i = 0; i < queries; ++i) {
    const T* part = x.dq + i / kPanel<T> * kPanel<T> * d + i % kPanel<T>;
    for (int64_t c = 0; c < d; ++c) dq[(i0 + i) * d + c] += part[c * kPanel<T>];
  }
}
