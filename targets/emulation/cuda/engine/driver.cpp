// The CUDA driver interface, as far as TVM's CUDA runtime asks for it, and the engine's settings.
//
// A module is CUDA text: the function given to qcemu_set_builder makes a shared library of it.
// Machine code followed by MARKER and its CUDA text is taken by its text.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "state.h"

using namespace qcemu;

std::mutex& qcemu::engine_lock() {
  static std::mutex lock;
  return lock;
}

namespace {

// Codes of CUresult (CUDA Driver API).
constexpr int SUCCESS = 0, INVALID_VALUE = 1, INVALID_IMAGE = 200, NOT_FOUND = 500, LAUNCH_FAILED = 719, NOT_SUPPORTED = 801;
constexpr int MAX_DYNAMIC_SHARED_ATTRIBUTE = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
constexpr unsigned DEFAULT_DYNAMIC_SHARED = 49152;
const char MARKER[] = "\nqcompiler: CUDA text follows\n";

struct Function {
  const Kernel* kernel;
  unsigned dynamic_limit;
};

// CUlaunchConfig of cuda.h.
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

// Writes the path of a library, or an error text, to `answer`; 0 when it is a path.
using Builder = int (*)(const char* source, int checks, char* answer, size_t capacity);
Builder builder = nullptr;

int fail(int code, const std::string& text) {
  failure = text;
  return code;
}

template <class T>
T field(const unsigned char* image, size_t offset) {
  T value;
  memcpy(&value, image + offset, sizeof value);
  return value;
}

// Where machine code ends, by its own header: a fat binary, or an ELF file.
size_t code_bytes(const unsigned char* image) {
  if (field<uint32_t>(image, 0) == 0xBA55ED50u) return field<uint16_t>(image, 6) + field<uint64_t>(image, 8);
  if (memcmp(image, "\177ELF", 4) != 0) return 0;
  const size_t programs = field<uint64_t>(image, 32) + field<uint16_t>(image, 54) * field<uint16_t>(image, 56);
  const size_t sections = field<uint64_t>(image, 40) + field<uint16_t>(image, 58) * field<uint16_t>(image, 60);
  return programs > sections ? programs : sections;
}

const char* text_of(const void* data) {
  const auto* image = static_cast<const unsigned char*>(data);
  const size_t code = code_bytes(image);
  if (code == 0) return reinterpret_cast<const char*>(image);
  const char* end = reinterpret_cast<const char*>(image + code);
  return strncmp(end, MARKER, sizeof MARKER - 1) == 0 ? end + sizeof MARKER - 1 : nullptr;
}

std::string unlaunchable(const Function& function, const LaunchConfig& c) {
  const Kernel& k = *function.kernel;
  const uint64_t count = uint64_t(c.block_x) * c.block_y * c.block_z;
  char text[300] = "";
  if (count == 0 || count > k.max_threads || c.block_z > 64)
    snprintf(text, sizeof text, "blocks of (%u, %u, %u) threads; the kernel takes 1 to %u", c.block_x, c.block_y, c.block_z, k.max_threads);
  else if (c.grid_x == 0 || c.grid_y == 0 || c.grid_z == 0 || c.grid_x > 0x7fffffffu || c.grid_y > 65535 || c.grid_z > 65535)
    snprintf(text, sizeof text, "a grid of (%u, %u, %u) blocks", c.grid_x, c.grid_y, c.grid_z);
  else if (c.shared_bytes > function.dynamic_limit)
    snprintf(text, sizeof text, "%u bytes of dynamic shared memory; cuFuncSetAttribute has allowed %u", c.shared_bytes, function.dynamic_limit);
  else if (c.shared_bytes + k.static_shared > settings.max_shared)
    snprintf(text, sizeof text, "%u bytes of shared memory; a block has %u", c.shared_bytes + k.static_shared, settings.max_shared);
  else if (k.static_shared > MAX_STATIC_SHARED)
    snprintf(text, sizeof text, "%u bytes of static shared memory; a kernel may have %u", k.static_shared, MAX_STATIC_SHARED);
  return text[0] ? "kernel " + std::string(k.name) + " cannot be launched with " + text : "";
}

}  // namespace

extern "C" {

// ------------------------------------------------------------------- the emulator's own interface

void qcemu_set_builder(Builder function) { builder = function; }

// order: 0 forward, 1 reverse, 2 shuffled by `seed`. capability: 90 for 9.0; max_shared: its bytes for a block.
void qcemu_configure(int order, unsigned seed, int eager, int checks, int capability, unsigned max_shared) {
  std::lock_guard<std::mutex> guard(engine_lock());
  settings.order = static_cast<Order>(order);
  settings.seed = seed;
  settings.eager = eager;
  settings.checks = checks;
  settings.capability = capability;
  settings.max_shared = max_shared;
}

const char* qcemu_failure() { return failure.c_str(); }

// ------------------------------------------------------------------------------------ the driver

// Without the lock: the builder may wait for Python, which may wait for a launch.
int cuModuleLoadData(void** module, const void* image) {
  const char* source = text_of(image);
  if (!source) return fail(INVALID_IMAGE, "this module is machine code without its CUDA text, which alone can be emulated");
  if (!builder) return fail(INVALID_IMAGE, "the emulator was not started");
  std::string answer(16384, '\0');
  const int refused = builder(source, settings.checks, &answer[0], answer.size());
  answer.resize(strlen(answer.c_str()));
  if (refused) return fail(INVALID_IMAGE, answer);
  *module = dlopen(answer.c_str(), RTLD_NOW | RTLD_LOCAL);
  return *module ? SUCCESS : fail(INVALID_IMAGE, dlerror());
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  const auto* kernel = static_cast<const Kernel*>(dlsym(module, ("qcemu_kernel_" + std::string(name)).c_str()));
  if (!kernel) return fail(NOT_FOUND, "the module has no kernel " + std::string(name));
  *function = new Function{kernel, DEFAULT_DYNAMIC_SHARED};  // as long-lived as the module
  return SUCCESS;
}

// Its library stays open: functions of it may still be named in errors.
int cuModuleUnload(void*) { return SUCCESS; }

int cuFuncSetAttribute(void* function, int attribute, int value) {
  if (attribute != MAX_DYNAMIC_SHARED_ATTRIBUTE) return SUCCESS;
  auto* f = static_cast<Function*>(function);
  if (value < 0 || value + f->kernel->static_shared > settings.max_shared)
    return fail(INVALID_VALUE, "kernel " + std::string(f->kernel->name) + " asks for " + std::to_string(value) +
                                   " bytes of dynamic shared memory; a block has " + std::to_string(settings.max_shared));
  f->dynamic_limit = static_cast<unsigned>(value);
  return SUCCESS;
}

int cuLaunchKernelEx(const LaunchConfig* config, void* function, void** arguments, void**) {
  std::lock_guard<std::mutex> guard(engine_lock());
  const auto* f = static_cast<const Function*>(function);
  const std::string error = unlaunchable(*f, *config);
  if (!error.empty()) return fail(INVALID_VALUE, error);
  Launch what;
  what.kernel = f->kernel;
  what.arguments = arguments;
  what.grid = {config->grid_x, config->grid_y, config->grid_z};
  what.block = {config->block_x, config->block_y, config->block_z};
  what.dynamic_shared = config->shared_bytes;
  if (!run(what)) return LAUNCH_FAILED;
  // A checked kernel was stopped at the access itself.
  if ((f->kernel->checked && settings.checks) || margins_intact()) return SUCCESS;
  return fail(LAUNCH_FAILED, "kernel " + std::string(f->kernel->name) + " " + failure);
}

int cuDeviceGetName(char* name, int capacity, int) {
  snprintf(name, capacity, "qcompiler CUDA emulator");
  return SUCCESS;
}

int cuGetErrorName(int code, const char** text) {
  static thread_local std::string last;
  last = failure.empty() ? "CUDA error " + std::to_string(code) : failure;
  *text = last.c_str();
  return SUCCESS;
}

int cuGetErrorString(int code, const char** text) { return cuGetErrorName(code, text); }

int cuTensorMapEncodeTiled() { return fail(NOT_SUPPORTED, "the emulator has no tensor maps (TMA)"); }

}  // extern "C"
