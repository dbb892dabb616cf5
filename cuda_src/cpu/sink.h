// What is in the sum of a row beside its keys, as in attention/sink.cuh: a part, which may not be in effect.
#pragma once
#include "cpu/vector.h"

// A row whose sum has a sink too: its log-sum-exp, and what the sums of its values are multiplied by, in place of those
// without it. Both log-sum-exps are natural, -inf of nothing.
template <class T>
void join(T& lse, T& inverse, double logit) {
  const double larger = lse > logit ? double(lse) : logit;
  if (larger == -kInfinity<double>) return;
  const double keys = __builtin_exp(lse - larger), sum = keys + __builtin_exp(logit - larger);
  lse = T(larger + __builtin_log(sum));
  inverse *= T(keys / sum);
}
