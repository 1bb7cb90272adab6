/* What a caller can choose, each a number: of the process; of blocks, which end; and of the thread that is in such a block. A thread in
   a block has its own number. The others have that of the block begun last, and the process's when there is none. So blocks may end in
   any order, and leave nothing behind. */
#ifndef FA_SETTINGS_H
#define FA_SETTINGS_H

typedef enum {
    FA_SETTING_THREADS = 0,
    FA_SETTING_ISA,
    FA_SETTING_ATTENTION, /* the strategies, by their place in fastattn/_ext/settings.pxi */
    FA_SETTING_LINEAR,
    FA_SETTINGS
} fa_setting;

#define FA_UNSET (-1) /* any other number is at least 0 */

/* What is in force for the calling thread; FA_UNSET where nobody has chosen. */
int fa_setting_get(fa_setting setting);
/* Of the block that the thread is in, else of the process. */
void fa_setting_set(fa_setting setting, int value);
/* Of the process unless somebody has chosen already; returns what is in force. */
int fa_setting_default(fa_setting setting, int value);

/* FA_UNSET: in no block. Callers keep the account of blocks. */
void fa_setting_of_thread(fa_setting setting, int value);
void fa_setting_of_blocks(fa_setting setting, int value);

#endif
