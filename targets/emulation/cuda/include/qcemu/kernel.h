// What translated CUDA text is compiled with: the language's words, and its functions on threads.
#pragma once
#include <type_traits>
#include <utility>

#include "arithmetic.h"
#include "engine.h"

// The text is read as by the device pass of nvcc 13.0 for compute capability 9.0.
#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
#define __grid_constant__
#define __builtin_align__(n) alignas(n)

#define __syncthreads() qcemu::block_barrier(__LINE__)
#define __syncwarp(...) qcemu::warp_barrier(qcemu_mask(__VA_ARGS__))
#define __threadfence() ((void)0)
#define __threadfence_block() ((void)0)
#define __activemask() qcemu::active_mask(__LINE__)
#define __cvta_generic_to_shared(p) ((size_t)qcemu::shared_address(p))
#define __ldg(p) (*(p))
#define __ldcs(p) (*(p))
#define __stcs(p, value) ((void)(*(p) = (value)))
#define __trap() qcemu::fault("__trap()")

static inline uint32_t qcemu_mask(uint32_t mask = 0xffffffffu) { return mask; }

// Inside a kernel local constants of the same names hide these: an index is then in a register.
#define QCEMU_INDEX(NAME, FUNCTION)                                                          \
  static const struct {                                                                      \
    struct { operator unsigned() const { return qcemu::FUNCTION().x; } } x;                  \
    struct { operator unsigned() const { return qcemu::FUNCTION().y; } } y;                  \
    struct { operator unsigned() const { return qcemu::FUNCTION().z; } } z;                  \
  } NAME;
QCEMU_INDEX(threadIdx, thread_index)
QCEMU_INDEX(blockIdx, block_index)
QCEMU_INDEX(blockDim, block_size)
QCEMU_INDEX(gridDim, grid_size)
#undef QCEMU_INDEX
static const int warpSize = qcemu::WARP_SIZE;

#ifdef __SANITIZE_THREAD__
#define QCEMU_CHECKED true
#else
#define QCEMU_CHECKED false
#endif
#define QCEMU_EXPORTED __attribute__((visibility("default")))
#define QCEMU_KERNEL_BEGINS                                                                  \
  const dim3 threadIdx = qcemu::thread_index(), blockIdx = qcemu::block_index();             \
  const dim3 blockDim = qcemu::block_size(), gridDim = qcemu::grid_size();                   \
  (void)threadIdx; (void)blockIdx; (void)blockDim; (void)gridDim;

// Code that reads the host's memory, as kernels must not: it stays without checks.
#define QCEMU_UNCHECKED __attribute__((noinline, no_sanitize("thread")))

// Calls a kernel with the values that its array of argument pointers points to.
template <class... A, size_t... I>
QCEMU_UNCHECKED static void qcemu_call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
}
template <class... A>
QCEMU_UNCHECKED static void qcemu_call(void (*kernel)(A...), void** arguments) {
  qcemu_call(kernel, arguments, std::index_sequence_for<A...>());
}

// -------------------------------------------------------------------------------------- shuffles

template <class T>
static inline T qcemu_shuffle(qcemu::Shuffle how, unsigned mask, T value, int operand, int width) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  T result;
  qcemu::shuffle(how, mask, &value, &result, sizeof value, operand, width);
  return result;
}
template <class T>
static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return qcemu_shuffle(qcemu::Shuffle::index, mask, value, lane, width);
}
template <class T>
static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return qcemu_shuffle(qcemu::Shuffle::up, mask, value, (int)delta, width);
}
template <class T>
static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return qcemu_shuffle(qcemu::Shuffle::down, mask, value, (int)delta, width);
}
template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  return qcemu_shuffle(qcemu::Shuffle::butterfly, mask, value, lanes, width);
}
static inline int __any_sync(unsigned mask, int p) { return (int)qcemu::vote(qcemu::Vote::any, mask, p != 0); }
static inline int __all_sync(unsigned mask, int p) { return (int)qcemu::vote(qcemu::Vote::all, mask, p != 0); }
static inline unsigned __ballot_sync(unsigned mask, int p) { return qcemu::vote(qcemu::Vote::ballot, mask, p != 0); }

// --------------------------------------------------------------------------------------- atomics

// Threads change only where they wait, so a plain update is atomic.
#define QCEMU_ATOMIC(NAME, UPDATED)                         \
  template <class T>                                        \
  QCEMU_UNCHECKED static T NAME(T* address, std::decay_t<T> value) { \
    qcemu::check_atomic(address, sizeof(T));                \
    const T old = *address;                                 \
    *address = UPDATED;                                     \
    return old;                                             \
  }
QCEMU_ATOMIC(atomicAdd, old + value)
QCEMU_ATOMIC(atomicMax, old > value ? old : value)
QCEMU_ATOMIC(atomicMin, old < value ? old : value)
QCEMU_ATOMIC(atomicAnd, old & value)
QCEMU_ATOMIC(atomicOr, old | value)
QCEMU_ATOMIC(atomicXor, old ^ value)
QCEMU_ATOMIC(atomicExch, value)
#undef QCEMU_ATOMIC

// ------------------------------------------------------------------- PTX instructions, for ptx.py

// An operand of an asm statement as a 32-bit register.
template <class T>
static inline uint32_t qcemu_register(const T& value) {
  static_assert(sizeof(T) <= 4, "a 32-bit register");
  uint32_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
static inline void qcemu_assign(T& to, uint32_t bits) {
  static_assert(sizeof(T) <= 4, "a 32-bit register");
  memcpy(&to, &bits, sizeof to);
}
// An operand as a value of another type of PTX: the same bits, or the low ones.
template <class To, class From>
static inline To qcemu_as(From value) {
  if constexpr (sizeof(To) == sizeof(From)) return qcemu_bits<To>(value);
  return (To)value;
}
// An operand that is an address in shared memory: a 32-bit one, as PTX has it.
template <class T>
static inline uint32_t qcemu_shared(T address) {
  return (uint32_t)address;
}
