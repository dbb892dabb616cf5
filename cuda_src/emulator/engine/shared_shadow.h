// What the checker knows of each word of the block's shared memory: who wrote it last, who has read it since,
// whether a cp.async to it is under way. Byte masks keep threads apart that use different bytes of one word;
// of two threads that write such bytes, or add to one word, only the later is remembered (4-byte words cost
// half the time of 2-byte ones).
#pragma once
#include "clocks.h"
#include "types.h"

namespace emulator {

class SharedShadow {
 public:
  void reset(size_t bytes, int threads) {
    bytes_ = bytes;
    warps_ = (threads + kWarpSize - 1) / kWarpSize;
    cells_.assign((bytes + kCellBytes - 1) / kCellBytes, Cell{});
    reads_.assign(cells_.size() * warps_, Reads{});
  }

  // True, or a finding: the access may not happen now.
  bool access(const Clocks& clocks, int thread, size_t offset, uint32_t bytes, Access kind, SiteId site,
              Finding* finding) {
    if (offset + bytes > bytes_) {
      *finding = {"out_of_bounds",
                  format("%s of %u bytes at shared+%zu, but the block has %zu bytes of shared memory, at {0}",
                         name(kind), bytes, offset, bytes_),
                  {thread},
                  {site}};
      return false;
    }
    const size_t first = offset / kCellBytes, last = (offset + bytes - 1) / kCellBytes;
    for (size_t index = first; index <= last; ++index) {
      uint8_t mask = kWholeCell;
      if (index == first) mask &= static_cast<uint8_t>(kWholeCell << offset % kCellBytes);
      if (index == last)
        mask &= static_cast<uint8_t>(kWholeCell >> (kCellBytes - 1 - (offset + bytes - 1) % kCellBytes));
      if (!access_cell(clocks, thread, index, mask, kind, site, finding)) return false;
    }
    return true;
  }

  void begin_copy(size_t offset, uint32_t bytes) {
    for_cells(offset, bytes, [](Cell& cell) { cell.in_flight = true; });
  }
  // The copy has landed: from now on it counts as written by `thread`, at this time.
  void end_copy(const Clocks& clocks, int thread, size_t offset, uint32_t bytes) {
    for_cells(offset, bytes, [&](Cell& cell) {
      cell.in_flight = false;
      cell.write_time = clocks.now(thread);
    });
  }

 private:
  static constexpr size_t kCellBytes = 4;
  static constexpr uint8_t kWholeCell = (1 << kCellBytes) - 1;
  struct Cell {
    uint32_t write_time;
    SiteId write_site;
    uint16_t writer;
    uint8_t initialised, write_mask;  // a bit for each byte: ever written, written by the last write
    bool in_flight, atomic;
    uint32_t reader_warps;
  };
  // The two latest readers of one warp. Two suffice: a barrier takes a warp's lanes together, so when the
  // latest reader is ordered before a write, so are those before it, except when that reader is the writer
  // itself.
  struct Reads {
    struct Reader {
      uint32_t time;  // 0: none
      uint16_t thread;
      uint8_t mask;
    } latest[2];
    SiteId site;
  };

  static const char* name(Access kind) {
    return kind == Access::kRead ? "read" : kind == Access::kWrite ? "write" : "atomic";
  }

  // The offset of the first of these bytes of a word, by which a finding names the member that it concerns.
  static size_t first_byte(size_t index, uint32_t mask) { return index * kCellBytes + __builtin_ctz(mask); }

  template <class Function>
  void for_cells(size_t offset, uint32_t bytes, Function function) {
    for (size_t i = offset / kCellBytes; i < (offset + bytes + kCellBytes - 1) / kCellBytes; ++i)
      function(cells_[i]);
  }

  bool access_cell(const Clocks& clocks, int thread, size_t index, uint8_t mask, Access kind, SiteId site,
                   Finding* finding) {
    Cell& cell = cells_[index];
    if (cell.in_flight) {
      *finding = {
          "async_copy",
          format(
              "%s of shared+%zu at {0} while the cp.async issued by thread %d at {1} has not been waited for",
              name(kind), first_byte(index, mask), cell.writer),
          {cell.writer, thread},
          {site, cell.write_site}};
      return false;
    }
    if (kind != Access::kWrite && mask & ~cell.initialised) {
      *finding = {"uninitialised",
                  format("%s of shared+%zu at {0}, which the block has never written", name(kind),
                         first_byte(index, mask & ~cell.initialised)),
                  {thread},
                  {site}};
      return false;
    }
    const bool both_atomic = kind == Access::kAtomic && cell.atomic;
    if (cell.write_mask & mask && !both_atomic && !clocks.ordered(cell.writer, cell.write_time, thread))
      return race(first_byte(index, cell.write_mask & mask), thread, kind, site, cell.writer, "write",
                  cell.write_site, finding);
    if (kind == Access::kRead) {
      add_reader(reads(thread / kWarpSize, index), cell, thread, clocks.now(thread), mask, site);
      return true;
    }
    for (uint32_t warps = cell.reader_warps; warps; warps &= warps - 1) {
      const Reads& r = reads(__builtin_ctz(warps), index);
      for (const Reads::Reader& reader : r.latest)
        if (reader.mask & mask && !clocks.ordered(reader.thread, reader.time, thread))
          return race(first_byte(index, reader.mask & mask), thread, kind, site, reader.thread, "read", r.site,
                      finding);
    }
    if (mask == kWholeCell) cell.reader_warps = 0;
    cell.writer = static_cast<uint16_t>(thread);
    cell.write_time = clocks.now(thread);
    cell.write_site = site;
    cell.write_mask = mask;
    cell.initialised |= mask;
    cell.atomic = kind == Access::kAtomic;
    return true;
  }

  // By warp first: what one thread touches in one access lies together.
  Reads& reads(int warp, size_t index) { return reads_[warp * cells_.size() + index]; }

  static void add_reader(Reads& reads, Cell& cell, int thread, uint32_t time, uint8_t mask, SiteId site) {
    const uint32_t warp = 1u << thread / kWarpSize;
    Reads::Reader& latest = reads.latest[0];
    if (!(cell.reader_warps & warp)) {
      reads = {};
      cell.reader_warps |= warp;
    } else if (latest.thread != thread) {
      reads.latest[1] = latest;
    } else if (latest.time == time) {
      mask |= latest.mask;
    }
    latest = {time, static_cast<uint16_t>(thread), mask};
    reads.site = site;
  }

  static bool race(size_t offset, int thread, Access kind, SiteId site, int other, const char* other_kind,
                   SiteId other_site, Finding* finding) {
    *finding = {
        "shared_race",
        format("%s of shared+%zu by thread %d at {0} is not ordered after the %s by thread %d at {1}: "
               "a barrier is missing",
               name(kind), offset, thread, other_kind, other),
        {other, thread},
        {site, other_site}};
    return false;
  }

  size_t bytes_ = 0;
  int warps_ = 0;
  std::vector<Cell> cells_;
  std::vector<Reads> reads_;
};

}  // namespace emulator
