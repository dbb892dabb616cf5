// Query i sees key j when mask_mod(b, h, i, j, ...) is true, by functions that are compiled for the one that was traced
// (cpu/mods.h), and a table of the blocks of kBlock queries and keys: 0 where none is seen, 2 where all are.
#pragma once
#include "cpu/mask.h"
#include "cpu/place.h"

struct BlockTable {
  char* data;  // Arrays::mask_blocks
  int64_t batch_stride, head_stride, row_stride;
};

struct MaskModParams {
  int64_t heads;  // of a batch element; 0: there is no function
  BlockTable table;
};

class MaskMod : public Unbounded {
 public:
  static constexpr bool kElementwise = true;
  static constexpr int64_t kBlock = 64;

  template <class Place>
  MaskMod(const MaskModParams& params, const Place& place)
      : panel_(place.arrays.mask_panel),
        row_((Row)place.arrays.mask_row),
        params_(place.arrays.mask_params),
        batch_(params.heads ? place.head / params.heads : 0),
        head_(params.heads ? place.head % params.heads : 0),
        last_key_(place.shape.seqlen_k - 1),
        row_stride_(params.table.row_stride),
        blocks_((const uint8_t*)place.arrays.mask_blocks) {
    if (blocks_) blocks_ += batch_ * params.table.batch_stride + head_ * params.table.head_stride;
  }

  bool shows(int64_t query, int64_t key) const {
    uint8_t seen;
    return !row_ || row_(params_, batch_, head_, query, key, 1, last_key_, &seen, 0) != kNone;
  }

  // By whole blocks.
  Span keys(int64_t low, int64_t high, Span among) const {
    if (!blocks_) return among;
    const auto hides = [=](int64_t key) { return of_blocks(low, high, key, 1) == kNone; };
    while (among.begin < among.end && hides(among.begin)) {
      among.begin = clamp((among.begin / kBlock + 1) * kBlock, 0, among.end);
    }
    while (among.begin < among.end && hides(among.end - 1)) {
      among.end = clamp((among.end - 1) / kBlock * kBlock, among.begin, among.end);
    }
    return among;
  }

  template <class T>
  Share shown(const Integer<T>* rows, int64_t queries, int64_t first, int64_t keys, uint8_t* tile, Share before) const {
    if (!blocks_ || before == kNone || keys <= 0) return before;
    int64_t low = rows[0], high = rows[0];
    for (int64_t n = 1; n < queries; ++n) low = rows[n] < low ? rows[n] : low, high = rows[n] > high ? rows[n] : high;
    Share share = of_blocks(low, high, first, keys);
    if (share == kSome) {
      const bool joins = before == kSome;
      share = queries == 1 ? (Share)row_(params_, batch_, head_, rows[0], first, keys, last_key_, tile, joins)
                           : (Share)((Panel<T>)panel_)(params_, batch_, head_, rows, queries, first, keys, last_key_,
                                                       tile, joins);
    }
    return share < before ? share : before;
  }

 private:
  template <class T>
  using Panel = int64_t (*)(const void*, int64_t, int64_t, const Integer<T>*, int64_t, int64_t, int64_t, int64_t,
                            uint8_t*, int64_t);
  using Row = int64_t (*)(const void*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint8_t*, int64_t);

  Share of_blocks(int64_t low, int64_t high, int64_t first, int64_t keys) const {
    const int64_t last = clamp(first + keys - 1, 0, last_key_);
    bool all = true, some = false;
    for (int64_t m = low / kBlock; m <= high / kBlock; ++m) {
      for (int64_t n = first / kBlock; n <= last / kBlock; ++n) {
        const uint8_t share = blocks_[m * row_stride_ + n];
        all &= share == kAll, some |= share != kNone;
      }
    }
    return all ? kAll : some ? kSome : kNone;
  }

  const char* panel_;
  Row row_;
  const void* params_;
  int64_t batch_, head_, last_key_, row_stride_;
  const uint8_t* blocks_;  // of the head
};
