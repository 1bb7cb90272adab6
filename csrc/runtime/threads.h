/* The library's own thread pool: persistent workers, started at first need, asleep between calls, rebuilt after fork.

   There is one primitive, a team of threads: fa_team_run calls body(context, thread, threads) on each of its threads, which
   run at the same time, so that they may wait for each other at fa_team_barrier. How many there are is the pool's decision: one
   when the pool is busy with another caller's team or with an outer call of this one, or when no thread can be had, and fewer
   while other programs want the processors. A body must therefore compute the same values for any number of threads.

   fa_parallel_for is the team that splits a loop. It equals

       for (fa_index i = 0; i < n; i++) body(context, i, worker);

   in any order (but begun in rising order), with `worker` below max_threads and never used by two bodies at once: it picks the scratch.
   A worker that has not come by the end is not waited for.

   On a busy machine threads lose their processor for milliseconds. What a thread has begun is its own, so others wait for that once;
   then the team dissolves (fa_team_wait), and the next ones are smaller for a while. */
#ifndef FA_THREADS_H
#define FA_THREADS_H

#include "../base.h"

#define FA_MAX_THREADS 256

typedef void fa_team_body(void *context, int thread, int threads);
typedef void fa_loop_body(void *context, fa_index i, int worker);

int fa_get_num_threads(void);
void fa_set_num_threads(
    int n); /* 1 <= n <= FA_MAX_THREADS; of the block that the thread is in, else of the process (settings.h) */

/* The same for threadpoolctl, which finds them by name in the loaded library; any n is clamped into the range. */
FA_EXPORT int fastattn_get_num_threads(void);
FA_EXPORT void fastattn_set_num_threads(int n);

void fa_team_run(int max_threads, fa_team_body *body, void *context);
void fa_parallel_for(fa_index n, int max_threads, fa_loop_body *body, void *context);

/* A barrier for the threads of the running team. Zero-initialise for each team; each thread calls wait the same number of times. It
   returns nonzero, to all threads alike and from then on, once one has come so late that the team should dissolve: the body then ends
   where its work can be continued by another team. */
typedef struct {
    _Atomic unsigned arrived, phase, watched;
    _Atomic int late;
    int dissolved;
    int64_t patience; /* nanoseconds of the work between two waits: fa_patience(multiply-adds of a thread) */
} fa_team_barrier;
int fa_team_wait(fa_team_barrier *barrier, int threads);
int64_t fa_patience(double work);
/* For a thread that polls for what others do, and has for a while. */
void fa_team_yield(void);

/* How far one task of a loop has come, for the task that may add to the same sums only after it. fa_parallel_for begins its
   tasks in rising order, so a task that waits for an earlier one never waits for one that has not begun. Zero-initialise. */
typedef struct {
    _Atomic fa_index steps;
} fa_progress;
void fa_progress_publish(fa_progress *progress, fa_index steps);
void fa_progress_wait(fa_progress *progress, fa_index steps);

/* Threads worth waking for `work` multiply-adds (or as much other arithmetic), at most fa_get_num_threads() and fewer while the machine is
   busy. Waking and collecting one costs some 5 microseconds; with less than this much work for each, the call is faster alone. An op calls
   this once, and sizes its scratch by the result: the number of threads may be set by another caller at any time. */
#define FA_WORK_PER_THREAD 200000.0
int fa_threads_for(double work);

/* Whether teams do without threads that are late on a busy machine (they do unless told otherwise), and the number of threads that a team may have now. */
void fa_threads_adapt(int adapt);
int fa_threads_limit(void);
/* For tests: every so many meetings a team dissolves, 0: none. Returns how many have since the last call. */
int fa_threads_disturb(int meetings);

/* Reads FASTATTN_ADAPT_THREADS (0: teams wait for all their threads) and registers the fork handlers. Called once at import. */
void fa_threads_init(void);

#endif
