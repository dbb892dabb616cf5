// Forward of one block of queries: for each tile of keys
//   S^T = K Q^T;  P = exp2(score(S) - m);  l += rowsum(P);  O^T += V^T P^T
// and at the end O / l and lse = m + log l (FlashAttention-2, arXiv:2307.08691, Algorithm 1). Queries lie side by side
// in the lanes of vectors: statistics of rows are vectors, and K and V are read as they are.
#pragma once
#include "cpu/convert.h"
#include "cpu/mask.h"
#include "cpu/product.h"
#include "cpu/scratch.h"
#include "cpu/score.h"

constexpr int64_t kKeyTile = 64 / kRows * kRows;  // whole register tiles; K and V of it fit L1 at d = 64
// m follows the largest score only when that has passed it by so much: p stays under 2^8, and rescaling is rare.
constexpr double kSlack = 8;

template <class T>
struct ForwardScratch {
  T *rows, *q, *o, *m, *l, *k, *v, *p;

  ForwardScratch(Scratch& scratch, const Shape& shape, int64_t queries) {
    const int64_t d = whole_vectors<T>(shape.head_dim), dv = whole_vectors<T>(shape.head_dim_v);
    const int64_t columns = whole_panels<T>(queries);
    rows = scratch.take<T>(queries * (d > dv ? d : dv));
    q = scratch.take<T>(columns * shape.head_dim);
    o = scratch.take<T>(columns * shape.head_dim_v);
    m = scratch.take<T>(columns);
    l = scratch.take<T>(columns);
    k = scratch.take<T>(kKeyTile * d);
    v = scratch.take<T>(kKeyTile * dv);
    p = scratch.take<T>(kKeyTile * kPanel<T>);
  }
};

// Scores of a panel of queries from row0 on and keys from col0 on, -inf where hidden, and their largest.
template <class T>
__attribute__((noinline)) void panel_scores(const CausalMask& mask, const ScaledScore<T>& score, int64_t row0,
                                            int64_t col0, int64_t keys, int64_t depth, Operand<T> k, const T* q,
                                            T* s, Vector<T> (&largest)[kVectors]) {
  const bool cut = !mask.covers(row0, col0, keys);
  Vector<T> top[kVectors];
  for (auto& x : top) x = splat(-kInfinity<T>);
  multiply<T, kVectors>(keys, depth, k, q, kPanel<T>, [&](auto& sum, int64_t r) ALWAYS_INLINE {
    constexpr int kM = sizeof(sum) / sizeof(sum[0]);
    UNROLL
    for (int m = 0; m < kM; ++m) {
      UNROLL
      for (int n = 0; n < kVectors; ++n) {
        const int64_t row = row0 + n * kLanes<T>, col = col0 + r + m;
        Vector<T> x = score.forward(sum[m][n], row, col);
        if (cut) x = mask.lanes_see<T>(row, col) ? x : splat(-kInfinity<T>);
        top[n] = max_of(top[n], x);
        store(s + (r + m) * kPanel<T> + n * kLanes<T>, x);
      }
    }
  });
  for (int n = 0; n < kVectors; ++n) largest[n] = top[n];
}

// Scores become p = exp2(s - m) and their sums join l. Where m has to follow, l and o are scaled to the new m.
template <class T>
__attribute__((noinline)) void panel_softmax(int64_t keys, T* s, const Vector<T> (&largest)[kVectors], T* m, T* l,
                                             T* o, int64_t width) {
  constexpr int kStep = kLanes<T>;
  Vector<T> base[kVectors], sum[kVectors];
  Mask<T> passed = {};
  UNROLL
  for (int n = 0; n < kVectors; ++n) passed |= largest[n] > load(m + n * kStep) + T(kSlack);
  const bool follow = any(passed);
  UNROLL
  for (int n = 0; n < kVectors; ++n) {
    const Vector<T> old = load(m + n * kStep);
    const Vector<T> now = largest[n] > old + T(kSlack) ? largest[n] : old;
    // A row whose scores so far are all -inf: less 0 they give p = 0, less -inf they would give nan.
    base[n] = now == splat(-kInfinity<T>) ? Vector<T>{} : now;
    sum[n] = Vector<T>{};
    if (!follow) continue;
    const Vector<T> factor = exp2<T>(old - base[n]);
    store(m + n * kStep, now);
    store(l + n * kStep, load(l + n * kStep) * factor);
    for (int64_t c = 0; c < width; ++c) {
      T* x = o + c * kPanel<T> + n * kStep;
      store(x, load(x) * factor);
    }
  }
  for (int64_t j = 0; j < keys; ++j) {
    UNROLL
    for (int n = 0; n < kVectors; ++n) {
      T* x = s + j * kPanel<T> + n * kStep;
      const Vector<T> p = exp2<T>(load(x) - base[n]);
      sum[n] += p;
      store(x, p);
    }
  }
  UNROLL
  for (int n = 0; n < kVectors; ++n) store(l + n * kStep, load(l + n * kStep) + sum[n]);
}

template <class T>
void forward_block(const Shape& shape, const char* q, const char* k, const char* v, char* out, char* lse, int64_t i0,
                   int64_t queries, void* memory) {
  const CausalMask mask(shape);
  const ScaledScore<T> score(shape);
  const int64_t d = shape.head_dim, dv = shape.head_dim_v;
  const int64_t pitch = whole_vectors<T>(d), pitch_v = whole_vectors<T>(dv), columns = whole_panels<T>(queries);
  Scratch scratch(memory);
  const ForwardScratch<T> x(scratch, shape, queries);

  load_rows(shape.dtype, x.rows, pitch, q + i0 * shape.q.row, shape.q, queries, d);
  transpose(x.q, x.rows, pitch, queries, d);
  __builtin_memset(x.o, 0, columns * dv * sizeof(T));
  __builtin_memset(x.l, 0, columns * sizeof(T));
  for (int64_t i = 0; i < columns; ++i) x.m[i] = -kInfinity<T>;

  const int64_t end = mask.key_end(i0 + queries - 1);
  for (int64_t j0 = 0; j0 < end; j0 += kKeyTile) {
    const int64_t keys = clamp(end - j0, 0, kKeyTile);
    load_rows(shape.dtype, x.k, pitch, k + j0 * shape.k.row, shape.k, keys, d);
    load_rows(shape.dtype, x.v, pitch_v, v + j0 * shape.v.row, shape.v, keys, dv);
    const bool finite = mask.covers(i0, j0, keys) || all_finite(x.v, keys * pitch_v);
    for (int64_t i = 0; i < queries; i += kPanel<T>) {
      const int64_t rows = clamp(queries - i, 0, kPanel<T>);
      const int64_t seen = clamp(mask.key_end(i0 + i + rows - 1) - j0, 0, keys);
      if (seen == 0) continue;
      Vector<T> largest[kVectors];
      T* o = x.o + i * dv;
      panel_scores<T>(mask, score, i0 + i, j0, seen, d, {x.k, pitch, 1}, x.q + i * d, x.p, largest);
      panel_softmax<T>(seen, x.p, largest, x.m + i, x.l + i, o, dv);
      if (finite || mask.covers(i0 + i, j0, seen)) {
        accumulate<T, kVectors>(dv, seen, {x.v, 1, pitch_v}, x.p, kPanel<T>, o, kPanel<T>);
      } else {
        accumulate_seen<T>(mask, i0 + i, rows, j0, seen, x.p, kPanel<T>, {x.v, 0, pitch_v, 1}, {o, 1, 0, kPanel<T>},
                           dv);
      }
    }
  }

  for (int64_t i = 0; i < queries; ++i) {
    const T* o = x.o + i / kPanel<T> * kPanel<T> * dv + i % kPanel<T>;
    const T l = x.l[i];
    const T inverse = l == 0 ? T(0) : 1 / l;
    for (int64_t c = 0; c < dv; ++c) x.rows[c] = o[c * kPanel<T>] * inverse;
    store_row(shape.dtype, out + (i0 + i) * shape.out.row, shape.out.col, x.rows, dv);
    const T value = l == 0 ? -kInfinity<T> : T((double(x.m[i]) + __builtin_log2(double(l))) * kLn2);
    __builtin_memcpy(lse + (i0 + i) * shape.lse, &value, sizeof value);
  }
}
