/* A pseudo-layer: one layer in one direction, over the sequences of a call. recurrent_stack.c decides which thread runs which part
   of it, and when. */
#ifndef FA_OPS_PSEUDO_LAYER_H
#define FA_OPS_PSEUDO_LAYER_H

#include "recurrent.h"

/* Splitting by sequences leaves each thread at least this many: below, a panel that comes from the third-level cache is used too few
   times. */
#define SEQUENCES_PER_THREAD 12
/* Multiply-adds of a step for each thread that repay a barrier (about half a microsecond). */
#define STEP_WORK_PER_THREAD 20000.0
/* A row of the state: which sequence it belongs to. Slots are sorted by falling length; all pseudo-layers of a call share them. */
typedef struct {
    fa_index length, sequence;
} slot;

/* An element stays where its random word is at least the threshold, times the scale. */
/* Dropout of the gradient of what a layer has put out, dx[T, B, directions P] with strides of time and batch, in place: the elements that
   were dropped, and the same scale. */
void OP(recurrent_dropout)(void *dx, const fa_index stride[2], fa_index T, fa_index B, fa_index P, fa_index layer,
                           fa_index directions, double dropout, uint64_t seed);

typedef struct {
    const fa_recurrent_arguments *a;
    fa_index index; /* layer * directions + direction */
    recurrent_layer g;
    packed_weights w;
    const slot *slots;
    real *h[2];               /* [B, ld_h], row i for slot i */
    stored *rounded[2];       /* h as products and y have it: of 16-bit arrays rounded at each step, else h itself */
    real *c, *inner, *update; /* [B, ld]; inner: what a second product of the step takes: r h, or o tanh(c) before a projection */
    stored *rounded_inner;    /* likewise */
} pseudo_layer;

/* A thread's part of a pseudo-layer. With a barrier it is a slice of the panels, and all threads wait at the barrier between steps (and
   in a step that has a second product). Without, it is each sequence whose number is `thread` modulo `threads`, and no thread
   waits. */
typedef struct {
    int thread, threads;
    fa_team_barrier *barrier;
} layer_share;

/* Slots of all sequences, longest first; returns the longest length. */
fa_index OP(recurrent_sort)(slot *slots, const fa_recurrent_arguments *a);
/* Plans the scratch of the state, and of the packed weights unless the caller has them. */
void OP(pseudo_layer_plan)(pseudo_layer *c, arena *plan);
/* Initial state and packed weights. */
fa_status OP(pseudo_layer_start)(pseudo_layer *c);
/* Scratch of a share, and its steps [step, end). No step depends on where a run was cut. Returns the step where it ended: before `end` if
   the team dissolves. */
size_t OP(pseudo_layer_work_bytes)(const pseudo_layer *c, layer_share share);
fa_index OP(pseudo_layer_run)(const pseudo_layer *c, layer_share share, char *scratch, fa_index step, fa_index end);
/* The final state of slot i, and zeros behind the end of its sequence. */
void OP(pseudo_layer_finish)(const pseudo_layer *c, fa_index i);

#endif
