/* A small libnvidia-ml.so.1: three GPUs. MIG on the first with two instances; the second answers NotSupported to all but
   its handle and name; the third is whole and busy. It has no nvmlErrorString and no driver version, as an old driver:
   FunctionNotFound. With OLD_DRIVER it lists processes by the second version of that function alone. With
   FAKE_NVML_STEP=1 in the environment the third GPU's figures grow with each reading. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define NOT_AVAILABLE (~0ULL)
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } rates_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_t;
static int parent, mute, whole, instance[2], readings, opened;

int nvmlInitWithFlags(unsigned flags) { (void)flags; opened++; return 0; }
int nvmlShutdown(void) { return opened-- > 0 ? 0 : 1; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 3; return opened > 0 ? 0 : 1; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = i == 0 ? &parent : i == 1 ? &mute : &whole; return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) {
    snprintf(s, n, "%s", d == &parent ? "Fake H100 80GB" : d == &mute ? "Fake Mute" : d == &whole ? "Fake L40S" : "Fake H100 MIG");
    return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) {
    if (d == &mute) return NOT_SUPPORTED;
    snprintf(s, n, "%s", d == &parent ? "GPU-1" : d == &whole ? "GPU-3" : d == &instance[0] ? "MIG-1" : "MIG-2"); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    if (d == &mute) return NOT_SUPPORTED;
    m->total = d == &parent ? 85520809984ULL : d == &whole ? 48305799168ULL : d == &instance[0] ? 42144366592ULL : 10468982784ULL;
    m->used = d == &whole ? 5000000000ULL : d == &instance[0] ? 1048576 + 2000000000ULL : 1048576;
    m->free = m->total - m->used; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, rates_t *r) {
    if (d != &whole) return NOT_SUPPORTED; /* as with MIG */
    r->gpu = 87 + (getenv("FAKE_NVML_STEP") ? readings++ : 0); r->memory = 40; return 0; }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *t) {
    (void)sensor; *t = d == &whole ? 63 : 41; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = d == &whole ? 250250 : 71500; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) {
    *a = d == &whole ? 8 : 9; *b = d == &whole ? 9 : 0; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) {
    *now = *next = d == &parent; return d == &mute || d == &whole ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { (void)d; *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **m) {
    (void)d; if (i != 0 && i != 3) return NOT_FOUND; *m = &instance[i == 3]; return 0; }

static const process_t on_whole[] = {{4242, 3000000000ULL, 0, 0}, {4243, NOT_AVAILABLE, 0, 0}, {4244, 7, 0, 0}};
static const process_t on_instance[] = {{4242, 2000000000ULL, 1, 0}};
static int processes(void *d, unsigned *n, process_t *out) {
    const process_t *all = d == &whole ? on_whole : on_instance;
    unsigned room = *n, count = d == &whole ? 3 : d == &instance[0] ? 1 : 0;
    if (d == &mute || d == &parent) return NOT_SUPPORTED; /* a GPU in MIG mode tells root alone */
    *n = count;
    if (!out || room < count) return count ? INSUFFICIENT_SIZE : 0;
    memcpy(out, all, count * sizeof *all); return 0; }
int nvmlDeviceGetComputeRunningProcesses_v2(void *d, unsigned *n, process_t *out) { return processes(d, n, out); }
#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *d, unsigned *n, process_t *out) { return processes(d, n, out); }
#endif
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12080; return 0; }
