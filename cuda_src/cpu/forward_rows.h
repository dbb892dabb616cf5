// Forward of very few queries, row by row: scores and sums as in forward_panels.h, but with the head dimension in the
// lanes, as queries would leave most of them empty. A row has keys of its own, so only elements are masked.
#pragma once
#include "cpu/convert.h"
#include "cpu/forward_plan.h"
#include "cpu/tile.h"

constexpr int64_t kFewRows = 4;  // a panel's vector does 8 in AVX2 in the time of 4

template <class T>
class RowBlock {
 public:
  static constexpr int64_t kStep = kLanes<T>;

  RowBlock(const Call& call, const ForwardPlan& plan, Scratch& scratch)
      : call_(call), shape_(*call.shape), plan_(plan), mask_(anywhere(shape_)), score_(anywhere(shape_)),
        sink_(anywhere(shape_)) {
    pitch_ = round_up(shape_.head_dim, kPitchUnit<T>), pitch_v_ = round_up(shape_.head_dim_v, kPitchUnit<T>);
    q_ = scratch.take<T>(pitch_);
    k_tile_ = scratch.take<T>(kKeyTile * pitch_);
    v_tile_ = scratch.take<T>(kKeyTile * pitch_v_);
    p_ = scratch.take<T>(round_up(kKeyTile, kStep));
    shown_ = scratch.take<uint8_t>(kKeyTile);
  }

  ForwardState<T> state(Scratch& scratch) const { return {scratch, plan_.columns(), pitch_v_}; }

  Span begin(int64_t unit, int64_t block) {
    const Place place = place_of(call_, plan_.head(unit, 0));
    mask_ = KeyMask(place), score_ = Score<T>(place), sink_ = Sink(place);
    return plan_.keys(mask_, block);
  }

  void attend(int64_t unit, int64_t block, int64_t j_begin, int64_t j_end, const ForwardState<T>& x) {
    __builtin_memset(x.o, 0, plan_.columns() * pitch_v_ * sizeof(T));
    for (int64_t i = 0; i < plan_.columns(); ++i) x.m[i] = -kInfinity<T>, x.l[i] = 0;
    const int64_t key_head = plan_.key_head(unit);
    const int64_t size = even_part(j_end - j_begin, kKeyTile, kAccumulators);
    for (Span left{j_begin, j_end}; (left = plan_.keys(mask_, block, left)).size() > 0; left.begin += size) {
      const int64_t j0 = left.begin, keys = clamp(left.size(), 0, size);
      const T* k = load_factor(shape_.dtype, k_tile_, pitch_, at(call_.k, shape_.k, key_head, j0), shape_.k, keys,
                               shape_.head_dim);
      const T* v = load_factor(shape_.dtype, v_tile_, pitch_v_, at(call_.v, shape_.v, key_head, j0), shape_.v, keys,
                               shape_.head_dim_v);
      for (int64_t i = 0; i < plan_.columns(); ++i) {
        const Span among = mask_.keys(row(i), row(i), {j0, j0 + keys});
        const int64_t begin = among.begin - j0, seen = among.size();
        if (seen == 0) continue;
        const Integer<T> query = Integer<T>(row(i));
        const Share share = mask_.template shown<T>(&query, 1, j0 + begin, seen, shown_);
        if (share == kNone) continue;
        const uint8_t* shown = share == kSome ? shown_ : nullptr;
        const char* q = at(call_.q, shape_.q, plan_.head(unit, i), row(i));
        load_row(shape_.dtype, q_, pitch_, q, shape_.q.col, shape_.head_dim);
        T* o = x.o + i * pitch_v_;
        const T rescale = probabilities(row(i), j0 + begin, seen, shown, k + begin * pitch_, x.m[i], x.l[i]);
        for (int64_t c = 0; rescale != 1 && c < pitch_v_; c += kStep) store(o + c, load(o + c) * rescale);
        add_values(seen, shown, v + begin * pitch_v_, o);
      }
    }
  }

  template <class States>
  void merge(int64_t, States states, int64_t chunks) const {
    const ForwardState<T> first = states(0);
    for (int64_t i = 0; i < plan_.columns(); ++i) {
      for (int64_t c = 1; c < chunks; ++c) {
        const ForwardState<T> x = states(c);
        const T m = first.m[i] > x.m[i] ? first.m[i] : x.m[i];
        const T old = power(first.m[i], m), factor = power(x.m[i], m);
        first.m[i] = m;
        first.l[i] = first.l[i] * old + x.l[i] * factor;
        T *y = first.o + i * pitch_v_, *o = x.o + i * pitch_v_;
        for (int64_t r = 0; r < pitch_v_; r += kStep) store(y + r, load(y + r) * old + load(o + r) * factor);
      }
    }
  }

  void finish(int64_t unit, int64_t, const ForwardState<T>& x) const {
    for (int64_t i = 0; i < plan_.columns(); ++i) {
      T* o = x.o + i * pitch_v_;
      T inverse = x.l[i] == 0 ? T(0) : 1 / x.l[i], lse = log_sum_exp(x.m[i], score_.unit(), x.l[i], plan_.headroom);
      if (sink_.used()) join(lse, inverse, sink_.logit(row(i)));
      for (int64_t c = 0; c < pitch_v_; c += kStep) store(o + c, load(o + c) * inverse);
      const int64_t head = plan_.head(unit, i);
      store_row(shape_.dtype, at(call_.out, shape_.out, head, row(i)), shape_.out.col, o, shape_.head_dim_v);
      __builtin_memcpy(at(call_.lse, shape_.lse, head, row(i)), &lse, sizeof lse);
    }
  }

 private:
  // Of the only block of queries.
  int64_t row(int64_t i) const { return plan_.row(0, i); }

  // 2^(unit (m - base)), 0 for m = -inf.
  T power(T m, T base) const { return m == -kInfinity<T> ? T(0) : exp2<T>(splat(m - base), score_.unit())[0]; }

  // p of a row and the keys from j0 on, of `shown` where it is not null. Their sum joins l; m follows as in PanelBlock.
  // Returns the factor for o.
  __attribute__((noinline)) T probabilities(int64_t row, int64_t j0, int64_t keys, const uint8_t* shown, const T* k,
                                            T& m, T& l) {
    for (int64_t j = 0; j < keys; j += kStep) {
      Vector<T> sum[kStep] = {};  // of a key each
      const T* key[kStep];
      UNROLL
      for (int n = 0; n < kStep; ++n) key[n] = k + clamp(j + n, 0, keys - 1) * pitch_;
      for (int64_t c = 0; c < pitch_; c += kStep) {
        const Vector<T> q = load(q_ + c);
        UNROLL
        for (int n = 0; n < kStep; ++n) sum[n] += q * load(key[n] + c);
      }
      transpose_square<T>(sum);
      Vector<T> s = sum[0];
      UNROLL
      for (int n = 1; n < kStep; ++n) s += sum[n];
      store(p_ + j, s);
    }
    const RowTile<T> tile{keys, row, j0};
    score_.forward(tile, p_);
    for (int64_t j = 0; shown && j < keys; ++j) p_[j] = shown[j] ? p_[j] : -kInfinity<T>;
    Vector<T> top = splat(-kInfinity<T>);
    tile.each([&](int64_t at, int64_t, Mask<T> col) ALWAYS_INLINE {
      const Vector<T> s = col < Integer<T>(j0 + keys) ? load(p_ + at) : splat(-kInfinity<T>);
      top = max_of(top, s);
      store(p_ + at, s);
    });
    T largest = top[0];
    for (int n = 1; n < kStep; ++n) largest = top[n] > largest ? top[n] : largest;
    T rescale = 1;
    if (largest > m + T(kSlack) / score_.unit()) rescale = power(m, largest), m = largest, l *= rescale;
    const T base = m == -kInfinity<T> ? T(0) : m, headroom = T(plan_.headroom);
    Vector<T> total = {};
    for (int64_t j = 0; j < keys; j += kStep) {
      const Vector<T> p = exp2<T>(load(p_ + j) - base, score_.unit(), headroom);
      total += p;
      store(p_ + j, p);
    }
    for (int n = 0; n < kStep; ++n) l += total[n];
    return rescale;
  }

  // o += p V, as many columns at a time as accumulators hide the latency of an addition.
  __attribute__((noinline)) void add_values(int64_t keys, const uint8_t* shown, const T* v, T* o) const {
    int64_t c = 0;
    for (; c + 8 * kStep <= pitch_v_; c += 8 * kStep) add_columns<8>(keys, shown, v + c, o + c);
    for (; c < pitch_v_; c += kStep) add_columns<1>(keys, shown, v + c, o + c);
  }

  template <int W>
  ALWAYS_INLINE void add_columns(int64_t keys, const uint8_t* shown, const T* v, T* o) const {
    Vector<T> sum[W] = {};
    for (int64_t j = 0; j < keys; ++j, v += pitch_v_) {
      if (shown && !shown[j]) continue;  // it may be inf or nan
      const Vector<T> p = splat(p_[j]);
      UNROLL
      for (int w = 0; w < W; ++w) sum[w] += p * load(v + w * kStep);
    }
    UNROLL
    for (int w = 0; w < W; ++w) store(o + w * kStep, load(o + w * kStep) + sum[w]);
  }

  const Call& call_;
  const Shape& shape_;
  const ForwardPlan plan_;
  KeyMask mask_;
  Score<T> score_;
  Sink sink_;
  int64_t pitch_, pitch_v_;
  T *q_, *k_tile_, *v_tile_, *p_;
  uint8_t* shown_;
};
