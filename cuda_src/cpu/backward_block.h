// What the backward does with a block of keys, by recomputation (FlashAttention-2, arXiv:2307.08691, Algorithm 2): for
// each block of queries
//   P = exp2(score(S) - lse);  delta = rowsum(dO * O) - dlse;  dS = score'(P * (dO V^T - delta))
//   dV += P^T dO;  dK += dS^T Q;  dQ += dS K
// as far as they are wanted. A bias has dS before the score's earlier steps; of what else is learned this makes the
// sums of scores (cpu/term.h).
// As in the forward, S^T and dS^T have queries in the lanes. K, V, dK and dV stay while the queries pass by.
#pragma once
#include "cpu/backward_plan.h"
#include "cpu/convert.h"
#include "cpu/panel_mask.h"
#include "cpu/product.h"
#include "cpu/seen.h"
#include "cpu/tile.h"

template <class T>
class BackwardBlock {
 public:
  static constexpr int64_t kPanel = kBackwardVectors * kLanes<T>, kStep = kLanes<T>;

  BackwardBlock(const Call& call, const BackwardPlan& plan, Scratch& scratch)
      : call_(call), shape_(*call.shape), mask_(anywhere(shape_)), score_(anywhere(shape_)) {
    pitch_ = round_up(shape_.head_dim, kPitchUnit<T>), pitch_v_ = round_up(shape_.head_dim_v, kPitchUnit<T>);
    columns_ = round_up(plan.queries, kPanel);
    const int64_t keys = round_up(plan.keys, kRowUnit);
    k_block_ = scratch.take<T>(keys * pitch_), dk_ = scratch.take<T>(keys * pitch_);
    v_block_ = scratch.take<T>(keys * pitch_v_), dv_ = scratch.take<T>(keys * pitch_v_);
    q_ = scratch.take<T>(columns_ * pitch_), dout_ = scratch.take<T>(columns_ * pitch_v_);
    q_panels_ = scratch.take<T>(columns_ * pitch_), dout_panels_ = scratch.take<T>(columns_ * pitch_v_);
    dq_panels_ = scratch.take<T>(columns_ * pitch_);
    line_ = scratch.take<T>(pitch_v_);
    p_ = scratch.take<T>(kBackwardTile * columns_), ds_ = scratch.take<T>(kBackwardTile * columns_);
    kept_ = scratch.take<T>(score_.kept() * kBackwardTile * columns_);
    lse_ = scratch.take<T>(columns_), delta_ = scratch.take<T>(columns_);
    rows_ = scratch.take<Integer<T>>(columns_);
    shown_ = scratch.take<uint8_t>(round_up(kBackwardTile, sizeof(T)) * kPanel);
  }

  // dK and dV are 0 as long as no query has been attended to.
  void begin_keys(int64_t j0, int64_t keys) {
    j0_ = j0, keys_ = keys;
    __builtin_memset(dk_, 0, round_up(keys, kRowUnit) * pitch_ * sizeof(T));
    __builtin_memset(dv_, 0, round_up(keys, kRowUnit) * pitch_v_ * sizeof(T));
  }

  void load_keys(int64_t head) {
    const char *k = at(call_.k, shape_.k, head, j0_), *v = at(call_.v, shape_.v, head, j0_);
    k_ = load_factor(shape_.dtype, k_block_, pitch_, k, shape_.k, keys_, shape_.head_dim);
    v_ = load_factor(shape_.dtype, v_block_, pitch_v_, v, shape_.v, keys_, shape_.head_dim_v);
  }

  void store_keys(int64_t head) const {
    const Layout &dk = shape_.dk, &dv = shape_.dv;
    for (int64_t j = 0; j < keys_; ++j) {
      const int64_t key = j0_ + j, d = shape_.head_dim, d_v = shape_.head_dim_v;
      if (call_.dk) store_row(shape_.dtype, at(call_.dk, dk, head, key), dk.col, dk_ + j * pitch_, d);
      if (call_.dv) store_row(shape_.dtype, at(call_.dv, dv, head, key), dv.col, dv_ + j * pitch_v_, d_v);
    }
  }

  // What a head of queries sees.
  const KeyMask& begin_head(int64_t head) {
    const Place place = place_of(call_, head);
    mask_ = KeyMask(place), score_ = Score<T>(place);
    return mask_;
  }

  // A block of queries of it: dK and dV grow, dq is its part from these keys, and so does what a bias has of the head,
  // unless that is null.
  void attend(int64_t head, int64_t i0, int64_t queries, T* dbias) {
    dbias_ = dbias;
    load_queries(head, i0, queries);
    __builtin_memset(dq_panels_, 0, columns_ * pitch_ * sizeof(T));
    each_tile([&](int64_t u, int64_t keys) { tile(u, keys); });
    // Q has been used: its rows take dQ.
    for (int64_t i = 0; i < columns_; i += kPanel) {
      transpose(q_ + i * pitch_, pitch_, dq_panels_ + i * pitch_, kPanel, pitch_, kPanel);
    }
  }

  // The same of a term: the sum of each key (row) and query of the blocks grows.
  void add_term(int64_t head, int64_t i0, int64_t queries, T* sums) {
    load_queries(head, i0, queries);
    each_tile([&](int64_t u, int64_t keys) {
      each_part(u, keys, [&](const Part& part, const T* k, const T* v) {
        if (part.share == kNone) return;
        stepped_probabilities(part, k);
        stepped_term(part, v);
        T* const sum = sums + (part.j0 - j0_) * columns_ + part.i;
        for (int64_t j = 0; j < part.keys; ++j) {
          UNROLL
          for (int64_t n = 0; n < kPanel; n += kStep) {
            T* const x = sum + j * columns_ + n;
            store(x, load(x) + load(ds_ + part.at + j * columns_ + n));
          }
        }
      });
    });
  }

  // Row i of the block, of width head_dim.
  const T* dq(int64_t i) const { return q_ + i * pitch_; }

 private:
  // Q and dO as rows and as panels, lse in log2 units, delta.
  void load_queries(int64_t head, int64_t i0, int64_t queries) {
    i0_ = i0, queries_ = queries;
    const Layout &q = shape_.q, &dout = shape_.dout, &out = shape_.out;
    load_rows(shape_.dtype, q_, pitch_, at(call_.q, q, head, i0), q, queries, shape_.head_dim);
    load_rows(shape_.dtype, dout_, pitch_v_, at(call_.dout, dout, head, i0), dout, queries, shape_.head_dim_v);
    __builtin_memset(q_ + queries * pitch_, 0, (columns_ - queries) * pitch_ * sizeof(T));
    __builtin_memset(dout_ + queries * pitch_v_, 0, (columns_ - queries) * pitch_v_ * sizeof(T));
    for (int64_t i = 0; i < columns_; i += kPanel) {
      transpose(q_panels_ + i * pitch_, kPanel, q_ + i * pitch_, pitch_, kPanel, pitch_);
      transpose(dout_panels_ + i * pitch_v_, kPanel, dout_ + i * pitch_v_, pitch_v_, kPanel, pitch_v_);
    }
    for (int64_t i = 0; i < columns_; ++i) {
      // +inf makes p = 0: for a row without finite score, and past the last row.
      T lse = -kInfinity<T>, delta = 0;
      if (i < queries) {
        lse = statistic(call_.lse, shape_.lse, head, i0 + i);
        load_row(shape_.out_dtype, line_, pitch_v_, at(call_.out, out, head, i0 + i), out.col, shape_.head_dim_v);
        Vector<T> sum = {};
        for (int64_t c = 0; c < pitch_v_; c += kStep) {
          sum += load(line_ + c) * load(dout_ + i * pitch_v_ + c);
        }
        for (int n = 0; n < kStep; ++n) delta += sum[n];
        if (call_.dlse) delta -= statistic(call_.dlse, shape_.dlse, head, i0 + i);
      }
      lse_[i] = lse == -kInfinity<T> ? kInfinity<T> : T(double(lse) * kLog2E);
      delta_[i] = delta;
      rows_[i] = Integer<T>(i0 + clamp(i, 0, queries - 1));
    }
  }

  static T statistic(char* data, const Layout& layout, int64_t head, int64_t row) {
    T value;
    __builtin_memcpy(&value, at(data, layout, head, row), sizeof value);
    return value;
  }

  // A panel of queries, from column i of the block on, against keys of a tile, from j0 on.
  struct Part {
    Share share;                                // of the scores that are shown
    const PanelMask<T, kBackwardVectors>* cut;  // null where it is not
    int64_t i, j0, keys;
    int64_t at;  // its first score in p_, ds_ and kept_
  };

  // use(u, keys) for tiles of keys of the block that the queries see some of.
  template <class Use>
  void each_tile(Use use) {
    Span left = seen_keys(i0_, i0_ + queries_ - 1, {0, keys_});
    const int64_t size = even_part(left.size(), kBackwardTile, kTileRows<kBackwardVectors>);
    for (; left.size() > 0; left = seen_keys(i0_, i0_ + queries_ - 1, {left.begin + size, left.end})) {
      use(left.begin, clamp(left.size(), 0, size));
    }
  }

  // What queries from `low` to `high` see of keys of the block lies among these; from a whole unit of rows on.
  Span seen_keys(int64_t low, int64_t high, Span among) const {
    const Span seen = mask_.keys(low, high, {j0_ + among.begin, j0_ + among.end});
    if (seen.size() <= 0) return {among.begin, among.begin};
    return {(seen.begin - j0_) / kRowUnit * kRowUnit, seen.end - j0_};
  }

  // use(part, k, v) for each panel of queries that see some of the tile's keys; k and v begin with the part's first.
  // Returns the panels' columns.
  template <class Use>
  Span each_part(int64_t u, int64_t keys, Use use) {
    const Span seeing = panels(u, keys);
    PanelMask<T, kBackwardVectors> panel;
    for (int64_t i = seeing.begin; i < seeing.end; i += kPanel) {
      const int64_t low = i0_ + i, high = i0_ + clamp(i + kPanel, 0, queries_) - 1;
      const Span among = seen_keys(low, high, {u, u + keys});
      const int64_t looked = j0_ + among.begin;
      Share share = mask_.template shown<T>(rows_ + i, kPanel, looked, among.size(), shown_);
      Span seen = among;
      if (share == kSome) {
        const Span shown = shown_keys<T>(shown_, kPanel, among.size());
        seen = {among.begin + shown.begin, among.begin + shown.end};
      }
      if (seen.size() <= 0) share = kNone;
      const int64_t j0 = j0_ + seen.begin;
      const bool cut = share == kSome || !mask_.covers(low, high, j0, round_up(seen.size(), kRowUnit));
      if (cut && share != kNone) panel.look(mask_, rows_ + i, share == kSome ? shown_ : nullptr, looked);
      const Part part{share, cut ? &panel : nullptr, i, j0, seen.size(), (seen.begin - u) * columns_ + i};
      use(part, k_ + seen.begin * pitch_, v_ + seen.begin * pitch_v_);
    }
    return seeing;
  }

  // Columns, of whole panels up to the last, of queries that see some of a tile's keys.
  Span panels(int64_t u, int64_t keys) const {
    const int64_t j0 = j0_ + u;
    const int64_t first = clamp(mask_.query_begin(j0) - i0_, 0, queries_) / kPanel * kPanel;
    return {first, clamp(mask_.query_end(j0 + keys - 1) - i0_, first, queries_)};
  }

  // Keys u to u + keys of the block against the queries.
  void tile(int64_t u, int64_t keys) {
    const int64_t j0 = j0_ + u, whole = round_up(keys, kRowUnit);
    const Span seeing = panels(u, keys);
    const int64_t end = seeing.end;
    bool cut = !mask_.covers(i0_ + seeing.begin, i0_ + end - 1, j0, whole);
    int finite_k = -1;  // not known yet
    int64_t shown_begin = end, shown_end = 0;  // of queries in panels that are not left out

    each_part(u, keys, [&](const Part& part, const T* k, const T* v) {
      const int64_t i = part.i, begin = part.j0 - j0;
      cut = cut || part.share != kAll || part.keys < keys;
      if (part.share == kNone) return clear(i, 0, whole);
      shown_begin = clamp(i, 0, shown_begin), shown_end = clamp(i + kPanel, 0, end);
      if (score_.has_steps() || part.share == kSome) {
        stepped_probabilities(part, k);
        stepped_score_gradients(part, v);
      } else {
        probabilities(part, k);
        score_gradients(part, v);
      }
      clear(i, 0, begin);
      clear(i, begin + round_up(part.keys, kRowUnit), whole);
      if (!call_.dq) return;
      T* dq = dq_panels_ + i * pitch_;
      if (part.cut && finite_k < 0) finite_k = all_finite(k_ + u * pitch_, keys * pitch_);
      if (finite_k || !part.cut) {
        add_to_queries(part.keys, k, ds_ + part.at, dq);
      } else {
        accumulate_seen<T>(mask_, rows_ + i, kPanel, part.j0, part.keys, ds_ + part.at, columns_, {k, 0, pitch_, 1},
                           {dq, 1, 0, kPanel}, shape_.head_dim);
      }
    });

    const int64_t depth = shown_end - shown_begin;
    if (depth <= 0) return;
    if (call_.dv) {
      add_to_keys(cut, shown_begin, depth, j0, keys, p_, {dout_, pitch_v_, 0, 1}, {dv_ + u * pitch_v_, 0, pitch_v_, 1});
    }
    if (call_.dk) {
      add_to_keys(cut, shown_begin, depth, j0, keys, ds_, {q_, pitch_, 0, 1}, {dk_ + u * pitch_, 0, pitch_, 1});
    }
  }

  // P and dS of keys that no query of a panel sees.
  void clear(int64_t i, int64_t begin, int64_t end) {
    for (int64_t j = begin; j < end; ++j) {
      __builtin_memset(p_ + j * columns_ + i, 0, kPanel * sizeof(T));
      __builtin_memset(ds_ + j * columns_ + i, 0, kPanel * sizeof(T));
    }
  }

  // dQ of a panel.
  __attribute__((noinline)) void add_to_queries(int64_t keys, const T* k, const T* ds, T* dq) {
    accumulate<T, kBackwardVectors>(pitch_, keys, ByColumns<T>{k, pitch_}, ds, columns_, dq, kPanel);
  }

  // y += weight x: the sum over so many queries from column `first` on.
  void add_to_keys(bool cut, int64_t first, int64_t depth, int64_t j0, int64_t keys, const T* weight, Rows<const T> x,
                   Rows<T> y) {
    x.data += first * x.query;
    if (!cut || all_finite(x.data, depth * x.query)) {
      accumulate_wide<T, kBackwardVectors>(keys, depth, {weight + first, columns_}, x.data, y.data, y.key, y.key);
    } else {
      accumulate_seen<T>(mask_, rows_ + first, depth, j0, keys, weight + first, columns_, x, y, y.key);
    }
  }

  // P of a part.
  __attribute__((noinline)) void probabilities(const Part& part, const T* k) {
    const T* lse = lse_ + part.i;
    const auto factor = score_.factor();
    each_sum(part, shape_.head_dim, {k, pitch_}, q_panels_ + part.i * pitch_, p_ + part.at,
             [=](Vector<T> s, int64_t n, int64_t) ALWAYS_INLINE { return power(factor.in_log2(s) - load(lse + n)); });
  }

  // dS of it.
  __attribute__((noinline)) void score_gradients(const Part& part, const T* v) {
    const T *delta = delta_ + part.i, *p = p_ + part.at;
    const int64_t pitch = columns_;
    const auto factor = score_.factor();
    each_sum(part, shape_.head_dim_v, {v, pitch_v_}, dout_panels_ + part.i * pitch_v_, ds_ + part.at,
             [=](Vector<T> dp, int64_t n, int64_t j) ALWAYS_INLINE {
               return factor.backward(load(p + j * pitch + n) * (dp - load(delta + n)));
             });
  }

  // Of each vector of A B, what `use` makes of it to y, 0 where hidden: even inf and nan are.
  template <class Use>
  inline ALWAYS_INLINE void each_sum(const Part& part, int64_t depth, ByRows<T> a, const T* b, T* y, Use use) {
    const int64_t pitch = columns_, j0 = part.j0;
    const auto* const cut = part.cut;
    multiply<T, kBackwardVectors>(part.keys, depth, a, b, kPanel, [&](Vector<T> x, int64_t r, int n) ALWAYS_INLINE {
      x = use(x, n * kStep, r);
      if (cut) x = cut->within(n, j0 + r) ? x : Vector<T>{};
      store(y + r * pitch + n * kStep, x);
    });
  }

  // No p exceeds 1, though lse be rounded or foreign.
  static ALWAYS_INLINE Vector<T> power(Vector<T> x) { return exp2<T>(x > Vector<T>{} ? Vector<T>{} : x); }

  // The same two by passes, of sums as they are.
  __attribute__((noinline)) void stepped_probabilities(const Part& part, const T* k) {
    T *const p = p_ + part.at, *const lse = lse_ + part.i;
    const T unit = score_.unit();
    const auto tile = sums(part, shape_.head_dim, {k, pitch_}, q_panels_ + part.i * pitch_, p);
    score_.forward(tile, p, kept_ + part.at, kBackwardTile * columns_);
    tile.each_vector([=](int64_t j, int n) ALWAYS_INLINE {
      T* const x = p + j * tile.pitch + n * kStep;
      store(x, power(load(x) * unit - load(lse + n * kStep)));
    });
    if (part.cut) hide(tile, *part.cut, p);
  }

  __attribute__((noinline)) void stepped_score_gradients(const Part& part, const T* v) {
    T* const ds = ds_ + part.at;
    const auto tile = softmax_gradients(part, v);
    if (dbias_) {
      if (part.cut) hide(tile, *part.cut, ds);
      add_to_bias(part, ds);
    }
    score_.backward(tile, ds, kept_ + part.at, kBackwardTile * columns_);
    if (part.cut) hide(tile, *part.cut, ds);
  }

  // In place of dS what a score has of the term.
  __attribute__((noinline)) void stepped_term(const Part& part, const T* v) {
    T* const ds = ds_ + part.at;
    const auto tile = softmax_gradients(part, v);
    score_.term(shape_.term.step, tile, ds, kept_ + part.at, kBackwardTile * columns_);
    if (part.cut) hide(tile, *part.cut, ds);
  }

  // P (dP - delta) of a part.
  PanelTile<T, kBackwardVectors> softmax_gradients(const Part& part, const T* v) {
    T *const ds = ds_ + part.at, *const p = p_ + part.at, *const delta = delta_ + part.i;
    const auto tile = sums(part, shape_.head_dim_v, {v, pitch_v_}, dout_panels_ + part.i * pitch_v_, ds);
    tile.each_vector([=](int64_t j, int n) ALWAYS_INLINE {
      const int64_t at = j * tile.pitch + n * kStep;
      store(ds + at, load(p + at) * (load(ds + at) - load(delta + n * kStep)));
    });
    return tile;
  }

  // Squares of queries and keys are transposed in registers.
  __attribute__((noinline)) void add_to_bias(const Part& part, const T* ds) const {
    const int64_t queries = clamp(queries_ - part.i, 0, kPanel);
    for (int64_t j = 0; j < part.keys; j += kStep) {
      const int64_t keys = clamp(part.keys - j, 0, kStep);
      for (int64_t n = 0; n < queries; n += kStep) {
        Vector<T> square[kStep] = {};
        for (int64_t w = 0; w < keys; ++w) square[w] = load(ds + (j + w) * columns_ + n);
        transpose_square<T>(square);
        T* to = dbias_ + (i0_ + part.i + n) * shape_.seqlen_k + part.j0 + j;
        for (int64_t i = 0; i < clamp(queries - n, 0, kStep); ++i, to += shape_.seqlen_k) {
          if (keys == kStep) {
            store(to, load(to) + square[i]);
          } else {
            for (int64_t w = 0; w < keys; ++w) to[w] += square[i][w];
          }
        }
      }
    }
  }

  // A B to y.
  __attribute__((noinline)) PanelTile<T, kBackwardVectors> sums(const Part& part, int64_t depth, ByRows<T> a,
                                                                const T* b, T* y) {
    const int64_t pitch = columns_;
    multiply<T, kBackwardVectors>(part.keys, depth, a, b, kPanel, [=](Vector<T> x, int64_t r, int n) ALWAYS_INLINE {
      store(y + r * pitch + n * kStep, x);
    });
    return {round_up(part.keys, kRowUnit), pitch, rows_ + part.i, part.j0};
  }

  using Tile = PanelTile<T, kBackwardVectors>;
  static void hide(const Tile& tile, const PanelMask<T, kBackwardVectors>& panel, T* x) {
    tile.each_vector([&](int64_t j, int n) ALWAYS_INLINE {
      T* const at = x + j * tile.pitch + n * kStep;
      store(at, panel.sees(n, tile.first_key + j) ? load(at) : Vector<T>{});
    });
  }

  const Call& call_;
  const Shape& shape_;
  KeyMask mask_;
  Score<T> score_;
  int64_t pitch_, pitch_v_, columns_, j0_ = 0, keys_ = 0, i0_ = 0, queries_ = 0;
  const T *k_ = nullptr, *v_ = nullptr;              // rows, in place or loaded
  T *k_block_, *v_block_, *dk_, *dv_;                // rows
  T *q_, *dout_, *line_;                             // rows
  T *q_panels_, *dout_panels_, *dq_panels_;          // [panels][width][kPanel]
  T *p_, *ds_, *kept_;                               // [kBackwardTile][columns], the last as often as score_.kept()
  T *lse_, *delta_;                                  // [columns]
  T* dbias_ = nullptr;                               // [seqlen_q][seqlen_k]
  Integer<T>* rows_;
  uint8_t* shown_;
};
