/* Loaded before a program's own libraries, this makes the CPU tell it of fewer instructions.

   CPUID faults from then on (Linux, arch_prctl(2), ARCH_SET_CPUID), in this thread and in all that
   it starts; the handler answers as the CPU would, less the bits to hide. The same features are
   left out of /proc/cpuinfo. What was decided before a constructor runs, as the C library's choice
   of memcpy, stays. Environment: QC_CPUID_HIDE, words of "leaf.subleaf.register=mask", all in
   hexadecimal, registers a, b, c, d; QC_CPUINFO, the file to open in the place of /proc/cpuinfo. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define ARCH_SET_CPUID 0x1012
#define MOST 32
#define UNUSABLE 70 /* exit status: this machine has no faulting CPUID */

static struct { unsigned leaf, subleaf, mask; int place; } hidden[MOST];
static int count;
static const char *cpuinfo;
static struct sigaction own; /* what the program wants done about SIGSEGV */

static long allow_cpuid(long yes) { return syscall(SYS_arch_prctl, ARCH_SET_CPUID, yes); }

static void answer(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)r[REG_RIP];
  /* A fault of CPUID has no address of data; any other is the program's own: it faults again. */
  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) {
    NEXT(sigaction)(number, &own, NULL);
    return;
  }
  unsigned leaf = r[REG_RAX], subleaf = r[REG_RCX], v[4];
  allow_cpuid(1);
  __asm__ volatile("cpuid" : "=a"(v[0]), "=b"(v[1]), "=c"(v[2]), "=d"(v[3]) : "a"(leaf), "c"(subleaf));
  allow_cpuid(0);
  for (int i = 0; i < count; i++)
    if (hidden[i].leaf == leaf && hidden[i].subleaf == subleaf) v[hidden[i].place] &= ~hidden[i].mask;
  r[REG_RAX] = v[0], r[REG_RBX] = v[1], r[REG_RCX] = v[2], r[REG_RDX] = v[3];
  r[REG_RIP] += 2;
}

__attribute__((constructor)) static void begin(void) {
  const char *words = getenv("QC_CPUID_HIDE");
  cpuinfo = getenv("QC_CPUINFO");
  for (int n; words && count < MOST; words += n, count++) {
    char place;
    if (sscanf(words, " %x.%x.%c=%x%n", &hidden[count].leaf, &hidden[count].subleaf, &place,
               &hidden[count].mask, &n) != 4) break;
    hidden[count].place = place - 'a';
  }
  struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
  if (NEXT(sigaction)(SIGSEGV, &action, &own) || allow_cpuid(0)) _exit(UNUSABLE);
}

int sigaction(int number, const struct sigaction *action, struct sigaction *old) {
  if (number != SIGSEGV) return NEXT(sigaction)(number, action, old);
  if (old) *old = own;
  if (action) own = *action;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction old, action = {.sa_handler = handler, .sa_flags = SA_RESTART};
  return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

static const char *told(const char *path) {
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
