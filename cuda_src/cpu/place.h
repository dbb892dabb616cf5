// Where scores belong: a head, what options hold for it, and where its queries stand among the keys. Scores and masks
// are made of it, for each item of work anew.
#pragma once
#include "cpu/layout.h"
#include "cpu/sizes.h"

struct Shape;
struct Arrays;

// Positions that only the call tells stay within it, as in components/positions.py: 32 bits hold their sums.
constexpr int64_t kFarthest = 1 << 29;

// A part is a class of cpu/place, whose function move(params, place) changes the place by the parameters it is told.
template <class... Parts>
class PlaceOf {
 public:
  const Shape& shape;
  const Arrays& arrays;  // all null: of any head, before the call
  int64_t head;          // of q, counted through all of the batch
  int64_t q_offset;      // query i stands at key i + q_offset
  bool knows_offset = true;

  template <class S>
  PlaceOf(const S& shape, const Arrays& arrays, int64_t head)
      : shape(shape), arrays(arrays), head(head), q_offset(shape.q_offset) {
    (Parts::move(shape.components, *this), ...);
  }

  // What an option's array holds for the head, where there is one.
  const char* begin(const Layout& layout, const char* array) const {
    return array ? array + layout.heads[head] : nullptr;
  }
  template <class Number>
  Number number(const Layout& layout, const char* array, Number otherwise) const {
    if (const char* x = begin(layout, array)) __builtin_memcpy(&otherwise, x, sizeof otherwise);
    return otherwise;
  }
};
