// The emulator's engine: executes CUDA kernels on the CPU, every CUDA thread a fiber. One translation unit,
// so that the hot path (a collective: note the arguments, switch) is inlined across the parts.
#include "engine/machine.h"
#include "engine/failure.h"
#include "engine/scheduler.h"
#include "engine/memory.h"
#include "engine/barriers.h"
#include "engine/collectives.h"
#include "engine/arithmetic.h"
#include "engine/matrix.h"
#include "engine/async_copies.h"
#include "engine/hooks.h"
#include "engine/run.h"
