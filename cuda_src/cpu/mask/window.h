// Query i sees key j when i + q_offset - left <= j <= i + q_offset + right.
#pragma once
#include "cpu/mask.h"

struct WindowParams {
  int64_t cuts_left, cuts_right;  // whether that side has an end
  int64_t left, right;
};

class Window : public Unbounded {
 public:
  // A side without an end is so far away that no key lies behind it.
  template <class Place>
  Window(const WindowParams& params, const Place& place)
      : low_(params.cuts_left && place.knows_offset ? place.q_offset - params.left : -place.shape.seqlen_q),
        high_(params.cuts_right && place.knows_offset ? place.q_offset + params.right : place.shape.seqlen_k) {}

  int64_t key_begin(int64_t query) const { return query + low_; }
  int64_t key_end(int64_t query) const { return query + high_ + 1; }
  int64_t query_begin(int64_t key) const { return key - high_; }
  int64_t query_end(int64_t key) const { return key - low_ + 1; }

 private:
  int64_t low_, high_;  // query i sees key j when low_ <= j - i <= high_
};
