// Mistakes end the launch: the finding is kept, and control goes back to Machine::run, leaving all fibers
// where they are.
#pragma once
#include "machine.h"

namespace emulator {

inline SiteId Machine::named_site(const Site& wanted) {
  NamedSite& cached = site_cache[reinterpret_cast<uintptr_t>(wanted.call) % 256];
  if (cached.id && cached.site.call == wanted.call && cached.site == wanted) return cached.id;
  const auto same = [&](const Site& s) { return s.call == wanted.call && s == wanted; };
  const auto at = std::find_if(named_sites.begin(), named_sites.end(), same);
  const auto index = static_cast<SiteId>(at - named_sites.begin());
  if (at == named_sites.end()) named_sites.push_back(wanted);
  cached = {wanted, kNamedSite | index};
  return cached.id;
}

inline EmulatorSite Machine::site(SiteId id) const {
  if (!(id & kNamedSite)) return {nullptr, 0, id};
  const Site& named = named_sites[id & ~kNamedSite];
  return {named.file, static_cast<uint64_t>(named.line), instruction_before(named.call)};
}

__attribute__((noinline)) inline void Machine::fail(Finding finding) {
  if (!failed) failure = std::move(finding);
  failed = true;
  switch_to(nullptr);
  __builtin_unreachable();
}

inline void Machine::fail(const char* kind, std::string text, Site at) {
  fail({kind, std::move(text), {current->thread}, {named_site(at)}});
}

// "0-31, 64-127"
inline std::string ranges(const std::vector<int>& sorted) {
  std::string text;
  for (size_t i = 0; i < sorted.size();) {
    size_t j = i;
    while (j + 1 < sorted.size() && sorted[j + 1] == sorted[j] + 1) ++j;
    text += text.empty() ? "" : ", ";
    text += i == j ? format("%d", sorted[i]) : format("%d-%d", sorted[i], sorted[j]);
    i = j + 1;
  }
  return text;
}

__attribute__((noinline)) inline void Machine::report_deadlock() {
  struct Group {
    std::string what;
    Site at;
    std::vector<int> threads;
  };
  std::vector<Group> groups;
  Finding finding{"deadlock", "no thread can go on:", {}, {}};
  bool divergent = false;
  for (int t = 0; t < threads; ++t) {
    const Fiber& f = *fibers[t];
    const bool waits = f.state != State::kReturned;
    std::string what = !waits                      ? "have returned"
                       : f.waiting_id < 0          ? format("wait in %s", f.waiting_in)
                       : !strcmp(f.waiting_in, "") ? "wait in __syncthreads"
                                                   : format("wait at barrier %d", f.waiting_id);
    const Site at = waits ? f.waiting_at : Site{"", 0};
    if (waits) finding.threads.push_back(t);
    divergent |= waits && f.waiting_id == 0;
    const auto same = [&](const Group& g) { return g.what == what && g.at == at; };
    const auto group = std::find_if(groups.begin(), groups.end(), same);
    if (group == groups.end())
      groups.push_back({std::move(what), at, {t}});
    else
      group->threads.push_back(t);
  }
  if (divergent) {
    finding.kind = "barrier_divergence";
    finding.text = "not every thread of the block reaches the same barrier:";
  }
  for (const Group& g : groups) {
    finding.text += format("\n  threads %s %s", ranges(g.threads).c_str(), g.what.c_str());
    if (!g.at.line) continue;
    finding.text += format(" at {%zu}", finding.sites.size());
    finding.sites.push_back(named_site(g.at));
  }
  fail(std::move(finding));
}

}  // namespace emulator
