// The CUDA runtime interface (libcudart.so.13), as far as TVM's CUDA runtime asks for it.
//
// One device; every stream is the program's own order, and a call has ended when it returns.
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "state.h"

using namespace qcemu;

namespace {

// Codes of cudaError_t (CUDA Runtime API).
constexpr int SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_SUPPORTED = 801;

// cudaDeviceAttr, for an H100 or an A100: what TVM asks of a device.
int attribute_value(int attribute) {
  switch (attribute) {
    case 1: case 2: case 3: return MAX_THREADS;
    case 4: return 64;                     // threads along z
    case 5: return 0x7fffffff;             // blocks along x
    case 6: case 7: return 65535;
    case 8: return MAX_STATIC_SHARED;
    case 10: return WARP_SIZE;
    case 12: return 65536;                 // registers per block
    case 13: return 1755000;               // kHz
    case 16: return 132;                   // multiprocessors
    case 38: return 50 << 20;              // bytes of second-level cache
    case 75: return settings.capability / 10;
    case 76: return settings.capability % 10;
    case 81: return settings.max_shared + 1024;  // bytes of a multiprocessor; CUDA keeps 1024 for each block
    case 97: return settings.max_shared;
    default: return 0;
  }
}

int fail(int code, const std::string& text) {
  failure = text;
  return code;
}

int no_graphs() { return fail(NOT_SUPPORTED, "the emulator has no CUDA graphs"); }

struct Event {
  double milliseconds;
};

double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

int copy(void* to, const void* from, size_t bytes) {
  std::lock_guard<std::mutex> guard(engine_lock());
  for (const void* address : {static_cast<const void*>(to), from}) {
    const std::string error = bytes ? bounds_error(address, bytes) : "";
    if (!error.empty()) return fail(INVALID_VALUE, "cudaMemcpy " + error);
  }
  memmove(to, from, bytes);
  return SUCCESS;
}

}  // namespace

extern "C" {

int cudaGetDeviceCount(int* count) { return *count = 1, SUCCESS; }
int cudaGetDevice(int* device) { return *device = 0, SUCCESS; }
int cudaSetDevice(int device) { return device == 0 ? SUCCESS : fail(101, "there is one emulated device, number 0"); }
int cudaDeviceGetAttribute(int* value, int attribute, int) { return *value = attribute_value(attribute), SUCCESS; }

int cudaGetDeviceProperties(void* properties, int) {
  // cudaDeviceProp: name[256], uuid, luid and its mask, then the bytes of memory.
  constexpr size_t TOTAL_AT = 288;
  const size_t total = ARENA_BYTES / 2;
  memset(properties, 0, TOTAL_AT + sizeof total);
  strcpy(static_cast<char*>(properties), "qcompiler CUDA emulator");
  memcpy(static_cast<char*>(properties) + TOTAL_AT, &total, sizeof total);
  return SUCCESS;
}

int cudaMalloc(void** pointer, size_t bytes) {
  std::lock_guard<std::mutex> guard(engine_lock());
  *pointer = allocate(bytes);
  return *pointer ? SUCCESS : fail(OUT_OF_MEMORY, "out of emulated device memory for " + std::to_string(bytes) + " bytes");
}

int cudaFree(void* pointer) {
  std::lock_guard<std::mutex> guard(engine_lock());
  return release(pointer) ? SUCCESS : INVALID_VALUE;
}

int cudaMallocHost(void** pointer, size_t bytes) { return *pointer = malloc(bytes ? bytes : 1), *pointer ? SUCCESS : OUT_OF_MEMORY; }
int cudaFreeHost(void* pointer) { return free(pointer), SUCCESS; }
int cudaMemGetInfo(size_t* available, size_t* total) { return *available = *total = ARENA_BYTES / 2, SUCCESS; }
int cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, void*) { return copy(to, from, bytes); }
int cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, void*) { return copy(to, from, bytes); }

int cudaStreamCreate(void** stream) { return *stream = nullptr, SUCCESS; }
int cudaStreamCreateWithFlags(void** stream, unsigned) { return *stream = nullptr, SUCCESS; }
int cudaStreamDestroy(void*) { return SUCCESS; }
int cudaStreamSynchronize(void*) { return SUCCESS; }
int cudaStreamWaitEvent(void*, void*, unsigned) { return SUCCESS; }

int cudaEventCreate(void** event) { return *event = new Event{0}, SUCCESS; }
int cudaEventDestroy(void* event) { return delete static_cast<Event*>(event), SUCCESS; }
int cudaEventRecord(void* event, void*) { return static_cast<Event*>(event)->milliseconds = now(), SUCCESS; }
int cudaEventSynchronize(void*) { return SUCCESS; }
int cudaEventElapsedTime(float* milliseconds, void* from, void* to) {
  return *milliseconds = static_cast<float>(static_cast<Event*>(to)->milliseconds - static_cast<Event*>(from)->milliseconds), SUCCESS;
}

int cudaStreamBeginCapture(void*, int) { return no_graphs(); }
int cudaStreamEndCapture(void*, void**) { return no_graphs(); }
int cudaGraphInstantiate(void**, void*, unsigned long long) { return no_graphs(); }
int cudaGraphLaunch(void*, void*) { return no_graphs(); }
int cudaGraphDestroy(void*) { return SUCCESS; }
int cudaGraphExecDestroy(void*) { return SUCCESS; }

const char* cudaGetErrorName(int) { return "CUDA emulator error"; }
const char* cudaGetErrorString(int) { return failure.c_str(); }
int cudaGetLastError() { return SUCCESS; }
int cudaPeekAtLastError() { return SUCCESS; }

}  // extern "C"
