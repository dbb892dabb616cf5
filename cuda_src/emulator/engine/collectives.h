// Warp collectives. Each lane leaves its arguments on its own stack and waits; the last to arrive does the
// work for all.
#pragma once
#include "machine.h"

namespace emulator {

// `execute(meeting)` reads and writes through meeting.slots[lane], for the lanes in meeting.mask.
template <class Execute>
inline void collective(Machine& m, const char* operation, uint32_t variant, uint32_t mask, void* slot,
                       Site at, Execute execute) {
  const int warp = m.current->thread / kWarpSize, lane = m.current->thread % kWarpSize;
  mask &= m.live_lanes(warp);
  if (!(mask >> lane & 1))
    m.fail("divergence", format("%s at {0}: lane %d is not in its own mask 0x%08x", operation, lane, mask),
           at);
  std::vector<Meeting>& pending = m.meetings[warp];
  Meeting* meeting = nullptr;
  for (Meeting& other : pending) {
    if (!(other.mask & mask)) continue;
    if (other.mask != mask || other.operation != operation || other.variant != variant ||
        !(other.site == at)) {
      const int thread = warp * kWarpSize + __builtin_ctz(other.arrived);
      m.fail({"divergence",
              format("thread %d is in %s (mask 0x%08x) at {0}, but lanes 0x%08x of its warp are in %s (mask "
                     "0x%08x) at {1}",
                     m.current->thread, operation, mask, other.arrived, other.operation, other.mask),
              {thread, m.current->thread},
              {m.named_site(at), m.named_site(other.site)}});
    }
    meeting = &other;
  }
  if (!meeting) {
    meeting = &pending.emplace_back(Meeting{mask, 0, operation, variant, at, {}});
  }
  meeting->slots[lane] = slot;
  meeting->arrived |= 1u << lane;
  if (meeting->arrived != mask) {
    m.wait(State::kInCollective, operation, -1, at);
    return;
  }
  execute(*meeting);
  if (meeting != &pending.back()) *meeting = pending.back();
  pending.pop_back();
  if (m.counting && mask == m.live_lanes(warp)) m.bank_conflicts.flush(warp);
  for (uint32_t others = mask & ~(1u << lane); others; others &= others - 1)
    m.ready.push(m.fibers[warp * kWarpSize + __builtin_ctz(others)].get());
}

template <class Slot>
inline Slot& slot(const Meeting& meeting, int lane) {
  return *static_cast<Slot*>(meeting.slots[lane]);
}

template <class Function>
inline void for_lanes(uint32_t mask, Function function) {
  for (; mask; mask &= mask - 1) function(__builtin_ctz(mask));
}

struct ShuffleSlot {
  uint64_t value, result;
  uint32_t argument;
  bool in_range;
};

// PTX ISA, shfl.sync: the lane that `lane` reads from, in segments of `width` lanes.
inline int shuffle_source(int mode, int lane, uint32_t argument, int width) {
  const int segment = lane & ~(width - 1);
  switch (mode) {
    case kShuffleIndex:
      return segment + static_cast<int>(argument & static_cast<uint32_t>(width - 1));
    case kShuffleXor:
      return lane ^ static_cast<int>(argument & 31);
    case kShuffleUp:
      return lane - static_cast<int>(argument & 31);
    default:
      return lane + static_cast<int>(argument & 31);
  }
}

inline void execute_shuffle(Machine& m, const Meeting& meeting, int mode, int width) {
  for_lanes(meeting.mask, [&](int lane) {
    ShuffleSlot& mine = slot<ShuffleSlot>(meeting, lane);
    int source = shuffle_source(mode, lane, mine.argument, width);
    const int segment = lane & ~(width - 1);
    // bfly may read an earlier segment, as on the GPU: only the upper end is a limit there.
    mine.in_range = mode == kShuffleUp ? source >= segment : source < segment + width;
    if (!mine.in_range) source = lane;
    if (!(meeting.mask >> source & 1))
      m.fail("divergence",
             format("%s at {0}: lane %d reads lane %d, which takes no part (mask 0x%08x)", meeting.operation,
                    lane, source, meeting.mask),
             meeting.site);
    mine.result = slot<ShuffleSlot>(meeting, source).value;
  });
}

struct VoteSlot {
  bool predicate;
  uint32_t result;
};

}  // namespace emulator

extern "C" {

void emulator_syncwarp(uint32_t mask, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::collective(m, "__syncwarp", 0, mask, nullptr, EMULATOR_HERE, [&](emulator::Meeting& meeting) {
    ++m.counters.syncwarps;
    if (!m.checking) return;
    const int first = m.current->thread / emulator::kWarpSize * emulator::kWarpSize;
    std::vector<emulator::Fiber*> fibers;
    emulator::for_lanes(meeting.mask, [&](int lane) { fibers.push_back(m.fibers[first + lane].get()); });
    m.synchronise(fibers, m.nothing_released);
  });
}

uint64_t emulator_shuffle(uint32_t mask, uint64_t value, int words, int mode, uint32_t argument, int width,
                          int* in_range, const char* file, int line) {
  static const char* const kNames[] = {"shfl.idx", "shfl.bfly", "shfl.up", "shfl.down"};
  emulator::Machine& m = *emulator::machine;
  if (width < 1 || width > 32 || width & (width - 1))
    m.fail("divergence",
           emulator::format("%s at {0}: width %d is no power of two up to 32", kNames[mode], width),
           EMULATOR_HERE);
  emulator::ShuffleSlot slot{value, 0, argument, false};
  emulator::collective(m, kNames[mode], static_cast<uint32_t>(width), mask, &slot, EMULATOR_HERE,
                       [&](emulator::Meeting& meeting) {
                         m.counters.shuffles += static_cast<uint64_t>(words);
                         emulator::execute_shuffle(m, meeting, mode, width);
                       });
  if (in_range) *in_range = slot.in_range;
  return slot.result;
}

uint32_t emulator_vote(uint32_t mask, int predicate, int mode, const char* file, int line) {
  emulator::Machine& m = *emulator::machine;
  emulator::VoteSlot slot{predicate != 0, 0};
  emulator::collective(
      m, "vote", static_cast<uint32_t>(mode), mask, &slot, EMULATOR_HERE, [&](emulator::Meeting& meeting) {
        ++m.counters.votes;
        uint32_t ballot = 0;
        emulator::for_lanes(meeting.mask, [&](int lane) {
          ballot |= uint32_t{emulator::slot<emulator::VoteSlot>(meeting, lane).predicate} << lane;
        });
        const bool any = ballot != 0, all = ballot == meeting.mask;
        const uint32_t result = mode == kVoteBallot ? ballot
                                : mode == kVoteAny  ? any
                                : mode == kVoteAll  ? all
                                                    : all || !any;
        emulator::for_lanes(meeting.mask, [&](int lane) {
          emulator::slot<emulator::VoteSlot>(meeting, lane).result = result;
        });
      });
  return slot.result;
}
}
