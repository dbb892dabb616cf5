// Which keys a query sees: those that exist and that no part hides, a compile-time list of types. Blocks that the mask
// rules out are never loaded, and blocks that it leaves whole are never tested element by element.
//
// A part gives each query an interval of keys, and each key an interval of queries; both say the same:
//
//   static constexpr bool kCutsBelow, kCutsAbove   the sides on which it hides keys
//   key_begin(query), key_end(query)               of kCutsBelow, of kCutsAbove: the keys that the query sees
//   query_begin(key), query_end(key)               of kCutsAbove, of kCutsBelow: the queries that see the key
//
// No result falls as its argument rises. A part that hides keys inside the intervals too says what it shows:
//
//   static constexpr bool kElementwise
//   Shown<Flags>(part, columns, row, is_whole)   of kElementwise: at(i, j) of the query row(i), a QueryRow, and the key
//                                      columns(j) of a lane; Flags(columns, flags) reads it of rows flags(i), FlagRows;
//                                      is_whole: of a part that is listed, which shows the whole block
//
// The file that includes this has included the parts, and `Components`, what they are told.
#pragma once
#include "attention/block_lists.cuh"
#include "attention/flags.cuh"
#include "attention/place.cuh"
#include "ptx/opaque.cuh"

// Of nothing, begin and end are equal.
struct Interval {
  int begin, end;

  __device__ void raise_begin(int position) { begin = max(begin, min(position, end)); }
  __device__ void lower_end(int position) { end = max(begin, min(position, end)); }
};

// What a part shows inside the intervals: all, unless it is elementwise.
template <class Part, class Flags, bool kElementwise = Part::kElementwise>
struct ShownOf {
  template <class Columns, class RowOf>
  __device__ ShownOf(const Part& part, const Columns& columns, const RowOf& row, bool is_whole) {}

  __device__ bool at(int i, int j) const { return true; }
  __device__ bool any() const { return true; }
  __device__ bool all() const { return true; }
};
template <class Part, class Flags>
struct ShownOf<Part, Flags, true> : Part::template Shown<Flags> {
  using Part::template Shown<Flags>::Shown;
};

template <class... Parts>
struct MaskOf : Parts... {
  static constexpr bool kCutsBelow = (false || ... || Parts::kCutsBelow);
  static constexpr bool kElementwise = (false || ... || Parts::kElementwise);
  static constexpr bool kListed = (false || ... || kIsListed<Parts>);
  int seqlen_q, seqlen_k;

  __device__ MaskOf(const Components& params, const Place& place)
      : Parts(params, place)..., seqlen_q(place.seqlen_q), seqlen_k(place.seqlen_k) {}

  // The interval of a query.
  struct Row {
    const MaskOf& mask;
    int query;

    __device__ bool sees(int key) const {
      if constexpr (kCutsBelow) {  // in one comparison: two for each key took registers, which spilt
        const Interval seen = mask.keys(query, query);
        return static_cast<unsigned>(key - seen.begin) < static_cast<unsigned>(seen.end - seen.begin);
      } else {
        return ((key < mask.seqlen_k) && ... && mask.template ends_after<Parts>(query, key));
      }
    }
  };

  __device__ Row row(int query) const { return {*this, query}; }

  // Which of a lane's columns elementwise parts show to the queries row(i); made in warp-uniform flow.
  template <class Flags>
  struct Shown : ShownOf<Parts, Flags>... {
    template <class Columns, class RowOf>
    __device__ Shown(const MaskOf& mask, const Columns& columns, const RowOf& row, bool is_whole)
        : ShownOf<Parts, Flags>(mask, columns, row, is_whole)... {}

    __device__ bool at(int i, int j) const { return (true && ... && ShownOf<Parts, Flags>::at(i, j)); }

    // Whether a warp may find some, and whether it shows all: asked of all lanes.
    __device__ bool any() const { return (true && ... && ShownOf<Parts, Flags>::any()); }
    __device__ bool all() const { return (true && ... && ShownOf<Parts, Flags>::all()); }
  };

  template <int kRows, class Columns, class RowOf>
  __device__ Shown<typename Columns::template Flags<kRows>> shown(const Columns& columns, const RowOf& row,
                                                                  bool is_whole = false) const {
    return {*this, columns, row, is_whole};
  }

  // The blocks of keys of a row of query blocks, and the other way round; without lists all, numbered by themselves.
  __device__ auto key_blocks(int head, int row) const { return blocks_of(*this, false, head, row); }
  __device__ auto query_blocks(int head, int row) const { return blocks_of(*this, true, head, row); }

  // Where the keys lie that queries from `first` to `last` see.
  __device__ Interval keys(int first, int last) const {
    Interval seen{0, seqlen_k};
    (narrow_keys<Parts>(seen, first, last), ...);
    return seen;
  }

  // Where the queries lie that see keys from `first` to `last`.
  __device__ Interval queries(int first, int last) const {
    Interval seeing{0, seqlen_q};
    (narrow_queries<Parts>(seeing, first, last), ...);
    return seeing;
  }

  // Whether the intervals of all queries from `first` to `last` have all keys in [col0, col0 + cols).
  __device__ bool covers(int first, int last, int col0, int cols) const {
    return ((col0 + cols <= seqlen_k) && ... && within<Parts>(first, last, col0, cols));
  }

 private:
  template <class Self>
  __device__ static auto blocks_of(const Self& self, bool by_keys, int head, int row) {
    if constexpr (Self::kListed) {
      return self.block_list(by_keys, head, row);
    } else {
      return EveryBlock();
    }
  }

  template <class Part>
  __device__ bool ends_after(int query, int key) const {
    if constexpr (Part::kCutsAbove) return key < Part::key_end(query);
    return true;
  }

  template <class Part>
  __device__ bool within(int first, int last, int col0, int cols) const {
    bool all = true;
    if constexpr (Part::kCutsAbove) all = col0 + cols <= Part::key_end(first);
    // `last`'s first key, found before a loop, would hold a register through it, which spilt.
    if constexpr (Part::kCutsBelow) all = all && col0 >= Part::key_begin(ptx::opaque(last));
    return all;
  }

  template <class Part>
  __device__ void narrow_keys(Interval& seen, int first, int last) const {
    if constexpr (Part::kCutsBelow) seen.raise_begin(Part::key_begin(first));
    if constexpr (Part::kCutsAbove) seen.lower_end(Part::key_end(last));
  }

  template <class Part>
  __device__ void narrow_queries(Interval& seeing, int first, int last) const {
    if constexpr (Part::kCutsAbove) seeing.raise_begin(Part::query_begin(first));
    if constexpr (Part::kCutsBelow) seeing.lower_end(Part::query_end(last));
  }
};
