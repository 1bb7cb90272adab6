/* What the library needs of an operating system: posix.c and windows.c, of which one is empty. Nothing else asks which system it
   is on, and no header of a system reaches the kernels and ops. */
#ifndef FA_PLATFORM_H
#define FA_PLATFORM_H

#include "../../base.h"

#if defined(_WIN32)
/* SRWLOCK, CONDITION_VARIABLE, INIT_ONCE: each a pointer, at first 0. */
typedef struct {
    void *word;
} fa_mutex, fa_condition, fa_once;
#define FA_MUTEX_INIT {0}
#define FA_CONDITION_INIT {0}
#define FA_ONCE_INIT {0}
#else
#include <pthread.h>
typedef pthread_mutex_t fa_mutex;
typedef pthread_cond_t fa_condition;
typedef pthread_once_t fa_once;
#define FA_MUTEX_INIT PTHREAD_MUTEX_INITIALIZER
#define FA_CONDITION_INIT PTHREAD_COND_INITIALIZER
#define FA_ONCE_INIT PTHREAD_ONCE_INIT
#endif

/* New ones in place of whatever was there: after a fork, too. */
void fa_mutex_make(fa_mutex *mutex);
void fa_condition_make(fa_condition *condition);
void fa_mutex_lock(fa_mutex *mutex);
int fa_mutex_try(fa_mutex *mutex); /* whether it is locked now */
void fa_mutex_unlock(fa_mutex *mutex);
void fa_condition_wait(fa_condition *condition, fa_mutex *mutex);
void fa_condition_signal(fa_condition *condition); /* wakes one thread */
void fa_call_once(fa_once *once, void (*function)(void));

/* A thread that nobody joins and that signals do not reach: they belong to the program's own. Whether it could be had. */
typedef void fa_thread_body(void *argument);
int fa_thread_start(fa_thread_body *body, void *argument);
void fa_thread_yield(void);
/* How often the calling thread had to give its processor to another; 0 where the system does not say. */
long fa_thread_switches(void);
/* Calls it in the child of a fork, where there are forks. */
void fa_after_fork(void (*in_child)(void));

/* CPUs that the process may use, at least 1; CPUs' worth of time that its control group has, 0 for no limit. */
int fa_cpu_count(void);
double fa_cpu_quota(void);
/* Of a clock that runs steadily. */
int64_t fa_nanoseconds(void);

/* Memory of this alignment, a power of two, or NULL; given back by fa_memory_free alone. */
void *fa_memory_take(size_t alignment, size_t size);
void fa_memory_free(void *memory);
/* Advice: that large pages would serve; that the contents are needed no more. */
void fa_memory_is_large(void *memory, size_t size);
void fa_memory_is_unused(void *memory, size_t size);
/* Gives free memory of the C library back to the system. */
void fa_memory_trim(void);

/* NULL where there is no such library, or symbol. The path is UTF-8. */
void *fa_library_open(const char *path);
void *fa_library_symbol(void *library, const char *name);
/* For libraries that read it when they are loaded; NULL removes the variable. */
void fa_environment_set(const char *name, const char *value);

#endif
