/* A small libnvidia-ml.so.1: two GPUs, MIG on the first with two instances, the second answers NotSupported to all but
   its handle and name. It has no nvmlErrorString and no driver version, as an old driver: FunctionNotFound. */
#include <stdio.h>
#include <string.h>
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } rates_t;
static int parent, mute, instance[2];

int nvmlInitWithFlags(unsigned flags) { (void)flags; return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d) { *d = i == 0 ? &parent : &mute; return 0; }
int nvmlDeviceGetName(void *d, char *s, unsigned n) {
    snprintf(s, n, "%s", d == &parent ? "Fake H100 80GB" : d == &mute ? "Fake Mute" : "Fake H100 MIG"); return 0; }
int nvmlDeviceGetUUID(void *d, char *s, unsigned n) {
    if (d == &mute) return NOT_SUPPORTED;
    snprintf(s, n, "%s", d == &parent ? "GPU-1" : d == &instance[0] ? "MIG-1" : "MIG-2"); return 0; }
int nvmlDeviceGetMemoryInfo(void *d, memory_t *m) {
    if (d == &mute) return NOT_SUPPORTED;
    m->total = d == &parent ? 85520809984ULL : d == &instance[0] ? 42144366592ULL : 10468982784ULL;
    m->used = 1048576; m->free = m->total - m->used; return 0; }
int nvmlDeviceGetUtilizationRates(void *d, rates_t *r) { (void)d; (void)r; return NOT_SUPPORTED; /* as with MIG */ }
int nvmlDeviceGetTemperature(void *d, int sensor, unsigned *t) { (void)sensor; *t = 41; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetPowerUsage(void *d, unsigned *mw) { *mw = 71500; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetCudaComputeCapability(void *d, int *a, int *b) { *a = 9; *b = 0; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetMigMode(void *d, unsigned *now, unsigned *next) { *now = *next = 1; return d == &mute ? NOT_SUPPORTED : 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *d, unsigned *n) { (void)d; *n = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *d, unsigned i, void **m) {
    (void)d; if (i != 0 && i != 3) return NOT_FOUND; *m = &instance[i == 3]; return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = 12080; return 0; }
