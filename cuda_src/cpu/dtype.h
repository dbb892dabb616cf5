// Types of the caller's arrays.
#pragma once
#include <stdint.h>

enum DType : int64_t { kFloat16, kBFloat16, kFloat32, kFloat64 };
