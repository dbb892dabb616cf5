// Tiles of scores in memory, and whose scores they are. each(use) passes over one: use(at, rows, columns) for the
// vector that lies there. Of rows and columns, numbers of queries and keys, either are those of the lanes.
#pragma once
#include "cpu/vector.h"

// A row for each key, of N vectors with a query in each lane.
template <class T, int N>
struct PanelTile {
  int64_t keys, pitch;
  const Integer<T>* queries;
  int64_t first_key;

  template <class Use>
  ALWAYS_INLINE void each(Use use) const {
    each_vector([&](int64_t j, int n) ALWAYS_INLINE {
      use(j * pitch + n * kLanes<T>, load_as<Mask<T>>(queries + n * kLanes<T>), first_key + j);
    });
  }

  // use(j, n) for the n-th vector of row j.
  template <class Use>
  ALWAYS_INLINE void each_vector(Use use) const {
    for (int64_t j = 0; j < keys; ++j) {
      UNROLL
      for (int n = 0; n < N; ++n) use(j, n);
    }
  }
};

// Scores of one query, with a key in each lane; the last vector may reach beyond the last key.
template <class T>
struct RowTile {
  int64_t keys, query, first_key;

  template <class Use>
  ALWAYS_INLINE void each(Use use) const {
    for (int64_t j = 0; j < keys; j += kLanes<T>) use(j, query, lane_index<T>() + Integer<T>(first_key + j));
  }
};
