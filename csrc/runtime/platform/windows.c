#if defined(_WIN32)
#include "platform.h"

#define WIN32_LEAN_AND_MEAN
#define NOMINMAX
#include <windows.h>

#include <malloc.h>
#include <process.h>
#include <stdlib.h>

_Static_assert(sizeof(SRWLOCK) == sizeof(fa_mutex), "a lock is a pointer");
_Static_assert(sizeof(CONDITION_VARIABLE) == sizeof(fa_condition), "a condition is a pointer");
_Static_assert(sizeof(INIT_ONCE) == sizeof(fa_once), "a flag is a pointer");

/* ---- locks ---- */

void fa_mutex_make(fa_mutex *mutex) { InitializeSRWLock((SRWLOCK *)mutex); }
void fa_condition_make(fa_condition *condition) { InitializeConditionVariable((CONDITION_VARIABLE *)condition); }
void fa_mutex_lock(fa_mutex *mutex) { AcquireSRWLockExclusive((SRWLOCK *)mutex); }
int fa_mutex_try(fa_mutex *mutex) { return TryAcquireSRWLockExclusive((SRWLOCK *)mutex); }
void fa_mutex_unlock(fa_mutex *mutex) { ReleaseSRWLockExclusive((SRWLOCK *)mutex); }
void fa_condition_wait(fa_condition *condition, fa_mutex *mutex)
{
    SleepConditionVariableSRW((CONDITION_VARIABLE *)condition, (SRWLOCK *)mutex, INFINITE, 0);
}
void fa_condition_signal(fa_condition *condition) { WakeConditionVariable((CONDITION_VARIABLE *)condition); }

typedef struct {
    void (*function)(void);
} once_call;

static BOOL CALLBACK call_function(PINIT_ONCE once, PVOID parameter, PVOID *context)
{
    (void)once;
    (void)context;
    ((once_call *)parameter)->function();
    return TRUE;
}

void fa_call_once(fa_once *once, void (*function)(void))
{
    once_call call = {function};
    InitOnceExecuteOnce((INIT_ONCE *)once, call_function, &call, NULL);
}

/* ---- threads ---- */

typedef struct {
    fa_thread_body *body;
    void *argument;
} start;

static unsigned __stdcall run(void *argument)
{
    const start s = *(start *)argument;
    free(argument);
    s.body(s.argument);
    return 0;
}

int fa_thread_start(fa_thread_body *body, void *argument)
{
    start *s = malloc(sizeof *s);
    if (!s) return 0;
    *s = (start){body, argument};
    const uintptr_t thread = _beginthreadex(NULL, 0, run, s, 0, NULL);
    if (thread)
        CloseHandle((HANDLE)thread);
    else
        free(s);
    return thread != 0;
}

void fa_thread_yield(void) { SwitchToThread(); }
long fa_thread_switches(void) { return 0; }
void fa_after_fork(void (*in_child)(void)) { (void)in_child; }

/* ---- CPUs and time ---- */

int fa_cpu_count(void)
{
    DWORD_PTR of_process, of_system;
    int count = 0;
    /* Of a process in several groups of processors the masks are 0. */
    if (GetProcessAffinityMask(GetCurrentProcess(), &of_process, &of_system))
        for (; of_process; of_process &= of_process - 1) count++;
    if (count == 0) count = (int)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return count < 1 ? 1 : count;
}

double fa_cpu_quota(void) { return 0; }

int64_t fa_nanoseconds(void)
{
    LARGE_INTEGER ticks, rate;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&rate);
    return ticks.QuadPart / rate.QuadPart * 1000000000 + ticks.QuadPart % rate.QuadPart * 1000000000 / rate.QuadPart;
}

/* ---- memory ---- */

void *fa_memory_take(size_t alignment, size_t size) { return _aligned_malloc(size, alignment); }
void fa_memory_free(void *memory) { _aligned_free(memory); }
/* Large pages need a privilege that programs seldom have. */
void fa_memory_is_large(void *memory, size_t size)
{
    (void)memory;
    (void)size;
}
/* MEM_RESET is of whole pages, and memory of the C library's shares its first and last. */
void fa_memory_is_unused(void *memory, size_t size)
{
    (void)memory;
    (void)size;
}
void fa_memory_trim(void) { (void)_heapmin(); }

/* ---- libraries ---- */

void *fa_library_open(const char *path)
{
    wchar_t wide[MAX_PATH * 4];
    if (!MultiByteToWideChar(CP_UTF8, 0, path, -1, wide, (int)(sizeof wide / sizeof *wide))) return NULL;
    return (void *)LoadLibraryExW(wide, NULL, LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
}

void *fa_library_symbol(void *library, const char *name) { return (void *)(uintptr_t)GetProcAddress((HMODULE)library, name); }

/* Of the system and of the C library, which keeps a copy. */
void fa_environment_set(const char *name, const char *value)
{
    SetEnvironmentVariableA(name, value);
    _putenv_s(name, value ? value : "");
}

#else
typedef int fa_platform_is_posix; /* a file has to have something in it */
#endif
