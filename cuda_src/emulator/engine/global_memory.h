// The launch's global buffers: bounds, bytes moved, and races between all of the launch's threads. The shadow
// is kept by pages of addresses that were touched, so a view that spans gigabytes costs what the kernel
// touches of it.
#pragma once
#include "clocks.h"
#include "types.h"

namespace emulator {

class GlobalMemory {
 public:
  // Buffers may overlap (q, k and v as views of one array): the addresses are cut into segments, and a
  // segment may be written when any of its buffers may.
  void reset(const EmulatorBuffer* buffers, size_t count) {
    buffers_.assign(buffers, buffers + count);
    bytes.assign(count, EmulatorBytes{});
    pages_.clear();
    last_page_ = nullptr;
    std::vector<uint64_t> cuts;
    for (const EmulatorBuffer& b : buffers_) {
      cuts.push_back(b.address);
      cuts.push_back(b.address + b.bytes);
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
    segments_.clear();
    for (size_t i = 0; i + 1 < cuts.size(); ++i) {
      Segment segment{cuts[i], cuts[i + 1], -1, -1};
      for (int b = static_cast<int>(count) - 1; b >= 0; --b) {
        if (buffers_[b].address > cuts[i] || buffers_[b].address + buffers_[b].bytes <= cuts[i]) continue;
        segment.reader = b;
        if (buffers_[b].writable) segment.writer = b;
      }
      if (segment.reader >= 0) segments_.push_back(segment);
    }
    last_ = 0;
  }

  bool contains(uint64_t address, uint32_t size) {
    for (const uint64_t end = address + size; address < end;) {
      const Segment* segment = find(address);
      if (!segment) return false;
      address = segment->end;
    }
    return true;
  }

  void count(uint64_t address, uint32_t size, Access kind) {
    const Segment* segment = find(address);
    if (!segment) return;
    if (kind == Access::kRead)
      bytes[segment->reader].read += size;
    else
      bytes[segment->writer >= 0 ? segment->writer : segment->reader].written += size;
  }

  bool check(const Clocks& clocks, uint32_t block, int thread, uint64_t address, uint32_t size, Access kind,
             SiteId site, Finding* finding) {
    for (uint64_t begin = address, end = address + size; begin < end;) {
      const Segment* segment = find(begin);
      if (kind != Access::kRead && segment->writer < 0) {
        *finding = {"read_only",
                    format("%s of %s at {0}, a read-only buffer", name(kind), place(begin).c_str()),
                    {thread},
                    {site}};
        return false;
      }
      if (segment->writer < 0) {
        begin = segment->end;
        continue;
      }
      const uint64_t stop = std::min({end, segment->end, (begin / kCellBytes + 1) * kCellBytes});
      const uint8_t mask = static_cast<uint8_t>(((1 << (stop - begin)) - 1) << begin % kCellBytes);
      if (!check_cell(clocks, block, thread, begin, mask, kind, site, finding)) return false;
      begin = stop;
    }
    return true;
  }

  Finding out_of_bounds(uint64_t address, uint32_t size, Access kind, int thread, SiteId site) const {
    return {"out_of_bounds",
            format("%s of %u bytes at %s, at {0}", name(kind), size, place(address).c_str()),
            {thread},
            {site}};
  }

  // "out+32 (a buffer of 32 bytes)": relative to the buffer that holds the address, else to the nearest.
  std::string place(uint64_t address) const {
    const EmulatorBuffer* nearest = nullptr;
    uint64_t least = ~uint64_t{0};
    for (const EmulatorBuffer& b : buffers_) {
      const uint64_t end = b.address + b.bytes;
      const uint64_t distance = address < b.address ? b.address - address
                                : address >= end    ? address - end + 1
                                                    : 0;
      if (distance < least) least = distance, nearest = &b;
    }
    if (!nearest || least > uint64_t{1} << 40)
      return format("address 0x%llx, in no buffer", static_cast<unsigned long long>(address));
    return format("%s%+lld (a buffer of %llu bytes)", nearest->name,
                  static_cast<long long>(address - nearest->address),
                  static_cast<unsigned long long>(nearest->bytes));
  }

  std::vector<EmulatorBytes> bytes;  // by buffer

 private:
  static constexpr uint64_t kCellBytes = 2, kPageBytes = 1024;
  struct Segment {
    uint64_t begin, end;
    int reader, writer;  // the first buffer here, the first writable one (-1: none)
  };
  struct Past {  // an earlier access; block is 1-based
    uint32_t block, time;
    SiteId site;
    uint16_t thread;
    uint8_t mask;  // of the cell's bytes
    Access kind;
  };
  using Cell = std::vector<Past>;  // those that a later access may race with
  struct Page {
    Cell cells[kPageBytes / kCellBytes];
  };

  static const char* name(Access kind) {
    return kind == Access::kRead ? "read" : kind == Access::kWrite ? "write" : "atomic";
  }

  const Segment* find(uint64_t address) {
    const auto inside = [&](const Segment& s) { return address >= s.begin && address < s.end; };
    if (last_ < segments_.size() && inside(segments_[last_])) return &segments_[last_];
    const auto after = std::upper_bound(segments_.begin(), segments_.end(), address,
                                        [](uint64_t a, const Segment& s) { return a < s.begin; });
    if (after == segments_.begin() || !inside(*(after - 1))) return nullptr;
    last_ = static_cast<size_t>(after - segments_.begin() - 1);
    return &segments_[last_];
  }

  Cell& cell(uint64_t address) {
    const uint64_t page = address / kPageBytes;
    if (!last_page_ || page != last_page_number_) {
      std::unique_ptr<Page>& slot = pages_[page];
      if (!slot) slot.reset(new Page());
      last_page_ = slot.get();
      last_page_number_ = page;
    }
    return last_page_->cells[address % kPageBytes / kCellBytes];
  }

  // Blocks of one launch are never ordered with each other; threads of one block are, by barriers.
  static bool ordered(const Clocks& clocks, const Past& past, uint32_t block, int thread) {
    return past.block == block && clocks.ordered(past.thread, past.time, thread);
  }

  bool check_cell(const Clocks& clocks, uint32_t block, int thread, uint64_t address, uint8_t mask,
                  Access kind, SiteId site, Finding* finding) {
    Cell& c = cell(address);
    for (const Past& past : c) {
      const bool may_meet = past.kind == kind && kind != Access::kWrite;
      if (past.mask & mask && !may_meet && !ordered(clocks, past, block, thread))
        return race(address, block, thread, kind, site, past, finding);
    }
    // Forget what this access stands for: what races with that races with this too. Blocks run one after another:
    // whatever comes races with any access of an earlier block, one is enough.
    uint8_t earlier_blocks[3] = {};
    const auto forgotten = [&](const Past& past) {
      if (past.block == block)
        return (past.kind == kind || kind == Access::kWrite) && !(past.mask & ~mask) &&
               clocks.ordered(past.thread, past.time, thread);
      uint8_t& known = earlier_blocks[static_cast<int>(past.kind)];
      const bool again = !(past.mask & ~known);
      known |= past.mask;
      return again;
    };
    size_t kept = 0;
    for (const Past& past : c)
      if (!forgotten(past)) c[kept++] = past;
    c.resize(kept);
    c.push_back({block, clocks.now(thread), site, static_cast<uint16_t>(thread), mask, kind});
    return true;
  }

  bool race(uint64_t address, uint32_t block, int thread, Access kind, SiteId site, const Past& past,
            Finding* finding) const {
    const std::string where =
        past.block == block ? "" : format(" of another block (number %u)", past.block - 1);
    *finding = {"global_race",
                format("%s of %s by thread %d at {0} is not ordered after the %s by thread %d%s at {1}",
                       name(kind), place(address).c_str(), thread, name(past.kind), past.thread, where.c_str()),
                {past.thread, thread},
                {site, past.site}};
    return false;
  }

  std::vector<EmulatorBuffer> buffers_;
  std::vector<Segment> segments_;
  size_t last_ = 0;
  std::unordered_map<uint64_t, std::unique_ptr<Page>> pages_;
  Page* last_page_ = nullptr;
  uint64_t last_page_number_ = 0;
};

}  // namespace emulator
