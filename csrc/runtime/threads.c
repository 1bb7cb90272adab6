#define _GNU_SOURCE
#include "threads.h"
#include "cpu.h"
#include "float_state.h"
#include "settings.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Spins before sleeping, about 20 microseconds: long enough to catch the next call of a loop, short enough that an idle
   process is seen idle. */
#define SPIN_ROUNDS 1000

/* One per worker, each on cache lines of its own. `posted` counts the teams this worker was called to; only the holder of
   pool.busy posts, and only after every thread of the team before has left, so a worker sees each of its calls once. */
struct worker {
    FA_ALIGN(128) _Atomic unsigned posted;
    _Atomic int asleep;
    int thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

static struct {
    pthread_mutex_t busy;  /* held by the thread whose team runs */
    struct worker *worker; /* FA_MAX_THREADS of them, the first `workers` with a thread */
    int workers;
    fa_team_body *body;
    void *context;
    int threads;
    FA_ALIGN(128) _Atomic int running; /* workers of this team that have not left yet */
    _Atomic int caller_asleep;
    pthread_mutex_t lock;
    pthread_cond_t done;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- how many threads by default: FASTATTN_NUM_THREADS > OMP_NUM_THREADS > min(affinity, cgroup quota) ---- */

static int positive_from_environment(const char *name)
{
    const char *text = getenv(name);
    if (!text) return 0;
    char *end;
    const long n = strtol(text, &end, 10);
    /* OMP_NUM_THREADS may be a list, "4,2": the first is the outermost level. */
    if (end == text || (*end && *end != ',') || n < 1) return 0;
    return n > FA_MAX_THREADS ? FA_MAX_THREADS : (int)n;
}

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

static double cgroup_cpus(void)
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

static int affinity_cpus(void)
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
    return n < 1 ? 1 : n > FA_MAX_THREADS ? FA_MAX_THREADS : (int)n;
}

static int default_num_threads(void)
{
    int n = positive_from_environment("FASTATTN_NUM_THREADS");
    if (!n) n = positive_from_environment("OMP_NUM_THREADS");
    if (n) return n;
    n = affinity_cpus();
    const double quota = cgroup_cpus();
    if (quota > 0 && quota < n) n = quota < 1 ? 1 : (int)quota;
    return n > FA_MAX_THREADS ? FA_MAX_THREADS : n;
}

int fa_get_num_threads(void)
{
    const int n = fa_setting_get(FA_SETTING_THREADS);
    return n == FA_UNSET ? fa_setting_default(FA_SETTING_THREADS, default_num_threads()) : n;
}

void fa_set_num_threads(int n) { fa_setting_set(FA_SETTING_THREADS, n); }

int fastattn_get_num_threads(void) { return fa_get_num_threads(); }
void fastattn_set_num_threads(int n) { fa_set_num_threads(n < 1 ? 1 : n > FA_MAX_THREADS ? FA_MAX_THREADS : n); }

/* ---- the pool ---- */

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    (void)fa_long_double_enter();
    (void)fa_float_enter(); /* Linux gives a thread the state of the one that starts it */
    for (unsigned seen = 0;; seen++) {
        for (int i = 0; i < SPIN_ROUNDS && atomic_load_explicit(&self->posted, memory_order_acquire) == seen; i++) relax();
        if (atomic_load(&self->posted) == seen) {
            pthread_mutex_lock(&self->lock);
            atomic_store(&self->asleep, 1);
            while (atomic_load(&self->posted) == seen) pthread_cond_wait(&self->wake, &self->lock);
            atomic_store(&self->asleep, 0);
            pthread_mutex_unlock(&self->lock);
        }
        pool.body(pool.context, self->thread, pool.threads);
        if (atomic_fetch_sub(&pool.running, 1) == 1 && atomic_load(&pool.caller_asleep)) {
            pthread_mutex_lock(&pool.lock);
            pthread_cond_signal(&pool.done);
            pthread_mutex_unlock(&pool.lock);
        }
    }
    return NULL;
}

static void post(struct worker *w)
{
    atomic_fetch_add(&w->posted, 1);
    /* Either the worker sees the post before it sleeps, or this sees it asleep: both sides write, then read (seq_cst). */
    if (atomic_load(&w->asleep)) {
        pthread_mutex_lock(&w->lock);
        pthread_cond_signal(&w->wake);
        pthread_mutex_unlock(&w->lock);
    }
}

static void wait_for_workers(void)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool.running, memory_order_acquire) == 0) return;
        relax();
    }
    pthread_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_asleep, 1);
    while (atomic_load(&pool.running) != 0) pthread_cond_wait(&pool.done, &pool.lock);
    atomic_store(&pool.caller_asleep, 0);
    pthread_mutex_unlock(&pool.lock);
}

/* Starts workers until there are `wanted`, as far as memory and limits allow. Caller holds pool.busy. */
static void start_workers(int wanted)
{
    sigset_t all, before;
    if (pool.workers >= wanted) return;
    if (!pool.worker && !(pool.worker = aligned_alloc(128, FA_MAX_THREADS * sizeof *pool.worker))) return;
    /* Signals belong to the program's own threads: Python's handler must run there. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (pool.workers < wanted) {
        struct worker *w = &pool.worker[pool.workers];
        pthread_t thread;
        memset(w, 0, sizeof *w);
        w->thread = pool.workers + 1;
        pthread_mutex_init(&w->lock, NULL);
        pthread_cond_init(&w->wake, NULL);
        if (pthread_create(&thread, NULL, worker_main, w) != 0) break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void fa_team_run(int max_threads, fa_team_body *body, void *context)
{
    const int allowed = fa_get_num_threads();
    const int wanted = max_threads < allowed ? max_threads : allowed;
    if (wanted <= 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        body(context, 0, 1);
        return;
    }
    start_workers(wanted - 1);
    const int threads = wanted - 1 < pool.workers ? wanted : pool.workers + 1;
    pool.body = body;
    pool.context = context;
    pool.threads = threads;
    atomic_store(&pool.running, threads - 1);
    for (int w = 0; w < threads - 1; w++) post(&pool.worker[w]);
    body(context, 0, threads);
    wait_for_workers();
    pthread_mutex_unlock(&pool.busy);
}

struct loop {
    fa_loop_body *body;
    void *context;
    fa_index n;
    _Atomic fa_index next;
};

static void loop_thread(void *context, int thread, int threads)
{
    struct loop *loop = context;
    (void)threads;
    for (fa_index i; (i = atomic_fetch_add_explicit(&loop->next, 1, memory_order_relaxed)) < loop->n;)
        loop->body(loop->context, i, thread);
    fa_release_tiles();
}

void fa_parallel_for(fa_index n, int max_threads, fa_loop_body *body, void *context)
{
    struct loop loop = {.body = body, .context = context, .n = n};
    if (n > 0) fa_team_run(n < max_threads ? (int)n : max_threads, loop_thread, &loop);
}

/* One round of waiting. The others are a little arithmetic behind at most; when one of them has lost its processor, give it this
   one. */
static void spin(unsigned round)
{
    if (round < 16 * SPIN_ROUNDS)
        relax();
    else
        sched_yield();
}

void fa_team_wait(fa_team_barrier *barrier, int threads)
{
    if (threads == 1) return;
    const unsigned phase = atomic_load(&barrier->phase);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == (unsigned)threads) {
        atomic_store(&barrier->arrived, 0);
        atomic_store(&barrier->phase, phase + 1);
        return;
    }
    for (unsigned i = 0; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase; i++) spin(i);
}

void fa_progress_publish(fa_progress *progress, fa_index steps)
{
    atomic_store_explicit(&progress->steps, steps, memory_order_release);
}

void fa_progress_wait(fa_progress *progress, fa_index steps)
{
    for (unsigned i = 0; atomic_load_explicit(&progress->steps, memory_order_acquire) < steps; i++) spin(i);
}

int fa_threads_for(double work)
{
    const int allowed = fa_get_num_threads();
    const double repaid = work / FA_WORK_PER_THREAD;
    return repaid < 2 ? 1 : repaid > allowed ? allowed : (int)repaid;
}

/* Only the thread that called fork lives on in the child: no workers, and whoever held the locks is gone. */
static void after_fork_in_child(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.worker = NULL; /* the old slots' condition variables still count the parent's sleepers: leave them */
    pool.workers = 0;
    atomic_store(&pool.running, 0);
    atomic_store(&pool.caller_asleep, 0);
}

void fa_threads_init(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }
