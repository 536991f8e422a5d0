// Device memory: allocations between inaccessible pages, and a map of the bytes that are valid.
//
// An allocation ends at the end of its last page, as nearly as its alignment lets it: what runs
// past it meets inaccessible pages even where the kernel is not instrumented. The bytes left over
// on both sides hold a pattern that is looked at after the launch of such a kernel.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "state.h"

namespace qcemu {

constexpr size_t ALIGNMENT = 256;        // of cudaMalloc, CUDA C++ Programming Guide
constexpr size_t GUARD_BYTES = 64 << 10;  // inaccessible, between allocations
constexpr unsigned char MARGIN = 0xC5;

unsigned char* arena = nullptr;
unsigned char* valid = nullptr;

// The pages of an allocation and the bytes in them that are its own.
struct Block {
  unsigned char* pages;
  size_t page_bytes, bytes;
};

static std::map<const unsigned char*, Block>& blocks() {
  static std::map<const unsigned char*, Block> live;
  return live;
}

static std::multimap<size_t, unsigned char*>& unused() {
  static std::multimap<size_t, unsigned char*> pages;
  return pages;
}

static unsigned char* unreserved = nullptr;

static unsigned char* reserve(size_t bytes, int protection) {
  void* range = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) {
    fprintf(stderr, "CUDA emulator: cannot reserve %zu bytes of address space\n", bytes);
    abort();
  }
  return static_cast<unsigned char*>(range);
}

void open_arena() {
  if (arena) return;
  valid = reserve(ARENA_BYTES / 8, PROT_READ | PROT_WRITE);
  arena = reserve(ARENA_BYTES, PROT_NONE);
  mprotect(arena, SHARED_WINDOW, PROT_READ | PROT_WRITE);
  unreserved = arena + SHARED_WINDOW;
}

void mark_valid(const unsigned char* start, size_t bytes, bool usable) {
  unsigned char* map = valid + (start - arena) / 8;
  memset(map, usable ? 8 : 0, bytes / 8);
  if (bytes % 8) map[bytes / 8] = usable ? bytes % 8 : 0;
}

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

static unsigned char* take_pages(size_t bytes) {
  auto found = unused().find(bytes);
  if (found != unused().end()) {
    unsigned char* pages = found->second;
    unused().erase(found);
    return pages;
  }
  const size_t left = arena + ARENA_BYTES - unreserved;
  if (bytes + 2 * GUARD_BYTES > left) return nullptr;
  unsigned char* pages = unreserved + GUARD_BYTES;
  unreserved = pages + bytes;
  return pages;
}

void* allocate(size_t bytes) {
  open_arena();
  const size_t own = round_up(bytes ? bytes : 1, ALIGNMENT);
  const size_t page_bytes = round_up(own, sysconf(_SC_PAGESIZE));
  unsigned char* pages = take_pages(page_bytes);
  if (!pages || mprotect(pages, page_bytes, PROT_READ | PROT_WRITE)) return nullptr;
  unsigned char* start = pages + page_bytes - own;
  memset(pages, MARGIN, start - pages);
  memset(start, POISON, bytes);
  memset(start + bytes, MARGIN, own - bytes);
  mark_valid(start, bytes, true);
  blocks()[start] = {pages, page_bytes, bytes};
  return start;
}

static bool margin_intact(const unsigned char* start, const Block& block) {
  for (const unsigned char* p = block.pages; p < start; ++p)
    if (*p != MARGIN) return false;
  for (const unsigned char* p = start + block.bytes; p < block.pages + block.page_bytes; ++p)
    if (*p != MARGIN) return false;
  return true;
}

bool release(void* pointer) {
  if (!pointer) return true;
  auto found = blocks().find(static_cast<unsigned char*>(pointer));
  if (found == blocks().end()) {
    failure = "cudaFree of a pointer that is not allocated";
    return false;
  }
  const Block block = found->second;
  mark_valid(found->first, block.bytes, false);
  mprotect(block.pages, block.page_bytes, PROT_NONE);
  madvise(block.pages, block.page_bytes, MADV_DONTNEED);
  unused().emplace(block.page_bytes, block.pages);
  blocks().erase(found);
  return true;
}

bool margins_intact() {
  for (const auto& [start, block] : blocks())
    if (!margin_intact(start, block)) {
      failure = "has written beside an allocation of " + std::to_string(block.bytes) + " bytes";
      return false;
    }
  return true;
}

static std::string describe(const unsigned char* address, size_t bytes) {
  auto next = blocks().upper_bound(address);
  char text[200];
  if (next != blocks().begin()) {
    auto before = std::prev(next);
    const ptrdiff_t offset = address - before->first;
    snprintf(text, sizeof text, "of %zu bytes at byte %td of a device allocation of %zu bytes", bytes, offset,
             before->second.bytes);
    if (next == blocks().end() || offset < static_cast<ptrdiff_t>(before->second.page_bytes) + 65536) return text;
  }
  if (next == blocks().end()) return "of device memory that was never allocated";
  snprintf(text, sizeof text, "of %zu bytes, %td bytes before a device allocation of %zu bytes", bytes,
           next->first - address, next->second.bytes);
  return text;
}

std::string bounds_error(const void* address, size_t bytes) {
  const size_t first = static_cast<const unsigned char*>(address) - arena;
  if (!arena || first >= ARENA_BYTES) return "";
  for (size_t i = first; i < first + bytes; ++i)
    if (i >= ARENA_BYTES || i % 8 >= valid[i / 8]) return describe(arena + first, bytes);
  return "";
}

}  // namespace qcemu
