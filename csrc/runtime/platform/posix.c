#if !defined(_WIN32)
#if !defined(__APPLE__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "platform.h"

#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

/* ---- locks ---- */

void fa_mutex_make(fa_mutex *mutex) { pthread_mutex_init(mutex, NULL); }
void fa_condition_make(fa_condition *condition) { pthread_cond_init(condition, NULL); }
void fa_mutex_lock(fa_mutex *mutex) { pthread_mutex_lock(mutex); }
int fa_mutex_try(fa_mutex *mutex) { return pthread_mutex_trylock(mutex) == 0; }
void fa_mutex_unlock(fa_mutex *mutex) { pthread_mutex_unlock(mutex); }
void fa_condition_wait(fa_condition *condition, fa_mutex *mutex) { pthread_cond_wait(condition, mutex); }
void fa_condition_signal(fa_condition *condition) { pthread_cond_signal(condition); }
void fa_call_once(fa_once *once, void (*function)(void)) { pthread_once(once, function); }

/* ---- threads ---- */

typedef struct {
    fa_thread_body *body;
    void *argument;
} start;

static void *run(void *argument)
{
    const start s = *(start *)argument;
    free(argument);
    s.body(s.argument);
    return NULL;
}

int fa_thread_start(fa_thread_body *body, void *argument)
{
    sigset_t all, before;
    pthread_t thread;
    start *s = malloc(sizeof *s);
    if (!s) return 0;
    *s = (start){body, argument};
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int started = pthread_create(&thread, NULL, run, s) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (started)
        pthread_detach(thread);
    else
        free(s);
    return started;
}

void fa_thread_yield(void) { sched_yield(); }

long fa_thread_switches(void)
{
#if defined(RUSAGE_THREAD)
    struct rusage usage;
    if (getrusage(RUSAGE_THREAD, &usage) == 0) return usage.ru_nivcsw;
#endif
    return 0;
}

void fa_after_fork(void (*in_child)(void)) { pthread_atfork(NULL, NULL, in_child); }

/* ---- CPUs and time ---- */

int fa_cpu_count(void)
{
#if defined(__linux__)
    /* Machines may have more CPUs than cpu_set_t holds: grow until the kernel accepts the size. */
    for (size_t cpus = 1024; cpus <= (size_t)1 << 20; cpus *= 4) {
        cpu_set_t *set = CPU_ALLOC(cpus);
        if (!set) break;
        const size_t size = CPU_ALLOC_SIZE(cpus);
        const int got = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
        CPU_FREE(set);
        if (got > 0) return got;
    }
#endif
    const long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > 1 << 20 ? 1 << 20 : (int)n;
}

#if defined(__linux__)
static int read_line(const char *path, char *line, int size)
{
    FILE *f = fopen(path, "re");
    if (!f) return 0;
    const int ok = fgets(line, size, f) != NULL;
    fclose(f);
    return ok;
}

/* CPUs' worth of time that the control group may use, 0 for no limit: cpu.max (v2) or cpu.cfs_quota_us (v1), of this group
   and of the groups above it. Inside a container the group is mounted as the root, so the root is read too. */
static double quota_of(const char *directory)
{
    char path[4400], line[128];
    double quota, period = 100000;
    snprintf(path, sizeof path, "%s/cpu.max", directory);
    if (read_line(path, line, sizeof line)) {
        if (sscanf(line, "%lf %lf", &quota, &period) >= 1 && quota > 0 && period > 0) return quota / period;
        return 0;
    }
    snprintf(path, sizeof path, "%s/cpu.cfs_quota_us", directory);
    if (!read_line(path, line, sizeof line) || sscanf(line, "%lf", &quota) != 1 || quota <= 0) return 0;
    snprintf(path, sizeof path, "%s/cpu.cfs_period_us", directory);
    if (read_line(path, line, sizeof line)) sscanf(line, "%lf", &period);
    return period > 0 ? quota / period : 0;
}

static double smallest_quota(const char *mount, const char *group)
{
    char directory[4300];
    double smallest = 0;
    snprintf(directory, sizeof directory, "%s%s", mount, group);
    for (size_t mount_length = strlen(mount);;) {
        const double q = quota_of(directory);
        if (q > 0 && (smallest == 0 || q < smallest)) smallest = q;
        char *slash = strrchr(directory, '/');
        if (strlen(directory) <= mount_length || !slash || (size_t)(slash - directory) < mount_length) return smallest;
        *slash = 0;
    }
}

double fa_cpu_quota(void)
{
    char line[4200];
    double smallest = 0;
    FILE *f = fopen("/proc/self/cgroup", "re");
    if (!f) return 0;
    while (fgets(line, sizeof line, f)) {
        /* "0::/path" (v2) or "4:cpu,cpuacct:/path" (v1) */
        line[strcspn(line, "\n")] = 0;
        char *controllers = strchr(line, ':');
        char *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        controllers++;
        double q = 0;
        if (!*controllers)
            q = smallest_quota("/sys/fs/cgroup", group);
        else if (strstr(controllers, "cpu") && !strstr(controllers, "cpuset"))
            q = smallest_quota("/sys/fs/cgroup/cpu", group);
        if (q > 0 && (smallest == 0 || q < smallest)) smallest = q;
    }
    fclose(f);
    return smallest;
}
#else
double fa_cpu_quota(void) { return 0; }
#endif

int64_t fa_nanoseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* ---- memory ---- */

void *fa_memory_take(size_t alignment, size_t size)
{
    void *memory;
    return posix_memalign(&memory, alignment, size) == 0 ? memory : NULL;
}

void fa_memory_free(void *memory) { free(memory); }

void fa_memory_is_large(void *memory, size_t size)
{
#if defined(MADV_HUGEPAGE)
    madvise(memory, size, MADV_HUGEPAGE);
#else
    (void)memory, (void)size;
#endif
}

void fa_memory_is_unused(void *memory, size_t size)
{
#if defined(MADV_FREE)
    madvise(memory, size, MADV_FREE);
#else
    (void)memory, (void)size;
#endif
}

void fa_memory_trim(void)
{
#if defined(__GLIBC__)
    malloc_trim(0);
#endif
}

/* ---- libraries ---- */

void *fa_library_open(const char *path) { return dlopen(path, RTLD_NOW | RTLD_LOCAL); }
void *fa_library_symbol(void *library, const char *name) { return dlsym(library, name); }

void fa_environment_set(const char *name, const char *value)
{
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

#else
typedef int fa_platform_is_windows; /* a file has to have something in it */
#endif
