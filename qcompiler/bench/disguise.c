/* Makes the CPU tell a program of fewer instructions than it has.

   The one file is loaded twice. LD_AUDIT (rtld-audit(7)) shows it every library between mapping and
   first use: there each CPUID becomes an opcode that no CPU has, whose SIGILL is answered as the CPU
   would answer CPUID, less the bits to hide. LD_PRELOAD lets it leave the same features
   out of /proc/cpuinfo and keep SIGILL for itself. The C library, the loader and a program without
   position-independent code keep their CPUID: the choice of memcpy stays.
   Environment: QC_CPUID_HIDE, words of "leaf.subleaf.register=mask", all in hexadecimal, registers
   a, b, c, d; QC_CPUINFO, the file to open in the place of /proc/cpuinfo. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define MOST 32
#define NO_OPCODE 0x04 /* after 0x0f, in the place of 0xa2 */
#define UNUSABLE 70 /* exit status: text of a program cannot be written here */

static struct { unsigned leaf, subleaf, mask; int place; } hidden[MOST];
static int count;

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)r[REG_RIP];
  if (code[0] != 0x0f || code[1] != NO_OPCODE) { /* not ours: it faults again and ends the program */
    NEXT(signal)(number, SIG_DFL);
    if (info->si_code <= 0) raise(number); /* somebody sent it */
    return;
  }
  unsigned leaf = r[REG_RAX], subleaf = r[REG_RCX], v[4];
  /* The NOP: is_cpuid passes over this one. */
  __asm__ volatile("nop; cpuid" : "=a"(v[0]), "=b"(v[1]), "=c"(v[2]), "=d"(v[3]) : "a"(leaf), "c"(subleaf));
  for (int i = 0; i < count; i++)
    if (hidden[i].leaf == leaf && hidden[i].subleaf == subleaf) v[hidden[i].place] &= ~hidden[i].mask;
  r[REG_RAX] = v[0], r[REG_RBX] = v[1], r[REG_RCX] = v[2], r[REG_RDX] = v[3];
  r[REG_RIP] += 2;
}

/* Whether the bytes before say that these two are the instruction and no part of another. What
   compilers put there: copies, clears and swaps of registers, loads from memory or of a leaf, sums
   with a small number, stores of 16 bytes at a fixed place. Of the 398 that objdump finds in ONNX Runtime,
   OpenVINO's CPU plugin, NumPy's OpenBLAS and PyTorch, three are passed over, which ask for the
   name or the highest leaf of the CPU, and nothing else is found. */
static int is_cpuid(const uint8_t *at, const uint8_t *begin) {
  if (at - begin < 8) return 0;
  uint8_t op = at[-2], mode = at[-1];
  if (mode >= 0xc0 && (op == 0x89 || op == 0x8b || op == 0x31 || op == 0x33 || op == 0x87)) return 1;
  if (op == 0x8b && mode < 0x40 && (mode & 7) != 4 && (mode & 7) != 5) return 1;
  if (at[-4] == 0x8b && op == 0x24) return 1;
  unsigned number;
  memcpy(&number, at - 4, sizeof number);
  int load = at[-5] == 0xb8 || at[-5] == 0xb9 || (at[-6] == 0xc7 && at[-5] == 0xc0);
  if (load && (number & 0x3fffff00) == 0) return 1;
  return (at[-3] == 0x83 && op >= 0xc0) || !memcmp(at - 7, "\x0f\x11\x05", 3);
}

static void patch(uint8_t *begin, uint8_t *end) {
  long page = sysconf(_SC_PAGESIZE);
  for (uint8_t *at = begin; (at = memmem(at, end - at, "\x0f\xa2", 2)); at += 2) {
    if (!is_cpuid(at, begin)) continue;
    uint8_t *from = (uint8_t *)((uintptr_t)at & -page);
    size_t bytes = at + 2 - from;
    if (mprotect(from, bytes, PROT_READ | PROT_WRITE | PROT_EXEC)) _exit(UNUSABLE);
    at[1] = NO_OPCODE;
    mprotect(from, bytes, PROT_READ | PROT_EXEC);
  }
}

unsigned la_version(unsigned version) {
  const char *words = getenv("QC_CPUID_HIDE");
  for (int n; words && count < MOST; words += n, count++) {
    char place;
    if (sscanf(words, " %x.%x.%c=%x%n", &hidden[count].leaf, &hidden[count].subleaf, &place,
               &hidden[count].mask, &n) != 4) break;
    hidden[count].place = place - 'a';
  }
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (NEXT(sigaction)(SIGILL, &action, NULL)) _exit(UNUSABLE);
  return version < LAV_CURRENT ? version : LAV_CURRENT;
}

unsigned la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie) {
  FILE *maps = map->l_addr && strchr(map->l_name, '/') ? fopen("/proc/self/maps", "r") : NULL;
  if (!maps) return 0;
  char line[4096], file[64] = "", device[32], rights[8];
  for (int pass = 0; pass < 2; pass++, rewind(maps)) /* which file is it, then its code */
    while (fgets(line, sizeof line, maps)) {
      unsigned long from, to, inode, here = (unsigned long)map->l_ld;
      char name[64];
      if (sscanf(line, "%lx-%lx %7s %*s %31s %lu", &from, &to, rights, device, &inode) != 5) continue;
      snprintf(name, sizeof name, "%s %lu", device, inode);
      if (pass == 0 && from <= here && here < to) strcpy(file, name);
      if (pass && inode && rights[2] == 'x' && !strcmp(name, file)) patch((uint8_t *)from, (uint8_t *)to);
    }
  fclose(maps);
  return 0;
}

/* What follows is of the copy that is preloaded. SIGILL is the other's: what is asked is not done. */
int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  if (number != SIGILL || !action) return NEXT(sigaction)(number, action, old);
  if (old) memset(old, 0, sizeof *old); /* SIG_DFL */
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  return number == SIGILL ? SIG_DFL : NEXT(signal)(number, handler);
}

static const char *told(const char *path) {
  const char *cpuinfo = getenv("QC_CPUINFO");
  return cpuinfo && path && !strcmp(path, "/proc/cpuinfo") ? cpuinfo : path;
}

#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list rest; va_start(rest, flags); \
    int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0; \
    va_end(rest); \
    return NEXT(name)(told(path), flags, mode); \
  }
#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { return NEXT(name)(told(path), mode); }

OPEN(open)
OPEN(open64)
FOPEN(fopen)
FOPEN(fopen64)
