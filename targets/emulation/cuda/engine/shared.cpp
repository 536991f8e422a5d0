// Shared memory: its window, who has read and written each byte, and copies in flight.
//
// Two accesses of a byte by different threads, one of them a write, race unless a block barrier
// lies between them, or, within one warp, a __syncwarp. (CUDA C++ Programming Guide, section
// "Memory Fence Functions" and "Warp-level synchronization": since compute capability 7.0 a warp's
// lanes are not in lock step, and shuffles, ldmatrix and mma order no memory.)
#include <cstring>

#include "state.h"

namespace qcemu {

constexpr size_t DYNAMIC_OFFSET = 64 << 10;  // above the 48 KB that static shared memory may have

// Who accessed a byte last, and when. `who`: a thread, SEVERAL | warp, or MANY.
struct Access {
  uint64_t phase = 0;
  uint16_t warp_phase = 0, who = 0;
};
constexpr uint16_t SEVERAL = 0x4000, MANY = 0x8000;

static Access written[SHARED_WINDOW], read[SHARED_WINDOW];
static unsigned char in_flight[SHARED_WINDOW];
static uint64_t phase = 1, first_phase_of_block = 1;
static std::vector<std::pair<size_t, size_t>> ranges;  // in use: offset and bytes

void open_shared(const Kernel& kernel, unsigned dynamic_bytes) {
  open_arena();
  for (const auto& [offset, bytes] : ranges) mark_valid(arena + offset, bytes, false);
  ranges.clear();
  for (unsigned i = 0; i < kernel.array_count; ++i) ranges.emplace_back(kernel.arrays[i].offset, kernel.arrays[i].bytes);
  if (dynamic_bytes) ranges.emplace_back(DYNAMIC_OFFSET, dynamic_bytes);
  for (const auto& [offset, bytes] : ranges) mark_valid(arena + offset, bytes, true);
}

void begin_block() {
  begin_phase();
  first_phase_of_block = phase;
  for (const auto& [offset, bytes] : ranges) {
    memset(arena + offset, POISON, bytes);
    memset(in_flight + offset, 0, bytes);
  }
}

void begin_phase() { ++phase; }

unsigned char* static_shared() { return arena; }
unsigned char* dynamic_shared() { return arena + DYNAMIC_OFFSET; }

uint32_t shared_address(const void* pointer) {
  const auto* p = static_cast<const unsigned char*>(pointer);
  if (p < arena || p > arena + SHARED_WINDOW) fault("__cvta_generic_to_shared of a pointer outside shared memory");
  return static_cast<uint32_t>(p - arena);
}

void* shared_pointer(uint32_t address) {
  if (address >= SHARED_WINDOW) fault("address %u is outside shared memory", address);
  return arena + address;
}

static std::string name_of(size_t offset) {
  const Kernel& kernel = *launch.kernel;
  for (unsigned i = 0; i < kernel.array_count; ++i) {
    const SharedArray& a = kernel.arrays[i];
    if (offset >= a.offset && offset < a.offset + a.bytes)
      return "shared array " + std::string(a.name) + ", byte " + std::to_string(offset - a.offset);
  }
  if (offset >= DYNAMIC_OFFSET) return "dynamic shared memory, byte " + std::to_string(offset - DYNAMIC_OFFSET);
  return "static shared memory, byte " + std::to_string(offset);
}

static std::string name_of(const Access& access) {
  if (access.who == MANY) return "threads of several warps";
  const bool several = access.who & SEVERAL;
  const dim3 i = threads[several ? (access.who ^ SEVERAL) * WARP_SIZE : access.who].index;
  char text[80];
  snprintf(text, sizeof text, several ? "the warp of thread (%u, %u, %u)" : "thread (%u, %u, %u)", i.x, i.y, i.z);
  return text;
}

// Whether the current thread may not know of that access, made in this phase by somebody else.
static bool unordered(const Access& before) {
  if (before.phase != phase || before.who == current->linear) return false;
  const int warp = current->linear / WARP_SIZE;
  const bool same_warp = before.who < SEVERAL ? before.who / WARP_SIZE == warp : before.who == (SEVERAL | warp);
  return !(same_warp && before.warp_phase < current->warp_phase);
}

static void note_read(Access& before) {
  const auto me = static_cast<uint16_t>(current->linear);
  const auto warp = static_cast<uint16_t>(me / WARP_SIZE);
  uint16_t who = me;
  if (before.phase == phase && before.who != me) {
    const bool same_warp = before.who < SEVERAL ? before.who / WARP_SIZE == warp : before.who == (SEVERAL | warp);
    who = same_warp ? SEVERAL | warp : MANY;
  }
  before = {phase, static_cast<uint16_t>(current->warp_phase), who};
}

void record_shared(size_t offset, size_t bytes, bool write) {
  const char* what = write ? "write" : "read";
  for (size_t i = offset; i < offset + bytes; ++i) {
    if (i % 8 >= valid[i / 8])
      fault("%s of %zu bytes at %s: out of bounds", what, bytes, name_of(offset).c_str());
    if (in_flight[i]) fault("%s of %s, where a cp.async may still be writing", what, name_of(i).c_str());
    if (unordered(written[i]))
      fault("race: %s of %s, which %s has written with no barrier since", what, name_of(i).c_str(),
            name_of(written[i]).c_str());
    if (!write) {
      if (written[i].phase < first_phase_of_block) fault("read of %s, which nobody has written", name_of(i).c_str());
      note_read(read[i]);
      continue;
    }
    if (unordered(read[i]))
      fault("race: write of %s, which %s has read with no barrier since", name_of(i).c_str(), name_of(read[i]).c_str());
    written[i] = {phase, static_cast<uint16_t>(current->warp_phase), static_cast<uint16_t>(current->linear)};
  }
}

// -------------------------------------------------------------------------------------- cp.async

static void land(const AsyncCopy& copy) {
  memcpy(copy.to, copy.from, copy.source_bytes);
  memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

static void finish(const AsyncCopy& copy) {
  const size_t offset = copy.to - arena;
  memset(in_flight + offset, 0, copy.bytes);
  if (!settings.eager) land(copy);
  if (settings.checks) record_shared(offset, copy.bytes, true);
}

void copy_async(uint32_t to_shared, const void* from_global, unsigned bytes, unsigned source_bytes, bool only_l2) {
  const AsyncCopy copy = {static_cast<unsigned char*>(shared_pointer(to_shared)), from_global, bytes, source_bytes};
  if (bytes != 4 && bytes != 8 && bytes != 16) fault("cp.async of %u bytes; it can copy 4, 8 or 16", bytes);
  if (only_l2 && bytes != 16) fault("cp.async.cg of %u bytes; it copies 16", bytes);
  if (source_bytes > bytes) fault("cp.async of %u bytes from a source of %u", bytes, source_bytes);
  if (to_shared % bytes || reinterpret_cast<uintptr_t>(from_global) % bytes)
    fault("misaligned cp.async of %u bytes, from %p to shared address %u", bytes, from_global, to_shared);
  check_access(copy.to, bytes, true);
  if (source_bytes) check_access(from_global, source_bytes, false);
  if (settings.eager) land(copy);
  if (settings.checks) memset(in_flight + to_shared, 1, bytes);
  current->issued.push_back(copy);
}

void commit_copies() {
  current->groups.push_back(std::move(current->issued));
  current->issued.clear();
}

void wait_copies(unsigned groups_left) {
  auto& groups = current->groups;
  while (groups.size() > groups_left) {
    for (const AsyncCopy& copy : groups.front()) finish(copy);
    groups.erase(groups.begin());
  }
}

// A block ends with its copies done, waited for or not.
void finish_copies(Thread& thread) {
  thread.issued.clear();
  thread.groups.clear();
}

}  // namespace qcemu
