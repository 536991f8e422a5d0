// Fibers: one stack per CUDA thread, switched without a system call after its first start.
#include <sys/mman.h>
#include <unistd.h>

#include "state.h"

namespace qcemu {

Thread* current = nullptr;
std::vector<Thread> threads;

static jmp_buf scheduler;
static ucontext_t start;
static void (*kernel_body)() = nullptr;

// A fiber outlives its thread: the next block's thread begins where the last one ended.
static void fiber() {
  for (;;) {
    kernel_body();
    suspend(Status::finished);
  }
}

static unsigned char* new_stack() {
  const size_t page = sysconf(_SC_PAGESIZE);
  void* range = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) fault("no memory for the stack of a thread");
  mprotect(range, page, PROT_NONE);
  return static_cast<unsigned char*>(range) + page;
}

void prepare_fibers(int count, void (*body)()) {
  kernel_body = body;
  if (threads.capacity() == 0) threads.reserve(MAX_THREADS);  // fibers hold pointers into it
  while (static_cast<int>(threads.size()) < count) threads.emplace_back();
  for (int i = 0; i < count; ++i)
    if (!threads[i].stack) threads[i].stack = new_stack();
}

void reset_fibers() {
  for (Thread& thread : threads) thread.started = false;
}

void resume(Thread& thread) {
  current = &thread;
  if (_setjmp(scheduler)) return;
  if (thread.started) _longjmp(thread.resume, 1);
  thread.started = true;
  getcontext(&thread.first);
  thread.first.uc_stack.ss_sp = thread.stack;
  thread.first.uc_stack.ss_size = STACK_BYTES;
  thread.first.uc_link = nullptr;
  makecontext(&thread.first, fiber, 0);
  swapcontext(&start, &thread.first);
}

void suspend(Status status) {
  current->status = status;
  if (_setjmp(current->resume) == 0) _longjmp(scheduler, 1);
}

}  // namespace qcemu
