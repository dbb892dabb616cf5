// Threads that help with one call at a time, and sleep in between. They run nothing but the functions of this folder:
// no Python, no signal handler.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>

inline double seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return double(now.tv_sec) + 1e-9 * double(now.tv_nsec);
}

// Waiting threads look for so long before they sleep: to wake one takes 50 us and more on a virtual CPU, and the next
// call of a loop comes sooner (measured: 8 heads, S = 64, 86 us a call instead of 135). They yield to whoever else
// wants the CPU: beside two busy processes on two CPUs, steps of examples/char_transformer.py take the same time
// without.
constexpr double kSpinSeconds = 200e-6;

template <class Condition>
bool spin_until(Condition condition) {
  for (const double stop = seconds() + kSpinSeconds; !condition();) {
    if (seconds() > stop) return false;
    sched_yield();
  }
  return true;
}

class Pool {
 public:
  static constexpr int64_t kMaxThreads = 1024;

  typedef void (*Function)(void* context, int64_t worker);

  // Calls function(context, worker) as worker 0 on this thread, and as worker 1, 2, ... on up to `helpers` others; all
  // have returned when this does. Helpers that wake too late are not waited for, and a caller that finds the pool at
  // work for another works alone: whoever comes must be able to do everything.
  void run(int64_t helpers, Function function, void* context) {
    if (helpers <= 0 || pthread_mutex_trylock(&caller_) != 0) return function(context, 0);
    pthread_mutex_lock(&mutex_);
    while (threads_ < helpers && threads_ < kMaxThreads && start_thread()) ++threads_;
    keep_helpers_off_this_cpu();
    function_ = function;
    context_ = context;
    wanted_ = helpers;
    begun_ = 0;
    __atomic_add_fetch(&job_, 1, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&wake_);
    pthread_mutex_unlock(&mutex_);
    function(context, 0);
    pthread_mutex_lock(&mutex_);
    wanted_ = begun_;  // nobody begins from here on
    pthread_mutex_unlock(&mutex_);
    const auto done = [this] { return __atomic_load_n(&ended_, __ATOMIC_ACQUIRE) == begun_; };
    if (!spin_until(done)) {
      pthread_mutex_lock(&mutex_);
      while (!done()) pthread_cond_wait(&done_, &mutex_);
      pthread_mutex_unlock(&mutex_);
    }
    ended_ = 0;
    pthread_mutex_unlock(&caller_);
  }

  // In a forked child, which has none of the threads.
  void forget() { *this = Pool(); }

 private:
  static void* help_forever(void* pool) {
    for (uint64_t seen = 0;;) seen = static_cast<Pool*>(pool)->help(seen);
  }

  // Waits for another job than `seen`, and takes part if it wants one more; returns the job.
  uint64_t help(uint64_t seen) {
    spin_until([=] { return __atomic_load_n(&job_, __ATOMIC_ACQUIRE) != seen; });
    pthread_mutex_lock(&mutex_);
    while (job_ == seen) pthread_cond_wait(&wake_, &mutex_);
    seen = job_;
    const int64_t worker = begun_ < wanted_ ? ++begun_ : 0;
    const Function function = function_;
    void* const context = context_;
    pthread_mutex_unlock(&mutex_);
    if (worker == 0) return seen;
    function(context, worker);
    pthread_mutex_lock(&mutex_);
    __atomic_add_fetch(&ended_, 1, __ATOMIC_RELEASE);
    pthread_cond_signal(&done_);
    pthread_mutex_unlock(&mutex_);
    return seen;
  }

  bool start_thread() {
    pthread_attr_t attributes;
    sigset_t all, before;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // which the new thread inherits: signals are for the others
    const bool started = pthread_create(thread_ + threads_, &attributes, help_forever, this) == 0;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_attr_destroy(&attributes);
    return started;
  }

  // A scheduler that packs threads, as on some virtual machines, wakes a helper on the CPU that this thread is about to
  // keep busy, and moves it 2 ms later (measured; 0.08 ms with the CPUs that are left to it named).
  void keep_helpers_off_this_cpu() {
#if defined(__linux__)
    cpu_set_t cpus;
    const int cpu = sched_getcpu();
    if (pthread_getaffinity_np(pthread_self(), sizeof cpus, &cpus) != 0) return;
    if (cpu < 0 || !CPU_ISSET(cpu, &cpus) || CPU_COUNT(&cpus) == 1) return;
    CPU_CLR(cpu, &cpus);
    if (placed_ == threads_ && CPU_EQUAL(&cpus, &cpus_)) return;
    for (int64_t i = 0; i < threads_; ++i) pthread_setaffinity_np(thread_[i], sizeof cpus, &cpus);
    placed_ = threads_;
    cpus_ = cpus;
#endif
  }

  pthread_mutex_t caller_ = PTHREAD_MUTEX_INITIALIZER;  // held by the call that the pool is at work for
  pthread_mutex_t mutex_ = PTHREAD_MUTEX_INITIALIZER;   // of all that follows
  pthread_cond_t wake_ = PTHREAD_COND_INITIALIZER, done_ = PTHREAD_COND_INITIALIZER;
  Function function_ = nullptr;
  void* context_ = nullptr;
  uint64_t job_ = 0;
  int64_t threads_ = 0, wanted_ = 0, begun_ = 0, ended_ = 0;
  pthread_t thread_[kMaxThreads] = {};
#if defined(__linux__)
  int64_t placed_ = 0;  // threads that are kept to these CPUs
  cpu_set_t cpus_ = {};
#endif
};
