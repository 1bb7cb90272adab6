#include "threads.h"
#include "cpu.h"
#include "float_state.h"
#include "platform/platform.h"
#include "settings.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Spins before sleeping, about 20 microseconds: long enough to catch the next call of a loop, short enough that an idle
   process is seen idle. */
#define SPIN_ROUNDS 1000
/* Spins after which a wait for another thread is timed: that may have lost its processor. */
#define PATIENCE (8 * SPIN_ROUNDS)

#define MILLISECOND INT64_C(1000000) /* nanoseconds */

/* IDLE -> CALLED by the caller, who holds pool.busy, when all workers are idle; CALLED -> JOINED by the worker; CALLED -> IDLE
   by the caller who does without it; JOINED -> IDLE by the worker when it leaves. */
enum { IDLE, CALLED, JOINED };

/* One per worker, each on cache lines of its own. */
struct worker {
    FA_ALIGN(128) _Atomic int state;
    _Atomic int asleep;
    int thread;
    long switches; /* of the thread, when last asked */
    fa_mutex lock;
    fa_condition wake;
};

static struct {
    fa_mutex busy;         /* held by the thread whose team runs */
    struct worker *worker; /* FA_MAX_THREADS of them, the first `workers` with a thread */
    int workers;
    fa_team_body *body;
    void *context;
    FA_ALIGN(128) _Atomic int threads; /* of a team that meets: 0 until all are there */
    FA_ALIGN(128) _Atomic int running; /* workers called to this team that have not left yet */
    _Atomic int caller_asleep;
    _Atomic int preempted; /* a worker of this team lost its processor */
    _Atomic int contended; /* so that others waited too long */
    fa_mutex lock;
    fa_condition done;
} pool = {.busy = FA_MUTEX_INIT, .lock = FA_MUTEX_INIT, .done = FA_CONDITION_INIT};

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* One round of waiting. The others are a little arithmetic behind at most; when one of them has lost its processor, give it this
   one. */
static void spin(unsigned round)
{
    if (round < 16 * SPIN_ROUNDS)
        relax();
    else
        fa_thread_yield();
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

static int default_num_threads(void)
{
    int n = positive_from_environment("FASTATTN_NUM_THREADS");
    if (!n) n = positive_from_environment("OMP_NUM_THREADS");
    if (n) return n;
    n = fa_cpu_count();
    const double quota = fa_cpu_quota();
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

/* ---- fewer threads while others want the processors ----

   Threads that wait for one that does not run wait for a slice of the scheduler, milliseconds. A team that met this is followed by
   teams of half as many threads, for a pause; then by twice as many again. A pause is twice the one before if that did not help for
   long, and if the thread that calls is itself preempted the pause goes on without a try. */

#define FIRST_PAUSE (10 * MILLISECOND)
#define LONGEST_PAUSE (500 * MILLISECOND)
#define PAUSES_TO_FORGET 10 /* without contention, after which the next pause is the first again */
#define QUIET_SWITCHES 25   /* a second: more and the processor is not the thread's own */
/* Teams become smaller once waits for threads that have lost their processor take more than this and more than a part of the time of
   teams: threads that are stopped now and then still do more than one. */
#define LONG_WAIT (1 * MILLISECOND)
#define WAIT_PART 3
#define WINDOW (50 * MILLISECOND) /* of the account, which counts half of what was before */

static struct {
    _Atomic int limit; /* threads of a team */
    _Atomic int64_t retry;
    int64_t pause, raised;                /* of the holder of pool.busy; raised: when the limit was last raised */
    _Atomic int64_t began, total, waited; /* the account: when this team began; time of teams before it; waits of all */
} contention = {.limit = FA_MAX_THREADS};

static _Atomic int adapts = 1; /* whether teams do without threads that are late */
/* For tests: of so many meetings of a team one finds a thread late, 0: none; and the teams that dissolved since. */
static _Atomic int disturbed, dissolved;

/* Whether the calling thread has been preempted since it last asked; not if it never has. */
static int was_preempted(int64_t time)
{
    static _Thread_local int64_t asked;
    static _Thread_local long then;
    const long count = fa_thread_switches(), most = 1 + (long)((time - asked) * QUIET_SWITCHES / (1000 * MILLISECOND));
    const int preempted = asked && count - then > most;
    asked = time;
    then = count;
    return preempted;
}

/* The time of teams, of which `waited` is lost: whether that is too much. */
static int too_long(int64_t waited, int64_t time)
{
    waited += atomic_load(&contention.waited);
    return waited > LONG_WAIT && waited > (atomic_load(&contention.total) + time - atomic_load(&contention.began)) / WAIT_PART;
}

/* Puts a wait of the team to the account, or none, at `time`. */
static void add_wait(int64_t waited, int64_t time)
{
    int64_t total = atomic_load(&contention.total) + time - atomic_load(&contention.began);
    waited += atomic_load(&contention.waited);
    while (total > WINDOW) {
        total /= 2;
        waited /= 2;
    }
    atomic_store(&contention.waited, waited);
    atomic_store(&contention.total, total);
    atomic_store(&contention.began, time);
}

static int64_t longer_pause(void) { return fa_min(2 * contention.pause, LONGEST_PAUSE); }

/* Teams of half as many threads from now on. The caller holds pool.busy. */
static void make_smaller(void)
{
    const int64_t time = fa_nanoseconds();
    const int threads = (int)fa_min(fa_get_num_threads(), atomic_load(&contention.limit));
    if (!atomic_load(&adapts)) return;
    const int again = contention.pause && time - contention.raised < PAUSES_TO_FORGET * contention.pause;
    contention.pause = again ? longer_pause() : FIRST_PAUSE;
    was_preempted(time);
    atomic_store(&contention.total, 0);
    atomic_store(&contention.waited, 0);
    atomic_store(&contention.began, time);
    atomic_store(&contention.retry, time + contention.pause);
    atomic_store(&contention.limit, threads > 1 ? threads / 2 : 1);
}

/* The limit, raised if it is time for that. */
static int retry_limit(void)
{
    const int64_t time = fa_nanoseconds();
    if (time >= atomic_load(&contention.retry) && fa_mutex_try(&pool.busy)) {
        const int64_t retry = atomic_load(&contention.retry); /* later, if another thread was faster */
        if (time >= retry && was_preempted(time)) {
            contention.pause = longer_pause();
        } else if (time >= retry) {
            contention.raised = time;
            atomic_store(&contention.limit, (int)fa_min(2 * atomic_load(&contention.limit), FA_MAX_THREADS));
        }
        atomic_store(&contention.retry, time + contention.pause);
        fa_mutex_unlock(&pool.busy);
    }
    return atomic_load(&contention.limit);
}

/* fa_get_num_threads, and fewer under contention. */
static int available_threads(void)
{
    const int allowed = fa_get_num_threads();
    if (FA_LIKELY(allowed <= atomic_load_explicit(&contention.limit, memory_order_relaxed))) return allowed;
    const int limit = retry_limit();
    return allowed < limit ? allowed : limit;
}

int fa_threads_for(double work)
{
    const double repaid = work / FA_WORK_PER_THREAD;
    if (repaid < 2) return 1;
    const int available = available_threads();
    return repaid > available ? available : (int)repaid;
}

int fa_threads_limit(void) { return (int)fa_min(fa_get_num_threads(), atomic_load(&contention.limit)); }

void fa_threads_adapt(int adapt)
{
    atomic_store(&adapts, adapt);
    if (!adapt) atomic_store(&contention.limit, FA_MAX_THREADS);
}

int fa_threads_disturb(int meetings)
{
    atomic_store(&disturbed, meetings);
    return atomic_exchange(&dissolved, 0);
}

/* ---- the pool ---- */

/* Waits until this worker is called, and joins. */
static void join_team(struct worker *self)
{
    for (int called = CALLED; !atomic_compare_exchange_strong(&self->state, &called, JOINED); called = CALLED) {
        for (int i = 0; i < SPIN_ROUNDS && atomic_load_explicit(&self->state, memory_order_acquire) != CALLED; i++) relax();
        if (atomic_load(&self->state) == CALLED) continue;
        fa_mutex_lock(&self->lock);
        atomic_store(&self->asleep, 1);
        while (atomic_load(&self->state) != CALLED) fa_condition_wait(&self->wake, &self->lock);
        atomic_store(&self->asleep, 0);
        fa_mutex_unlock(&self->lock);
        self->switches = fa_thread_switches();
    }
}

static void leave_team(struct worker *self)
{
    if (atomic_load(&pool.caller_asleep)) {
        const long count = fa_thread_switches();
        if (count != self->switches) atomic_store(&pool.preempted, 1);
        self->switches = count;
    }
    atomic_store(&self->state, IDLE);
    if (atomic_fetch_sub(&pool.running, 1) == 1 && atomic_load(&pool.caller_asleep)) {
        fa_mutex_lock(&pool.lock);
        fa_condition_signal(&pool.done);
        fa_mutex_unlock(&pool.lock);
    }
}

static void worker_main(void *argument)
{
    struct worker *self = argument;
    (void)fa_long_double_enter();
    (void)fa_float_enter(); /* Linux gives a thread the state of the one that starts it */
    for (;;) {
        join_team(self);
        int threads;
        for (unsigned i = 0; (threads = atomic_load_explicit(&pool.threads, memory_order_acquire)) == 0; i++) spin(i);
        if (self->thread < threads) pool.body(pool.context, self->thread, threads);
        leave_team(self);
    }
}

static void call(struct worker *w)
{
    atomic_store(&w->state, CALLED);
    /* Either the worker sees the call before it sleeps, or this sees it asleep: both sides write, then read (seq_cst). */
    if (atomic_load(&w->asleep)) {
        fa_mutex_lock(&w->lock);
        fa_condition_signal(&w->wake);
        fa_mutex_unlock(&w->lock);
    }
}

/* The team does without the worker, unless that has joined. */
static void do_without(struct worker *w)
{
    int called = CALLED;
    if (atomic_compare_exchange_strong(&w->state, &called, IDLE)) atomic_fetch_sub(&pool.running, 1);
}

/* Waits until the workers called have joined; those behind one that does not come have joined for nothing. Returns the threads of the
   team. Waiting in vain costs little once, and much in each of many short calls. */
static int gather(int threads)
{
    int there = 1;
    for (unsigned i = 0; there < threads && (i < PATIENCE || !atomic_load_explicit(&adapts, memory_order_relaxed)); i++) {
        if (atomic_load_explicit(&pool.worker[there - 1].state, memory_order_acquire) == JOINED)
            there++;
        else
            spin(i);
    }
    for (int w = there - 1; w < threads - 1; w++) do_without(&pool.worker[w]);
    if (there < threads) {
        const int64_t time = fa_nanoseconds(), began = atomic_load(&contention.began);
        add_wait(time - began, time);
        /* of short calls the waits in vain would be the whole time */
        if (atomic_load(&contention.waited) > atomic_load(&contention.total) / WAIT_PART) atomic_store(&pool.contended, 1);
    }
    return there;
}

static void wait_for_workers(void)
{
    for (int i = 0; i < SPIN_ROUNDS; i++) {
        if (atomic_load_explicit(&pool.running, memory_order_acquire) == 0) return;
        relax();
    }
    const int64_t began = fa_nanoseconds();
    fa_mutex_lock(&pool.lock);
    atomic_store(&pool.caller_asleep, 1);
    while (atomic_load(&pool.running) != 0) fa_condition_wait(&pool.done, &pool.lock);
    atomic_store(&pool.caller_asleep, 0);
    fa_mutex_unlock(&pool.lock);
    const int64_t time = fa_nanoseconds();
    if (!atomic_load(&pool.preempted)) return;
    if (too_long(time - began, time)) atomic_store(&pool.contended, 1);
    add_wait(time - began, time);
}

/* Starts workers until there are `wanted`, as far as memory and limits allow. Caller holds pool.busy. */
static void start_workers(int wanted)
{
    if (pool.workers >= wanted) return;
    if (!pool.worker && !(pool.worker = fa_memory_take(128, FA_MAX_THREADS * sizeof *pool.worker))) return;
    while (pool.workers < wanted) {
        struct worker *w = &pool.worker[pool.workers];
        memset(w, 0, sizeof *w);
        w->thread = pool.workers + 1;
        fa_mutex_make(&w->lock);
        fa_condition_make(&w->wake);
        if (!fa_thread_start(worker_main, w)) break;
        pool.workers++;
    }
}

/* A team that meets is of threads that are there; of another the caller may find at the end that some never came. */
static void run_team(int max_threads, fa_team_body *body, void *context, int meets)
{
    const int allowed = fa_get_num_threads(), limit = atomic_load_explicit(&contention.limit, memory_order_relaxed);
    const int wanted = (int)fa_min(max_threads, fa_min(allowed, limit));
    if (wanted <= 1 || !fa_mutex_try(&pool.busy)) {
        body(context, 0, 1);
        return;
    }
    start_workers(wanted - 1);
    int threads = wanted - 1 < pool.workers ? wanted : pool.workers + 1;
    atomic_store(&contention.began, fa_nanoseconds());
    pool.body = body;
    pool.context = context;
    atomic_store(&pool.preempted, 0);
    atomic_store(&pool.contended, 0);
    atomic_store(&pool.threads, meets ? 0 : threads);
    atomic_store(&pool.running, threads - 1);
    for (int w = 0; w < threads - 1; w++) call(&pool.worker[w]);
    if (meets) atomic_store(&pool.threads, threads = gather(threads));
    body(context, 0, threads);
    if (!meets)
        for (int w = 0; w < threads - 1; w++) do_without(&pool.worker[w]);
    wait_for_workers();
    if (atomic_load(&pool.contended)) make_smaller();
    add_wait(0, fa_nanoseconds());
    fa_mutex_unlock(&pool.busy);
}

void fa_team_run(int max_threads, fa_team_body *body, void *context) { run_team(max_threads, body, context, 1); }

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
    if (n > 0) run_team(n < max_threads ? (int)n : max_threads, loop_thread, &loop, 0);
}

/* At 5 multiply-adds in a nanosecond. */
int64_t fa_patience(double work) { return (int64_t)(work < 1e15 ? work / 5 : 2e14); }

void fa_team_yield(void) { fa_thread_yield(); }

static void come_late(fa_team_barrier *barrier)
{
    atomic_store(&barrier->late, 1);
    atomic_store(&pool.contended, 1);
}

int fa_team_wait(fa_team_barrier *barrier, int threads)
{
    if (threads == 1) return 0;
    const unsigned phase = atomic_load(&barrier->phase);
    if (atomic_fetch_add(&barrier->arrived, 1) + 1 == (unsigned)threads) {
        const unsigned every = (unsigned)atomic_load_explicit(&disturbed, memory_order_relaxed);
        if (FA_UNLIKELY(every && phase % every == every - 1)) come_late(barrier);
        if (FA_UNLIKELY(atomic_load_explicit(&barrier->late, memory_order_relaxed) && !barrier->dissolved)) {
            barrier->dissolved = 1;
            atomic_fetch_add(&dissolved, 1);
        }
        atomic_store(&barrier->arrived, 0);
        atomic_store(&barrier->phase, phase + 1);
    } else {
        int64_t late = 0; /* from when on a wait counts, for the first of those that wait long */
        for (unsigned i = 0; atomic_load_explicit(&barrier->phase, memory_order_acquire) == phase; i++) {
            if (i == PATIENCE && atomic_exchange(&barrier->watched, phase + 1) != phase + 1)
                late = fa_nanoseconds() + barrier->patience;
            if (late && atomic_load(&adapts)) {
                const int64_t time = fa_nanoseconds();
                if (too_long(time - late, time)) come_late(barrier);
            }
            spin(i);
        }
        const int64_t time = late ? fa_nanoseconds() : 0;
        if (time > late) add_wait(time - late, time);
    }
    return barrier->dissolved;
}

void fa_progress_publish(fa_progress *progress, fa_index steps)
{
    atomic_store_explicit(&progress->steps, steps, memory_order_release);
}

void fa_progress_wait(fa_progress *progress, fa_index steps)
{
    for (unsigned i = 0; atomic_load_explicit(&progress->steps, memory_order_acquire) < steps; i++) spin(i);
}

/* Only the thread that called fork lives on in the child: no workers, and whoever held the locks is gone. */
static void after_fork_in_child(void)
{
    fa_mutex_make(&pool.busy);
    fa_mutex_make(&pool.lock);
    fa_condition_make(&pool.done);
    pool.worker = NULL; /* the old slots' condition variables still count the parent's sleepers: leave them */
    pool.workers = 0;
    atomic_store(&pool.running, 0);
    atomic_store(&pool.caller_asleep, 0);
    atomic_store(&contention.limit, FA_MAX_THREADS);
}

void fa_threads_init(void)
{
    const char *adapt = getenv("FASTATTN_ADAPT_THREADS");
    if (adapt && strcmp(adapt, "0") == 0) fa_threads_adapt(0);
    fa_after_fork(after_fork_in_child);
}
