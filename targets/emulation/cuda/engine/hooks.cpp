// Checks of every load and store. g++ -fsanitize=thread calls these functions; its own runtime
// library is not linked, so that they are ours.
#include "state.h"

namespace qcemu {

// Only the slow path asks: constant data of the translated program itself is read rarely.
static void outside(const void* address, size_t bytes, bool write);

static inline void access(const void* address, size_t bytes, bool write) {
  const auto* p = static_cast<const unsigned char*>(address);
  if (!current || !settings.checks) return;
  if (static_cast<size_t>(p - current->stack) < STACK_BYTES) return;
  const size_t offset = p - arena;
  if (offset < SHARED_WINDOW) return record_shared(offset, bytes, write);
  if (offset >= ARENA_BYTES) return outside(address, bytes, write);
  const size_t first = offset % 8, last = offset + bytes - 1;
  if (bytes <= 8 && first + bytes <= valid[offset / 8]) return;
  if (bytes == 16 && first == 0 && valid[offset / 8] == 8 && valid[last / 8] == 8) return;
  const std::string error = bounds_error(address, bytes);
  if (!error.empty()) fault("%s %s", write ? "write" : "read", error.c_str());
}

static void aligned(const void* address, size_t bytes, bool write) {
  if (reinterpret_cast<uintptr_t>(address) % bytes)
    fault("misaligned %s of %zu bytes", write ? "write" : "read", bytes);
  access(address, bytes, write);
}

void check_access(const void* address, size_t bytes, bool write) { access(address, bytes, write); }

void check_atomic(const void* address, size_t bytes) {
  const std::string error = bounds_error(address, bytes);
  if (!error.empty()) fault("atomic update %s", error.c_str());
}

}  // namespace qcemu

#include <dlfcn.h>

namespace qcemu {

static void outside(const void* address, size_t, bool write) {
  Dl_info image;
  if (!write && dladdr(address, &image)) return;
  fault("%s at %p, which is no memory of the device", write ? "write" : "read", address);
}

}  // namespace qcemu

#define ACCESS(N)                                                                       \
  extern "C" void __tsan_read##N(void* p) { qcemu::aligned(p, N, false); }              \
  extern "C" void __tsan_write##N(void* p) { qcemu::aligned(p, N, true); }              \
  extern "C" void __tsan_volatile_read##N(void* p) { qcemu::aligned(p, N, false); }     \
  extern "C" void __tsan_volatile_write##N(void* p) { qcemu::aligned(p, N, true); }     \
  extern "C" void __tsan_unaligned_read##N(void* p) { qcemu::access(p, N, false); }     \
  extern "C" void __tsan_unaligned_write##N(void* p) { qcemu::access(p, N, true); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)

extern "C" {
void __tsan_read_range(void* p, size_t bytes) { qcemu::access(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { qcemu::access(p, bytes, true); }
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
