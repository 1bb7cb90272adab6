#include "settings.h"
#include "../base.h"

#include <stdatomic.h>

/* Numbers plus 1, so that 0 is FA_UNSET. */
static _Atomic int of_process[FA_SETTINGS], of_blocks[FA_SETTINGS];
static _Thread_local int of_thread[FA_SETTINGS];

static int load(_Atomic int *number) { return atomic_load_explicit(number, memory_order_relaxed); }

/* Without blocks, threads are not looked at: it costs a call. */
int fa_setting_get(fa_setting setting)
{
    const int blocks = load(&of_blocks[setting]);
    if (FA_LIKELY(!blocks)) return load(&of_process[setting]) - 1;
    return (of_thread[setting] ? of_thread[setting] : blocks) - 1;
}

void fa_setting_set(fa_setting setting, int value)
{
    if (load(&of_blocks[setting]) && of_thread[setting])
        of_thread[setting] = value + 1;
    else
        atomic_store(&of_process[setting], value + 1);
}

int fa_setting_default(fa_setting setting, int value)
{
    int unset = 0;
    atomic_compare_exchange_strong(&of_process[setting], &unset, value + 1);
    return fa_setting_get(setting);
}

void fa_setting_of_thread(fa_setting setting, int value) { of_thread[setting] = value + 1; }
void fa_setting_of_blocks(fa_setting setting, int value) { atomic_store(&of_blocks[setting], value + 1); }
