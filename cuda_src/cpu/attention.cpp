// Entry points of the CPU backend's compiled tier, for one type of arithmetic: NUMBER, float or double. A call computes
// for a while and says whether work is left, so that its caller can heed an interrupt; between calls no thread is at
// work.
#include "cpu/backward.h"
#include "cpu/digest.h"
#include "cpu/forward.h"
#include "cpu/pool.h"
#include "cpu/term.h"

static Pool pool;

__attribute__((constructor)) static void watch_forks() {
  pthread_atfork(nullptr, nullptr, [] { pool.forget(); });
}

// Threads meet at the end, and then wait for the longest item: 60 ms of a backward over 8192 positions.
constexpr double kSliceSeconds = 1;

// Takes items until none is left or time is up.
template <class Job>
static int64_t work(Call& call, const Job& job) {
  struct Context {
    Call& call;
    const Job& job;
    double stop;
  } context = {call, job, seconds() + kSliceSeconds};
  if (call.next == 0) job.begin();
  pool.run(call.workers(job.items() - call.next) - 1, [](void* pointer, int64_t worker) {
    const Context& context = *static_cast<Context*>(pointer);
    do {
      const int64_t item = __atomic_fetch_add(&context.call.next, 1, __ATOMIC_RELAXED);
      if (item >= context.job.items()) return;
      context.job.run(item, worker);
    } while (seconds() < context.stop);
  }, &context);
  return call.next < job.items();
}

typedef NUMBER Number;

// Of a panel of queries. 8 x 3 of 32 registers load 11 vectors and scalars for 24 multiply-adds where 12 x 2 load 14,
// and leave no row over where the head dimension is a multiple of 8. 4 x 3 would take all of 16, and clang spills them.
constexpr int kPanelVectors = REGISTERS == 32 ? 3 : 2;

template <class E, class Use>
static int64_t with_panels(const Call& call, Use use) {
  using Block = PanelBlock<Number, E, kPanelVectors>;
  return use(ForwardJob<Number, Block>(call, ForwardPlan(*call.shape, Block::kPanel)));
}

// use(job) for the job that fits the call.
template <class Use>
static int64_t with_forward(const Call& call, Use use) {
  const ForwardPlan rows(*call.shape, 1), narrow(*call.shape, kLanes<Number>);
  if (rows.columns() <= kFewRows) return use(ForwardJob<Number, RowBlock<Number>>(call, rows));
  if (narrow.columns() <= (kPanelVectors - 1) * kLanes<Number>) {
    return use(ForwardJob<Number, PanelBlock<Number, Number, 1>>(call, narrow));
  }
  if constexpr (kUsesPairs && sizeof(Number) == sizeof(Pair)) {
    if (call.shape->dtype == kBFloat16) return with_panels<Pair>(call, use);
  }
  return with_panels<Number>(call, use);
}

template <class Use>
static int64_t with_backward(const Call& call, Use use) {
  return use(BackwardJob<Number>(call, BackwardPlan(*call.shape, BackwardBlock<Number>::kPanel)));
}

template <class Use>
static int64_t with_term(const Call& call, Use use) {
  return use(TermJob<Number>(call, BackwardPlan(*call.shape, BackwardBlock<Number>::kPanel)));
}

extern "C" {

// Bytes of memory that a call needs, of which `memory` is null.
int64_t attention_forward_memory(const Call* call) {
  return with_forward(*call, [](const auto& job) { return job.bytes(); });
}
int64_t attention_backward_memory(const Call* call) {
  return with_backward(*call, [](const auto& job) { return job.bytes(); });
}
int64_t attention_term_memory(const Call* call) {
  return with_term(*call, [](const auto& job) { return job.bytes(); });
}

// Whether work is left: then they want to be called again.
int64_t attention_forward(Call* call) {
  return with_forward(*call, [=](const auto& job) { return work(*call, job); });
}
int64_t attention_backward(Call* call) {
  return with_backward(*call, [=](const auto& job) { return work(*call, job); });
}
int64_t attention_term(Call* call) {
  return with_term(*call, [=](const auto& job) { return work(*call, job); });
}

// The same of what q, k, v, out and lse hold: five numbers for each head of q, to `memory`.
int64_t attention_digest(Call* call) { return work(*call, DigestJob(*call)); }
}
