// Where the elements of a caller's array lie.
#pragma once
#include <stdint.h>

// Where the heads of an array begin, and how rows and columns of a head lie apart: bytes, of any sign and alignment.
// Null where the call has no such array.
struct Layout {
  const int64_t* heads;
  int64_t row, col;
};

inline char* at(char* data, const Layout& layout, int64_t head, int64_t row) {
  return data + layout.heads[head] + row * layout.row;
}
