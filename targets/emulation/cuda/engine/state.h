// The engine's own state: the launch that runs, its block, its threads.
#pragma once
#include <csetjmp>
#include <cstdint>
#include <mutex>
#include <random>
#include <string>
#include <ucontext.h>
#include <vector>

#include "qcemu/engine.h"

namespace qcemu {

// ------------------------------------------------------------------------------------- settings

enum class Order { forward, reverse, random };

struct Settings {
  Order order = Order::forward;
  uint32_t seed = 0;
  bool eager = false;   // cp.async lands when it is issued; otherwise when it is waited for
  bool checks = true;   // bounds, races and uninitialised shared memory, where kernels are instrumented
  int capability = 90;           // compute capability 9.0
  unsigned max_shared = 232448;  // bytes a block may use, static and dynamic together (227 KB on 9.0)
};

extern Settings settings;

// -------------------------------------------------------------------------------------- threads

// What a warp does together: `perform` runs once, when every lane it needs has come.
struct Warp;
struct Operation {
  const char* name;
  bool whole_warp;  // .aligned in PTX: all 32 lanes, or it is undefined
  void (*perform)(Warp& warp, uint32_t lanes);
};

struct AsyncCopy {
  unsigned char* to;
  const void* from;
  unsigned bytes, source_bytes;
};

enum class Status { ready, at_barrier, at_operation, finished };

struct Thread {
  dim3 index;
  int linear = 0;
  Status status = Status::finished;
  // What it waits for.
  int line = 0;  // of a block barrier, or of an operation of the whole warp
  const Operation* operation = nullptr;
  uint32_t mask = 0;
  // Operands and results of a warp operation; pointers into the thread's own stack.
  const uint64_t* in = nullptr;
  uint64_t* out = nullptr;
  // How many warp barriers it has passed since the last block barrier.
  unsigned warp_phase = 0;
  std::vector<AsyncCopy> issued;
  std::vector<std::vector<AsyncCopy>> groups;
  // Its fiber.
  bool started = false;
  ucontext_t first;
  jmp_buf resume;
  unsigned char* stack = nullptr;
};

constexpr size_t STACK_BYTES = 256 << 10;

struct Warp {
  Thread* lanes;
  int count;
  uint32_t present() const;  // lanes that have not finished
};

extern Thread* current;
extern std::vector<Thread> threads;

// Lets the scheduler run others until this thread is `ready` again.
void suspend(Status status);
// Runs a thread until it suspends or finishes; called by the scheduler.
void resume(Thread& thread);
// Stacks for `count` threads that begin at `body` when they are next resumed.
void prepare_fibers(int count, void (*body)());
// After a fault: fibers stand anywhere, so they begin anew.
void reset_fibers();

// Waits until the lanes of `mask` have come to the same operation (in the same line), and performs it.
void join(const Operation& operation, uint32_t mask, const uint64_t* in, uint64_t* out, int line = 0);
inline int lane_of(const Thread& thread) { return thread.linear % WARP_SIZE; }

// --------------------------------------------------------------------------------------- launch

struct Launch {
  const Kernel* kernel = nullptr;
  void** arguments = nullptr;
  dim3 grid, block, block_index;
  unsigned dynamic_shared = 0;
};

extern Launch launch;
extern thread_local std::string failure;  // of the last call that failed, on this thread

// Held by whoever runs a grid or changes memory or settings.
std::mutex& engine_lock();

// Runs a whole grid. False, with `failure` set, when it did something that CUDA leaves undefined.
bool run(const Launch& what);

// --------------------------------------------------------------------------------------- memory

// Device memory: one reserved range, the shared window first. `valid[i]` says how many of the
// eight bytes at 8 * i may be accessed.
constexpr size_t ARENA_BYTES = size_t(16) << 30;
constexpr size_t SHARED_WINDOW = 256 << 10;
extern unsigned char* arena;
extern unsigned char* valid;

void open_arena();
void* allocate(size_t bytes);
bool release(void* pointer);  // false: it is no allocation
// False, with `failure` set, when something has been written just beside an allocation.
bool margins_intact();
// An error text where [address, address + bytes) lies in the arena and is not all allocated.
std::string bounds_error(const void* address, size_t bytes);
void mark_valid(const unsigned char* start, size_t bytes, bool usable);

// ------------------------------------------------------------------------------- shared memory

// The window's first half is static, the second dynamic shared memory.
void open_shared(const Kernel& kernel, unsigned dynamic_bytes);
void begin_block();   // poisons shared memory and forgets who wrote it
void begin_phase();   // a block barrier has been passed
// Records an access of the current thread, a fault where it is out of bounds, races with another
// thread's, meets a copy in flight, or reads what nobody has written.
void record_shared(size_t offset, size_t bytes, bool write);
void finish_copies(Thread& thread);

}  // namespace qcemu
