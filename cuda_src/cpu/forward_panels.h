// Forward of a block of queries: for each tile of keys
//   S^T = K Q^T;  P = exp2(unit (score(S) - m) - headroom);  l += rowsum(P);  O^T += V^T P^T
// and at the end O / l and lse = unit m + headroom + log l (FlashAttention-2, arXiv:2307.08691, Algorithm 1). Queries
// lie side by side in the lanes of vectors: statistics of rows are vectors, and K and V are read as they are.
#pragma once
#include "cpu/convert.h"
#include "cpu/forward_plan.h"
#include "cpu/panel_mask.h"
#include "cpu/product.h"
#include "cpu/seen.h"
#include "cpu/tile.h"

// Arithmetic in T, factors of products as E: T or Pair. N vectors make a panel.
template <class T, class E, int N>
class PanelBlock {
 public:
  static constexpr int64_t kPanel = N * kLanes<T>, kStep = kLanes<T>;
  // Where 12 multiply-adds make a step, two a turn are 3% faster than one (Zen 3; g++ and clang++).
  static constexpr int kSteps = 24 / kAccumulators;

  PanelBlock(const Call& call, const ForwardPlan& plan, Scratch& scratch)
      : call_(call), shape_(*call.shape), plan_(plan), mask_(anywhere(shape_)), score_(anywhere(shape_)),
        sink_(anywhere(shape_)) {
    depth_ = kIsPair<E> ? ceil_div(shape_.head_dim, 2) : shape_.head_dim;
    pitch_ = round_up(depth_, kPitchUnit<T>);
    pitch_v_ = round_up(shape_.head_dim_v, kPitchUnit<T>);
    columns_ = round_up(plan.columns(), kPanel);
    const int64_t widest = pitch_ > pitch_v_ ? pitch_ : pitch_v_;
    line_ = scratch.take<T>(kPanel * widest);
    q_ = scratch.take<E>(columns_ * pitch_);
    k_tile_ = scratch.take<E>(kKeyTile * pitch_);
    v_tile_ = scratch.take<E>(kKeyTile * pitch_v_);
    p_ = scratch.take<T>(kKeyTile * kPanel);
    pairs_ = kIsPair<E> ? scratch.take<E>(kKeyTile / 2 * kPanel) : nullptr;
    rows_ = scratch.take<Integer<T>>(columns_);
    shown_ = scratch.take<uint8_t>(round_up(kKeyTile, sizeof(T)) * kPanel);
  }

  ForwardState<T> state(Scratch& scratch) const { return {scratch, columns_, pitch_v_}; }

  // What a block of queries sees.
  Span begin(int64_t unit, int64_t block) {
    const Place place = place_of(call_, plan_.head(unit, 0));
    mask_ = KeyMask(place), score_ = Score<T>(place), sink_ = Sink(place);
    used_ = round_up(plan_.columns(block), kPanel);
    return plan_.keys(mask_, block);
  }

  // One item of work: that block and a chunk of these keys.
  void attend(int64_t unit, int64_t block, int64_t j_begin, int64_t j_end, const ForwardState<T>& x) {
    __builtin_memset(x.o, 0, used_ * pitch_v_ * sizeof(T));
    __builtin_memset(x.l, 0, used_ * sizeof(T));
    for (int64_t i = 0; i < used_; ++i) x.m[i] = -kInfinity<T>;
    if (j_begin < j_end) load_queries(unit, block);
    const int64_t size = even_part(j_end - j_begin, kKeyTile, kTileRows<N>);
    for (Span left{j_begin, j_end}; (left = plan_.keys(mask_, block, left)).size() > 0;) {
      const int64_t j0 = left.begin, j1 = left.begin = clamp(j0 + size, 0, left.end);
      tile(plan_.key_head(unit), j0, j1 - j0, clamp(left.size(), 0, size), x);
    }
  }

  // The states of a block's chunks, in their order, to that of the first.
  template <class States>
  void merge(int64_t block, States states, int64_t chunks) const {
    const ForwardState<T> first = states(0);
    for (int64_t i = 0; i < plan_.columns(block); i += kStep) {
      Vector<T> top = splat(-kInfinity<T>), total = {};
      for (int64_t c = 0; c < chunks; ++c) top = max_of(top, load(states(c).m + i));
      const Vector<T> base = finite_base(top);
      const int64_t column = i / kPanel * kPanel * pitch_v_ + i % kPanel;
      for (int64_t c = 0; c < chunks; ++c) {
        const ForwardState<T> x = states(c);
        const Vector<T> factor = exp2<T>(load(x.m + i) - base, score_.unit());
        total += load(x.l + i) * factor;
        for (int64_t r = 0; r < pitch_v_; ++r) {
          const int64_t at = column + r * kPanel;
          store(first.o + at, (c ? load(first.o + at) : Vector<T>{}) + load(x.o + at) * factor);
        }
      }
      store(first.m + i, top);
      store(first.l + i, total);
    }
  }

  // out and lse of a block.
  void finish(int64_t unit, int64_t block, const ForwardState<T>& x) const {
    const int64_t d = shape_.head_dim_v;
    for (int64_t i = 0; i < plan_.columns(block); i += kPanel) {
      T *o = x.o + i * pitch_v_, inverse[kPanel], lse[kPanel];
      for (int64_t n = 0; n < kPanel; n += kStep) {
        const Vector<T> l = load(x.l + i + n);
        store(inverse + n, l == Vector<T>{} ? Vector<T>{} : T(1) / l);
      }
      for (int64_t n = 0; n < kPanel && i + n < plan_.columns(block); ++n) {
        lse[n] = log_sum_exp(x.m[i + n], score_.unit(), x.l[i + n], plan_.headroom);
        if (sink_.used()) join(lse[n], inverse[n], sink_.logit(plan_.row(block, i + n)));
      }
      for (int64_t n = 0; n < kPanel; n += kStep) {
        for (int64_t c = 0; c < pitch_v_; ++c) store(o + c * kPanel + n, load(o + c * kPanel + n) * load(inverse + n));
      }
      transpose(line_, pitch_v_, o, kPanel, pitch_v_, kPanel);
      for (int64_t n = 0; n < kPanel && i + n < plan_.columns(block); ++n) {
        const int64_t head = plan_.head(unit, i + n), row = plan_.row(block, i + n);
        store_row(shape_.dtype, at(call_.out, shape_.out, head, row), shape_.out.col, line_ + n * pitch_v_, d);
        __builtin_memcpy(at(call_.lse, shape_.lse, head, row), lse + n, sizeof *lse);
      }
    }
  }

 private:
  // Scores of a row that are all -inf give p = 0 less 0; less -inf they would give nan.
  static Vector<T> finite_base(Vector<T> m) { return m == splat(-kInfinity<T>) ? Vector<T>{} : m; }

  void load_queries(int64_t unit, int64_t block) {
    const int64_t last_row = plan_.last_row(block);
    for (int64_t i = 0; i < used_; i += kPanel) {
      for (int64_t n = 0; n < kPanel; ++n) {
        // Columns that are left over repeat the last query.
        const int64_t column = clamp(i + n, 0, plan_.columns() - 1);
        const int64_t row = clamp(plan_.row(block, column), 0, last_row);
        const char* q = at(call_.q, shape_.q, plan_.head(unit, column), row);
        E* line = (E*)line_ + n * pitch_;
        if constexpr (kIsPair<E>) load_pairs(line, pitch_, q, shape_.q, 1, shape_.head_dim);
        else load_row(shape_.dtype, line, pitch_, q, shape_.q.col, shape_.head_dim);
        rows_[i + n] = Integer<T>(row);
      }
      transpose(q_ + i * pitch_, kPanel, (const E*)line_, pitch_, kPanel, pitch_);
    }
  }

  void load_keys(int64_t head, int64_t j0, int64_t keys) {
    const char *k = at(call_.k, shape_.k, head, j0), *v = at(call_.v, shape_.v, head, j0);
    if constexpr (kIsPair<E>) {
      load_pairs(k_tile_, pitch_, k, shape_.k, keys, shape_.head_dim);
      __builtin_memset(k_tile_ + keys * pitch_, 0, (round_up(keys, kRowUnit) - keys) * pitch_ * sizeof(E));
      load_row_pairs(v_tile_, pitch_v_, v, shape_.v, keys, shape_.head_dim_v);
      k_ = k_tile_, v_ = v_tile_;
    } else {
      k_ = load_factor(shape_.dtype, k_tile_, pitch_, k, shape_.k, keys, shape_.head_dim);
      v_ = load_factor(shape_.dtype, v_tile_, pitch_v_, v, shape_.v, keys, shape_.head_dim_v);
    }
  }

  void tile(int64_t head, int64_t j0, int64_t keys, int64_t keys_after, const ForwardState<T>& x) {
    PanelMask<T, N> panel;
    int finite = -1;  // not known yet
    k_ = nullptr;
    for (int64_t i = 0; i < used_; i += kPanel) {
      fetch(head, j0 + keys, keys_after, i);
      Integer<T> low = rows_[i], high = rows_[i];
      for (int64_t n = 1; n < kPanel; ++n) {
        low = rows_[i + n] < low ? rows_[i + n] : low;
        high = rows_[i + n] > high ? rows_[i + n] : high;
      }
      const Span among = mask_.keys(low, high, {j0, j0 + keys});
      if (among.size() <= 0) continue;
      // Whole units before what the panel sees are left out: units of rows, which are whole pairs too.
      const int64_t looked = j0 + (among.begin - j0) / kRowUnit * kRowUnit;
      const Share share = mask_.template shown<T>(rows_ + i, kPanel, looked, among.end - looked, shown_);
      if (share == kNone) continue;
      Span part{0, among.end - looked};
      if (share == kSome) part = shown_keys<T>(shown_, kPanel, part.end);
      const int64_t first = looked + part.begin, begin = first - j0, seen = part.size();
      if (seen == 0) continue;
      if (!k_) load_keys(head, j0, keys);
      const bool within = mask_.covers(low, high, first, round_up(seen, kRowUnit)), cut = !within || share == kSome;
      const E* k = k_ + begin * pitch_;
      Vector<T> largest[N];
      T* o = x.o + i * pitch_v_;
      if (cut) panel.look(mask_, rows_ + i, share == kSome ? shown_ : nullptr, looked);
      if (cut && finite < 0) finite = values_finite(head, j0, keys);
      if (score_.has_steps() || share == kSome) stepped_scores(cut, panel, i, first, seen, k, largest);
      else scores(cut, panel, i, first, seen, k, largest);
      softmax(seen, largest, x.m + i, x.l + i, o);
      if (cut && !finite) {
        accumulate_seen_values(head, first, seen, i, o);
      } else if constexpr (kIsPair<E>) {
        round_to_pairs(pairs_, p_, kPanel, seen);
        add_values(ceil_div(seen, 2), v_ + begin / 2 * pitch_v_, pairs_, o);
      } else {
        add_values(seen, v_ + begin * pitch_v_, p_, o);
      }
    }
  }

  // Starts to fetch the part of the next tile's rows that falls to this panel: read several rows at a time, or a few
  // columns of many, they come too late on the processor's own account.
  void fetch(int64_t head, int64_t j0, int64_t keys, int64_t i) const {
    const int64_t part = ceil_div(keys * kPanel, used_), first = i / kPanel * part;
    for (int64_t j = first; j < first + part && j < keys; ++j) {
      fetch_row(at(call_.k, shape_.k, head, j0 + j), shape_.k.col, shape_.head_dim);
      fetch_row(at(call_.v, shape_.v, head, j0 + j), shape_.v.col, shape_.head_dim_v);
    }
  }
  void fetch_row(const char* row, int64_t stride, int64_t width) const {
    if (stride > kAlignment) return;  // lines of a single element would be too many
    for (int64_t b = 0; b < stride * width; b += kAlignment) __builtin_prefetch(row + b, 0, 2);
  }

  // Scores of the panel of queries from column i on and of keys from j0 on, -inf where hidden, and their largest.
  __attribute__((noinline)) void scores(bool cut, const PanelMask<T, N>& panel, int64_t i, int64_t j0, int64_t keys,
                                        const E* k, Vector<T> (&largest)[N]) {
    Vector<T> top[N];
    for (auto& x : top) x = splat(-kInfinity<T>);
    T* const p = p_;
    const auto factor = score_.factor();
    multiply<T, N, kSteps>(keys, depth_, ByRows<E>{k, pitch_}, q_ + i * pitch_, kPanel,
                           [&](Vector<T> x, int64_t r, int n) ALWAYS_INLINE {
                             x = factor.forward(x);
                             if (cut) x = panel.within(n, j0 + r) ? x : splat(-kInfinity<T>);
                             top[n] = max_of(top[n], x);
                             store(p + r * kPanel + n * kStep, x);
                           });
    for (int n = 0; n < N; ++n) largest[n] = top[n];
  }

  // The same by passes, where elements may be hidden too. Sums leave the registers as they are: AVX2's hold a tile and
  // little else, and to scale sums there cost 8% of the time (g++ 12).
  __attribute__((noinline)) void stepped_scores(bool cut, const PanelMask<T, N>& panel, int64_t i, int64_t j0,
                                                int64_t keys, const E* k, Vector<T> (&largest)[N]) {
    T* const s = p_;
    multiply<T, N, kSteps>(keys, depth_, ByRows<E>{k, pitch_}, q_ + i * pitch_, kPanel,
                           [=](Vector<T> x, int64_t r, int n) ALWAYS_INLINE { store(s + r * kPanel + n * kStep, x); });
    const PanelTile<T, N> tile{keys, kPanel, rows_ + i, j0};
    score_.forward(tile, s);
    Vector<T> top[N];
    for (auto& x : top) x = splat(-kInfinity<T>);
    tile.each_vector([&](int64_t j, int n) ALWAYS_INLINE {
      T* const at = s + j * kPanel + n * kStep;
      if (cut) store(at, panel.sees(n, j0 + j) ? load(at) : splat(-kInfinity<T>));
      top[n] = max_of(top[n], load(at));
    });
    for (int n = 0; n < N; ++n) largest[n] = top[n];
  }

  // Scores become p = exp2(unit (s - m) - headroom), whose sums join l. Where m must follow, l and o are scaled to it.
  __attribute__((noinline)) void softmax(int64_t keys, const Vector<T> (&largest)[N], T* m, T* l, T* o) {
    T* const s = p_;
    const T headroom = T(plan_.headroom), unit = score_.unit(), slack = T(kSlack) / unit;
    Vector<T> base[N], sum[N];
    Mask<T> passed = {};
    UNROLL
    for (int n = 0; n < N; ++n) passed |= largest[n] > load(m + n * kStep) + slack;
    const bool follow = any(passed);
    UNROLL
    for (int n = 0; n < N; ++n) {
      const Vector<T> old = load(m + n * kStep);
      const Vector<T> now = largest[n] > old + slack ? largest[n] : old;
      base[n] = finite_base(now);
      sum[n] = Vector<T>{};
      if (!follow) continue;
      const Vector<T> factor = exp2<T>(old - base[n], unit);
      store(m + n * kStep, now);
      store(l + n * kStep, load(l + n * kStep) * factor);
      if (!any(old > splat(-kInfinity<T>))) continue;  // o is still 0, or nan
      for (int64_t c = 0; c < pitch_v_; ++c) {
        T* x = o + c * kPanel + n * kStep;
        store(x, load(x) * factor);
      }
    }
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2) exponentiate<2 * N>(s + j * kPanel, base, unit, headroom, sum);
    if (j < keys) exponentiate<N>(s + j * kPanel, base, unit, headroom, sum);
    UNROLL
    for (int n = 0; n < N; ++n) store(l + n * kStep, load(l + n * kStep) + sum[n]);
  }

  // W vectors, whole rows of a panel.
  template <int W>
  static inline ALWAYS_INLINE void exponentiate(T* x, const Vector<T> (&base)[N], T unit, T headroom,
                                                Vector<T> (&sum)[N]) {
    Vector<T> p[W];
    UNROLL
    for (int i = 0; i < W; ++i) p[i] = load(x + i * kStep) - base[i % N];
    exp2<T>(p, unit, headroom);
    UNROLL
    for (int i = 0; i < W; ++i) {
      sum[i % N] += p[i];
      store(x + i * kStep, p[i]);
    }
  }

  // O^T += V^T P^T.
  __attribute__((noinline)) void add_values(int64_t depth, const E* v, const E* p, T* o) const {
    accumulate<T, N, kSteps>(pitch_v_, depth, ByColumns<E>{v, pitch_v_}, p, kPanel, o, kPanel);
  }

  const T* value(int64_t head, int64_t j) const {
    load_row(shape_.dtype, line_, pitch_v_, at(call_.v, shape_.v, head, j), shape_.v.col, shape_.head_dim_v);
    return line_;
  }

  bool values_finite(int64_t head, int64_t j0, int64_t keys) const {
    if constexpr (!kIsPair<E>) return all_finite(v_, keys * pitch_v_);
    bool finite = true;
    for (int64_t j = 0; j < keys; ++j) finite &= all_finite(value(head, j0 + j), pitch_v_);
    return finite;
  }

  // O^T += V^T P^T where a hidden value is not finite.
  void accumulate_seen_values(int64_t head, int64_t j0, int64_t keys, int64_t i, T* o) const {
    for (int64_t j = 0; j < keys; ++j) {
      accumulate_seen<T>(mask_, rows_ + i, kPanel, j0 + j, 1, p_ + j * kPanel, kPanel,
                         {value(head, j0 + j), 0, 0, 1}, {o, 1, 0, kPanel}, shape_.head_dim_v);
    }
  }

  const Call& call_;
  const Shape& shape_;
  const ForwardPlan plan_;
  KeyMask mask_;
  Score<T> score_;
  Sink sink_;
  int64_t depth_, pitch_, pitch_v_, columns_, used_ = 0;
  T *line_, *p_;
  E *q_, *k_tile_, *v_tile_, *pairs_;
  const E *k_ = nullptr, *v_ = nullptr;  // the tile, in place or loaded
  Integer<T>* rows_;
  uint8_t* shown_;
};
