// What a translated kernel and the engine (libcuda.so.1) know of each other.
//
// One block of a grid runs at a time; each of its threads is a fiber. A kernel calls the functions
// below where CUDA has an instruction that involves other threads or memory spaces.
#pragma once
#include <cstddef>
#include <cstdint>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace qcemu {

constexpr int WARP_SIZE = 32;
constexpr int MAX_THREADS = 1024;          // per block; CUDA C++ Programming Guide, compute capability 8.0 and 9.0
constexpr unsigned MAX_STATIC_SHARED = 49152;  // bytes; more is refused by nvcc
constexpr unsigned char POISON = 0x7F;     // 127 as int8, 3.4e38 as float32: visible in sums and maxima

// One `__shared__` array: its place in the kernel's static shared memory.
struct SharedArray {
  const char* name;
  unsigned offset, bytes;
};

// One `__global__` function of a translated program; max_threads is its __launch_bounds__, or 1024;
// checked: its loads and stores call the engine.
struct Kernel {
  const char* name;
  void (*entry)(void** arguments);
  const SharedArray* arrays;
  unsigned array_count, static_shared, max_threads;
  bool checked;
};

// By value: a kernel may not read the memory of the engine.
dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();

// Shared memory: a window that 32-bit addresses point into, as .shared addresses do in PTX.
unsigned char* static_shared();
unsigned char* dynamic_shared();
uint32_t shared_address(const void* pointer);
void* shared_pointer(uint32_t address);

void block_barrier(int line);
void warp_barrier(uint32_t mask);
uint32_t active_mask(int line);  // the lanes that have come to this line

enum class Shuffle { index, up, down, butterfly };
void shuffle(Shuffle how, uint32_t mask, const void* value, void* result, size_t size, int operand, int width);

enum class Vote { any, all, ballot };
uint32_t vote(Vote how, uint32_t mask, uint32_t predicate);

// ldmatrix and stmatrix: `count` 8x8 matrices of 16-bit elements, one register each. line: of the text, where
// all lanes of a warp must be.
void load_matrices(int line, int count, bool transposed, uint32_t* registers, uint32_t row_address);
void store_matrices(int line, int count, bool transposed, const uint32_t* registers, uint32_t row_address);

// mma.sync on 8-bit integers, m16n8k16 (k_depth 16) and m16n8k32; accumulators wrap as int32.
struct IntegerMma {
  int depth;
  bool a_signed, b_signed, saturate;
};
void mma(int line, const IntegerMma& form, int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c);
// mma.sync m16n8k16 on float16 operands and float32 accumulators, added in order of k.
void mma_half(int line, float* d, const uint32_t* a, const uint32_t* b, const float* c);

void copy_async(uint32_t to_shared, const void* from_global, unsigned bytes, unsigned source_bytes, bool only_l2);
void commit_copies();
void wait_copies(unsigned groups_left);

// Bounds and races of an access that the compiler does not see (inside the functions above).
void check_access(const void* address, size_t bytes, bool write);
// The same for an atomic update, which races with no other.
void check_atomic(const void* address, size_t bytes);

// Ends the launch with this message; never returns. printf-like.
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace qcemu
