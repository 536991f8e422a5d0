// Checks of every load and store, array index and conversion. g++ -fsanitize=... calls these
// functions; its own runtime libraries are not linked, so that they are ours.
#include <dlfcn.h>

#include <cstring>

#include "state.h"

namespace qcemu {

// Neither the thread's own memory nor the device's: constant data of the program may be read.
static void outside(const void* address, bool write) {
  Dl_info image;
  if (!write && dladdr(address, &image)) return;
  fault("%s at %p, which is no memory of the device", write ? "write" : "read", address);
}

static inline void access(const void* address, size_t bytes, bool write) {
  const auto* p = static_cast<const unsigned char*>(address);
  if (!current || !settings.checks) return;
  if (static_cast<size_t>(p - current->stack) < STACK_BYTES) return;
  const size_t offset = p - arena;
  if (offset < SHARED_WINDOW) return record_shared(offset, bytes, write);
  if (offset >= ARENA_BYTES) return outside(address, write);
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

// ------------------------------------------------------------ -fsanitize=bounds, float-cast-overflow

namespace {

// What g++ passes, as libubsan's headers have it.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeDescriptor {
  uint16_t kind, information;
  char name[1];
};
struct OutOfBounds {
  SourceLocation at;
  const TypeDescriptor *array, *index;
};
struct FloatCast {
  SourceLocation at;
  const TypeDescriptor *from, *to;
};

double number(const TypeDescriptor& type, uintptr_t bits) {
  if (type.information == 32) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

}  // namespace

extern "C" {

void __ubsan_handle_out_of_bounds_abort(OutOfBounds* what, uintptr_t index) {
  qcemu::fault("index %td is outside of an array of type %s (line %u of the CUDA text)", static_cast<ptrdiff_t>(index),
               what->array->name, what->at.line);
}

// A device saturates, the host does not. NaN, which becomes 0 there, is let pass: it occurs where
// its result is dropped.
void __ubsan_handle_float_cast_overflow(FloatCast* what, uintptr_t bits) {
  const double x = number(*what->from, bits);
  if (x == x)
    qcemu::fault("%g, a value of type %s, is converted to %s, which has no such value (line %u of the CUDA text)", x,
                 what->from->name, what->to->name, what->at.line);
}
}
