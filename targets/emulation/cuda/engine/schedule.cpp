// The scheduler: which thread runs when, barriers, and the meeting of a warp's lanes.
//
// A warp runs until all its threads wait at a block barrier or have ended, before the next warp
// starts: what a missing barrier should have ordered is then as far out of order as it can be.
// The order of blocks, of warps and of lanes is forward, reverse or shuffled anew at each barrier.
#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "state.h"

namespace qcemu {

Settings settings;
Launch launch;
thread_local std::string failure;

static sigjmp_buf launch_start;
static thread_local bool in_launch = false;
static std::mt19937 random_bits;

// ---------------------------------------------------------------------------------------- faults

static std::string place() {
  char text[256];
  const dim3 b = launch.block_index, t = current ? current->index : dim3(0, 0, 0);
  snprintf(text, sizeof text, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", launch.kernel->name,
           b.x, b.y, b.z, t.x, t.y, t.z);
  return text;
}

[[noreturn]] void fault(const char* format, ...) {
  char text[1024];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (!in_launch) {  // a function of this file was called from outside a kernel
    fprintf(stderr, "CUDA emulator: %s\n", text);
    abort();
  }
  failure = place() + text;
  siglongjmp(launch_start, 1);
}

// Memory that nothing is mapped to: the guard pages around allocations and stacks.
static void on_bad_memory(int number, siginfo_t* information, void*) {
  if (!in_launch) {  // another thread of the process: its fault is none of ours
    signal(number, SIG_DFL);
    return;
  }
  const auto* address = static_cast<unsigned char*>(information->si_addr);
  const std::string text = bounds_error(address, 1);
  if (!text.empty()) fault("access %s", text.c_str());
  const unsigned char* stack = current ? current->stack : nullptr;
  if (stack && address < stack && address >= stack - 65536) fault("the thread's local memory overflows");
  fault("access to %p, which is no device memory", static_cast<const void*>(address));
}

// ---------------------------------------------------------------------------------------- orders

static void arrange(std::vector<int>& order, int count) {
  order.resize(count);
  std::iota(order.begin(), order.end(), 0);
  if (settings.order == Order::reverse) std::reverse(order.begin(), order.end());
  if (settings.order == Order::random) std::shuffle(order.begin(), order.end(), random_bits);
}

// ----------------------------------------------------------------------------------------- warps

uint32_t Warp::present() const {
  uint32_t mask = 0;
  for (int i = 0; i < count; ++i)
    if (lanes[i].status != Status::finished) mask |= 1u << i;
  return mask;
}

static void take_active_mask(Warp& warp, uint32_t lanes) {
  for (int i = 0; i < warp.count; ++i)
    if (lanes >> i & 1) *warp.lanes[i].out = lanes;
}
static const Operation ACTIVE_MASK = {"__activemask", false, take_active_mask};

static bool same_place(const Thread& a, const Thread& b) {
  return a.operation == b.operation && a.mask == b.mask && a.line == b.line;
}

static uint32_t waiting_like(const Warp& warp, const Thread& thread) {
  uint32_t mask = 0;
  for (int i = 0; i < warp.count; ++i) {
    const Thread& other = warp.lanes[i];
    if (other.status == Status::at_operation && same_place(other, thread))
      mask |= 1u << i;
  }
  return mask;
}

static void perform(Warp& warp, const Operation& operation, uint32_t lanes) {
  for (int i = 0; i < warp.count; ++i)
    if (lanes >> i & 1) warp.lanes[i].status = Status::ready;
  operation.perform(warp, lanes);
}

// Performs one operation whose lanes have all come. Lanes that have ended are not waited for.
static bool release_lanes(Warp& warp) {
  const uint32_t present = warp.present();
  const Thread* asks_for_mask = nullptr;
  for (int i = 0; i < warp.count; ++i) {
    Thread& thread = warp.lanes[i];
    if (thread.status != Status::at_operation) continue;
    if (thread.operation == &ACTIVE_MASK) {
      asks_for_mask = &thread;
      continue;
    }
    const uint32_t here = waiting_like(warp, thread), needed = thread.mask & present;
    if ((here & needed) != needed) continue;
    current = &thread;
    if (thread.operation->whole_warp && here != 0xffffffffu)
      fault("%s by lanes %08x; it needs all 32", thread.operation->name, here);
    perform(warp, *thread.operation, needed);
    return true;
  }
  // The lanes that run together are those that have come to the same line, all of them: a lane that
  // could still come would have done so, for no lane of the warp is ready.
  if (asks_for_mask) {
    perform(warp, ACTIVE_MASK, waiting_like(warp, *asks_for_mask));
    return true;
  }
  return false;
}

void join(const Operation& operation, uint32_t mask, const uint64_t* in, uint64_t* out, int line) {
  if (&operation != &ACTIVE_MASK && !(mask >> lane_of(*current) & 1))
    fault("%s: lane %d is not in its own mask %08x", operation.name, lane_of(*current), mask);
  current->operation = &operation;
  current->mask = mask;
  current->line = line;
  current->in = in;
  current->out = out;
  suspend(Status::at_operation);
}

uint32_t active_mask(int line) {
  uint64_t mask = 0;
  join(ACTIVE_MASK, static_cast<uint32_t>(line), nullptr, &mask);
  return static_cast<uint32_t>(mask);
}

static void run_warp(Warp& warp) {
  std::vector<int> order;
  arrange(order, warp.count);
  do {
    for (int i : order)
      if (warp.lanes[i].status == Status::ready) resume(warp.lanes[i]);
  } while (release_lanes(warp));
}

// ---------------------------------------------------------------------------------------- blocks

void block_barrier(int line) {
  current->line = line;
  suspend(Status::at_barrier);
}

static void explain_deadlock(int count) {
  const Thread *at_barrier = nullptr, *at_operation = nullptr;
  for (int i = 0; i < count; ++i) {
    if (threads[i].status == Status::at_barrier) at_barrier = &threads[i];
    if (threads[i].status == Status::at_operation) at_operation = &threads[i];
  }
  current = &threads[at_operation ? at_operation->linear : 0];
  for (int i = 0; i < count; ++i) {
    const Thread& other = threads[i];
    if (other.status == Status::at_operation && other.operation == current->operation && other.line != current->line)
      fault("waits at the %s of line %d while thread (%u, %u, %u) waits at that of line %d", current->operation->name,
            current->line, other.index.x, other.index.y, other.index.z, other.line);
  }
  const char* where = at_barrier ? "a __syncthreads" : "another operation or mask";
  fault("deadlock: waits at %s with mask %08x for lanes that stand at %s", at_operation->operation->name,
        at_operation->mask, where);
}

// True when the block has ended; otherwise all its threads have passed a barrier.
static bool pass_barrier(int count) {
  const Thread* first = nullptr;
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    if (thread.status == Status::finished) continue;
    if (thread.status != Status::at_barrier) explain_deadlock(count);
    if (!first) first = &thread;
    current = &thread;
    if (thread.line != first->line)
      fault("waits at the __syncthreads of line %d while thread (%u, %u, %u) waits at that of line %d",
            thread.line, first->index.x, first->index.y, first->index.z, first->line);
  }
  if (!first) return true;
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.warp_phase = 0;
    if (thread.status == Status::at_barrier) thread.status = Status::ready;
  }
  begin_phase();
  return false;
}

static void run_block(int count) {
  begin_block();
  for (int i = 0; i < count; ++i) {
    Thread& thread = threads[i];
    thread.status = Status::ready;
    thread.warp_phase = 0;
    thread.issued.clear();
    thread.groups.clear();
  }
  std::vector<int> order;
  const int warps = (count + WARP_SIZE - 1) / WARP_SIZE;
  do {
    arrange(order, warps);
    for (int w : order) {
      Warp warp{&threads[w * WARP_SIZE], std::min(WARP_SIZE, count - w * WARP_SIZE)};
      run_warp(warp);
    }
  } while (!pass_barrier(count));
  for (int i = 0; i < count; ++i) finish_copies(threads[i]);
}

static void thread_body() { launch.kernel->entry(launch.arguments); }

static void run_grid() {
  const dim3 g = launch.grid, b = launch.block;
  const int count = static_cast<int>(b.x * b.y * b.z);
  prepare_fibers(count, thread_body);
  for (int i = 0; i < count; ++i) {
    threads[i].linear = i;
    threads[i].index = {i % b.x, i / b.x % b.y, i / (b.x * b.y)};
  }
  open_shared(*launch.kernel, launch.dynamic_shared);
  std::vector<int> blocks;
  arrange(blocks, static_cast<int>(g.x * g.y * g.z));
  for (int i : blocks) {
    launch.block_index = {i % g.x, i / g.x % g.y, i / (g.x * g.y)};
    run_block(count);
  }
}

bool run(const Launch& what) {
  static unsigned char signal_stack[64 << 10];
  launch = what;
  failure.clear();
  current = nullptr;
  random_bits.seed(settings.seed);
  stack_t stack = {}, old_stack = {};
  stack.ss_sp = signal_stack;
  stack.ss_size = sizeof signal_stack;
  sigaltstack(&stack, &old_stack);
  struct sigaction action = {}, old_segv, old_bus;
  action.sa_sigaction = on_bad_memory;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  in_launch = true;
  if (sigsetjmp(launch_start, 1) == 0) run_grid();
  in_launch = false;
  sigaction(SIGSEGV, &old_segv, nullptr);
  sigaction(SIGBUS, &old_bus, nullptr);
  sigaltstack(&old_stack, nullptr);
  if (!failure.empty()) reset_fibers();
  return failure.empty();
}

dim3 thread_index() { return current->index; }
dim3 block_index() { return launch.block_index; }
dim3 block_size() { return launch.block; }
dim3 grid_size() { return launch.grid; }

}  // namespace qcemu
