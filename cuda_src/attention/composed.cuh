// The parameters of a kernel that is made of components: theirs come last, so that kernels that are made of fewer, or
// of none, take the same. The file that includes this has `Components`.
#pragma once
#include "params.cuh"

template <class Params>
struct Composed : Params {
  Components components;
};
