/* Hold a whole process to fewer instructions than its processor has, whatever library asks for them.
 *
 *     cc -shared -fPIC -O2 -o mask_cpuid.so benchmarks/mask_cpuid.c
 *     LD_PRELOAD=./mask_cpuid.so CPUID_LEVEL=avx2 python benchmarks/cpu_engine.py ...
 *
 * CPUID_LEVEL is avx512 (with VNNI and bf16, no AMX), avxvnni (256 bits) or avx2. Libraries choose their code by the
 * instruction CPUID. The kernel makes it trap (arch_prctl(2), ARCH_SET_CPUID; Linux on Intel, flag cpuid_fault), and
 * the handler here answers without the bits that are to be hidden. libc has chosen before that: memcpy may be wider.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };
static int level; /* 2: no AMX; 1: nor AVX-512; 0: nor VNNI */

static void without(unsigned* r, const int* bits) {
    for (; *bits >= 0; bits++) *r &= ~(1u << *bits);
}

/* r: eax, ebx, ecx, edx; the bits are those of the Intel SDM, volume 2A, CPUID. */
static void mask(unsigned leaf, unsigned subleaf, unsigned* r) {
    static const int amx[] = {22, 24, 25, -1}, amx_1[] = {21, -1}, avx10_1[] = {8, 19, -1};
    static const int f512_b[] = {16, 17, 21, 26, 27, 28, 30, 31, -1}, f512_c[] = {1, 6, 11, 12, 14, -1};
    static const int f512_d[] = {2, 3, 8, 23, -1}, bf16_1[] = {5, -1}, vnni_1[] = {4, -1}, vnni_1d[] = {4, 5, 10, -1};
    if (leaf == 0xd && subleaf == 0) { /* state that the system saves: tiles (17, 18), AVX-512 (5 to 7) */
        r[0] &= ~(3u << 17);
        if (level < 2) r[0] &= ~(7u << 5);
    }
    if (leaf != 7) return;
    if (subleaf == 0) {
        without(r + 3, amx);
        if (level < 2) without(r + 1, f512_b), without(r + 2, f512_c), without(r + 3, f512_d);
    } else if (subleaf == 1) {
        without(r, amx_1);
        without(r + 3, avx10_1);
        if (level < 2) without(r, bf16_1);
        if (level < 1) without(r, vnni_1), without(r + 3, vnni_1d);
    }
}

static void answer(int number, siginfo_t* info, void* context) {
    greg_t* g = ((ucontext_t*)context)->uc_mcontext.gregs;
    if (memcmp((void*)g[REG_RIP], "\x0f\xa2", 2)) { /* a fault of another kind: die of it */
        signal(number, SIG_DFL);
        return;
    }
    unsigned leaf = g[REG_RAX], subleaf = g[REG_RCX], r[4];
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __cpuid_count(leaf, subleaf, r[0], r[1], r[2], r[3]);
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    mask(leaf, subleaf, r);
    g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
    g[REG_RIP] += 2;
    (void)info;
}

__attribute__((constructor)) static void start(void) {
    const char* name = getenv("CPUID_LEVEL");
    if (!name) return;
    level = !strcmp(name, "avx512") ? 2 : !strcmp(name, "avxvnni") ? 1 : !strcmp(name, "avx2") ? 0 : -1;
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO | SA_NODEFER};
    if (level < 0 || sigaction(SIGSEGV, &action, NULL) || syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
        fprintf(stderr, "mask_cpuid: CPUID_LEVEL=%s is not known, or this kernel cannot trap CPUID\n", name);
        _exit(1);
    }
}
