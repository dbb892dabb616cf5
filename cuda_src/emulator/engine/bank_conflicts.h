// Shared-memory bank conflicts. The model: 32 banks of 4 bytes. A warp's access of up to 4 bytes a lane is
// one transaction; 8 bytes a lane are two (half-warps), 16 bytes four (quarter-warps). A transaction takes as
// many wavefronts as its busiest bank has different 4-byte words (lanes that want the same word share it);
// all but the first are conflicts.
//
// Lanes run one after another, so a warp's access has to be put together: the n-th access of each lane from
// one site since the warp's last collective belong to one instruction. With control flow that diverges inside
// a warp between two collectives this is an approximation.
#pragma once
#include "types.h"

namespace emulator {

class BankConflicts {
 public:
  void reset(int threads) {
    index_.clear();
    std::fill(std::begin(recent_), std::end(recent_), Recent{0, ~0u});
    sites_.clear();
    warps_.clear();
    warps_.resize((threads + kWarpSize - 1) / kWarpSize);
    threads_ = threads;
  }

  // Records an access; true when the lane has run so far ahead of its warp that it had better let others run.
  bool access(int thread, uint32_t offset, uint32_t bytes, SiteId site) {
    Warp& warp = warps_[thread / kWarpSize];
    const uint32_t index = site_index(site);
    if (warp.streams.size() <= index) warp.streams.resize(index + 1);
    Stream& stream = warp.streams[index];
    const int lane = thread % kWarpSize;
    if (stream.instructions.empty()) warp.touched.push_back(index);
    const uint32_t n = stream.seen[lane]++;
    if (stream.instructions.size() <= n) stream.instructions.resize(n + 1);
    Instruction& instruction = stream.instructions[n];
    instruction.lanes |= 1u << lane;
    instruction.bytes = static_cast<uint8_t>(bytes);
    instruction.offsets[lane] = offset;
    return stream.instructions.size() > kFarAhead && instruction.lanes != live_lanes(thread / kWarpSize);
  }

  // ldmatrix and stmatrix move each 8x8 matrix as eight 16-byte rows, in one transaction.
  void matrix(const uint32_t (&rows)[8], SiteId site) {
    EmulatorConflict& total = sites_[site_index(site)];
    ++total.instructions;
    total.wavefronts += wavefronts(rows, 0xffu, 0, 8, 16) - 1;
  }

  // The warp has met: what follows is a new stretch of code for all of its lanes.
  void flush(int warp_index) {
    Warp& warp = warps_[warp_index];
    for (uint32_t index : warp.touched) {
      Stream& stream = warp.streams[index];
      for (const Instruction& i : stream.instructions) add(sites_[index], i);
      stream.instructions.clear();
      memset(stream.seen, 0, sizeof stream.seen);
    }
    warp.touched.clear();
  }
  void flush_all() {
    for (size_t w = 0; w < warps_.size(); ++w) flush(static_cast<int>(w));
  }

  const std::vector<EmulatorConflict>& sites() const { return sites_; }  // site.offset: the SiteId

 private:
  static constexpr size_t kFarAhead = 4096;
  struct Instruction {
    uint32_t lanes = 0;
    uint8_t bytes = 0;
    uint32_t offsets[kWarpSize];
  };
  struct Stream {  // the accesses of one warp from one site since its last collective
    uint32_t seen[kWarpSize] = {};
    std::vector<Instruction> instructions;
  };
  struct Warp {
    std::vector<Stream> streams;
    std::vector<uint32_t> touched;
  };

  uint32_t live_lanes(int warp) const {
    const int lanes = threads_ - warp * kWarpSize;
    return lanes >= kWarpSize ? 0xffffffffu : (1u << lanes) - 1;
  }

  uint32_t site_index(SiteId site) {
    Recent& recent = recent_[site % 256];
    if (recent.site != site || recent.index >= sites_.size()) recent = {site, find_site(site)};
    return recent.index;
  }
  uint32_t find_site(SiteId site) {
    const auto [at, added] = index_.try_emplace(site, static_cast<uint32_t>(sites_.size()));
    if (added) sites_.push_back({{nullptr, 0, site}, 0, 0});
    return at->second;
  }

  static uint32_t wavefronts(const uint32_t* offsets, uint32_t lanes, int begin, int end, uint32_t bytes) {
    uint32_t words[32][kWarpSize], count[32] = {}, most = 0;  // by bank; a lane has one word in a bank
    for (int lane = begin; lane < end; ++lane) {
      if (!(lanes >> lane & 1)) continue;
      for (uint32_t word = offsets[lane] / 4; word <= (offsets[lane] + bytes - 1) / 4; ++word) {
        const uint32_t bank = word % 32;
        uint32_t* const known_end = words[bank] + count[bank];
        if (std::find(words[bank], known_end, word) != known_end) continue;
        *known_end = word;
        most = std::max(most, ++count[bank]);
      }
    }
    return most;
  }

  static void add(EmulatorConflict& total, const Instruction& instruction) {
    const int lanes = instruction.bytes <= 4 ? 32 : 128 / instruction.bytes;
    ++total.instructions;
    for (int begin = 0; begin < kWarpSize; begin += lanes) {
      const uint32_t needed =
          wavefronts(instruction.offsets, instruction.lanes, begin, begin + lanes, instruction.bytes);
      if (needed > 1) total.wavefronts += needed - 1;
    }
  }

  struct Recent {
    SiteId site;
    uint32_t index;
  };

  int threads_ = 0;
  std::unordered_map<SiteId, uint32_t> index_;
  Recent recent_[256];  // the map's answers: it is asked at every access
  std::vector<EmulatorConflict> sites_;
  std::vector<Warp> warps_;
};

}  // namespace emulator
