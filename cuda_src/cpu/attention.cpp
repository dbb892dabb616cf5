// Entry points of the CPU backend's compiled tier. Each does one work item on the calling thread; strides are in
// bytes; `scratch` holds as many bytes as the function of that name returned.
#include "cpu/backward.h"
#include "cpu/forward.h"

extern "C" {

const char* attention_isa() {
#if defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "portable";
#endif
}

int64_t attention_forward_scratch(const Shape* shape, int64_t queries) {
  Scratch scratch(nullptr);
  if (shape->dtype == kFloat64) ForwardScratch<double>(scratch, *shape, queries);
  else ForwardScratch<float>(scratch, *shape, queries);
  return scratch.bytes();
}

int64_t attention_backward_scratch(const Shape* shape, int64_t keys, int64_t queries) {
  Scratch scratch(nullptr);
  if (shape->dtype == kFloat64) BackwardScratch<double>(scratch, *shape, keys, queries);
  else BackwardScratch<float>(scratch, *shape, keys, queries);
  return scratch.bytes();
}

void attention_forward(const Shape* shape, const char* q, const char* k, const char* v, char* out, char* lse,
                       int64_t i0, int64_t queries, void* scratch) {
  auto* forward = shape->dtype == kFloat64 ? forward_block<double> : forward_block<float>;
  forward(*shape, q, k, v, out, lse, i0, queries, scratch);
}

// The four steps of a block of keys. `keys` and `queries` are those that backward_scratch was asked about: blocks may
// be shorter, but lie in scratch as if they were not.
void attention_load_keys(const Shape* shape, const char* k, const char* v, int64_t j0, int64_t key_rows, int64_t keys,
                         int64_t queries, void* scratch) {
  if (shape->dtype == kFloat64) load_keys<double>(*shape, k, v, j0, key_rows, {scratch, *shape, keys, queries});
  else load_keys<float>(*shape, k, v, j0, key_rows, {scratch, *shape, keys, queries});
}

void attention_backward(const Shape* shape, const char* dout, const char* q, const char* out, const char* lse,
                        const char* dlse, int64_t j0, int64_t key_rows, int64_t i0, int64_t query_rows, int64_t keys,
                        int64_t queries, void* scratch) {
  const BackwardHead head = {dout, q, out, lse, dlse};
  if (shape->dtype == kFloat64) {
    backward_block<double>(*shape, head, j0, key_rows, i0, query_rows, {scratch, *shape, keys, queries});
  } else {
    backward_block<float>(*shape, head, j0, key_rows, i0, query_rows, {scratch, *shape, keys, queries});
  }
}

void attention_add_dq(const Shape* shape, void* dq, int64_t i0, int64_t query_rows, int64_t keys, int64_t queries,
                      void* scratch) {
  if (shape->dtype == kFloat64) add_dq<double>(*shape, (double*)dq, i0, query_rows, {scratch, *shape, keys, queries});
  else add_dq<float>(*shape, (float*)dq, i0, query_rows, {scratch, *shape, keys, queries});
}

void attention_store_keys(const Shape* shape, char* dk, char* dv, int64_t j0, int64_t key_rows, int64_t keys,
                          int64_t queries, void* scratch) {
  if (shape->dtype == kFloat64) store_keys<double>(*shape, dk, dv, j0, key_rows, {scratch, *shape, keys, queries});
  else store_keys<float>(*shape, dk, dv, j0, key_rows, {scratch, *shape, keys, queries});
}
}
