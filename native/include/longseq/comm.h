/* The C function table of a communicator: ranks that exchange tensors. A library fills it for its transport (memory
 * that the ranks of one machine share; a network; GPUs); native/runtime checks arguments and calls it from a device's
 * comm queue.
 *
 * Rules that hold for every entry:
 *  - All ranks of a communicator call the same collectives in the same order with the same sizes.
 *  - Data are contiguous; sizes were checked. A collective returns when this rank's part is done, except where the
 *    device has streams: then it has been given to ls_exec.stream.
 *  - Sums are made in float32 (float64 and int64 in their own type) and rounded once, in the order of the ranks; NCCL
 *    adds float32, float64 and int64 in an order of its own. Every run on the same machines gives the same bits, on
 *    every rank.
 *  - On failure an entry writes one line that names the other rank into the error buffer and returns a status;
 *    LS_CANCELLED after abort. What fails later, on a stream, is told to ls_comm_options.on_failure.
 */
#ifndef LONGSEQ_COMM_H
#define LONGSEQ_COMM_H

#include "longseq/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever the meaning or the layout of anything in this header changes. */
#define LS_COMM_API_VERSION 4

typedef enum ls_reduce_kind { LS_REDUCE_SUM = 0, LS_REDUCE_MAX = 1, LS_REDUCE_COUNT = 2 } ls_reduce_kind;

typedef struct ls_comm_options {
  int32_t rank;       /* of this process, 0 .. size - 1 */
  int32_t size;       /* ranks */
  int64_t timeout_ms; /* a collective that has not ended by then has failed; until set_timeout */
  const char *host;   /* where the other ranks reach this machine, where the transport goes over a network; or NULL */

  /* ---- of a table that exchanges a device's own memory; else NULL ---- */
  void *device;  /* the backend's own state from device_open */
  void *parent;  /* a communicator of this table that has all these ranks among its own, whose ranks all open one now */
  int32_t color; /* the same number for all ranks of this one, another for each other that they open now */
  /* From a thread of the library, once: what was given to a stream has failed, or was given up (LS_CANCELLED), and the
   * stream will go on with whatever bytes there are as soon as this returns. */
  void (*on_failure)(void *context, ls_status status, const char *message);
  void *context;
} ls_comm_options;

/* Bytes of a rank's address at most. */
#define LS_COMM_ADDRESS_BYTES 256

typedef struct ls_comm_table {
  int32_t api_version;  /* LS_COMM_API_VERSION, checked before any other field is read */
  int32_t struct_bytes; /* sizeof(ls_comm_table) */
  const char *name;
  /* Makes this rank's end; `address` gets what every other rank needs to reach it. */
  ls_status (*open)(const ls_comm_options *, void **comm, char address[LS_COMM_ADDRESS_BYTES], char *error,
                    size_t error_size);
  /* addresses: those of all ranks, in their order. Blocks. */
  ls_status (*connect)(void *comm, const char *addresses, char *error, size_t error_size);
  /* y[i] = what rank i has in x[this rank]; `bytes` of each of the `size` parts. */
  ls_status (*all_to_all)(const ls_exec *, void *comm, const void *x, void *y, int64_t bytes);
  /* y[i] = x of rank i; `bytes` of each. x may be y[this rank]. */
  ls_status (*all_gather)(const ls_exec *, void *comm, const void *x, void *y, int64_t bytes);
  /* y = the reduction over ranks of their x[this rank]; `count` elements of each part. workspace: as large as x; on a
   * stream for sums of bfloat16 alone, as in all_reduce. */
  ls_status (*reduce_scatter)(const ls_exec *, void *comm, const void *x, void *y, int64_t count, int32_t dtype,
                              int32_t kind);
  /* x = the reduction over ranks, in place. workspace: size * ceil(count / size) elements. */
  ls_status (*all_reduce)(const ls_exec *, void *comm, void *x, int64_t count, int32_t dtype, int32_t kind);
  /* x = that of rank `root`. */
  ls_status (*broadcast)(const ls_exec *, void *comm, void *x, int64_t bytes, int32_t root);
  /* x goes to rank `to`, y comes from rank `from`; 0 bytes: nothing goes or comes. */
  ls_status (*send_receive)(const ls_exec *, void *comm, const void *x, int64_t x_bytes, int32_t to, void *y,
                            int64_t y_bytes, int32_t from);
  /* From any thread: of what runs, and of what comes. */
  void (*set_timeout)(void *comm, int64_t timeout_ms);
  /* From any thread: what runs and whatever comes later returns LS_CANCELLED here, and fails on the other ranks. */
  void (*abort)(void *comm);
  /* When nothing runs any more. */
  void (*close)(void *comm);
} ls_comm_table;

/* A backend's library that has a table for its device's memory exports this symbol. NULL: it cannot be used here, with
 * one line in error. */
typedef const ls_comm_table *(*ls_comm_open_fn)(int32_t api_version, char *error, size_t error_size);
#define LS_COMM_OPEN_SYMBOL "ls_comm_open"

/* ---- Arguments of the ops, as in backend.h; comm is the number that the runtime gave the communicator. P ranks. ----
 */

/* x, y [P, ...] contiguous: y[i] = x[this rank] of rank i. Its own inverse, and so its backward. */
typedef struct ls_all_to_all_args {
  ls_tensor x, y;
  int64_t comm;
} ls_all_to_all_args;

/* x [...], y [P, ...] contiguous. */
typedef struct ls_all_gather_args {
  ls_tensor x, y;
  int64_t comm;
} ls_all_gather_args;

/* x [P, ...], y [...] contiguous, of one dtype. kind: ls_reduce_kind. */
typedef struct ls_reduce_scatter_args {
  ls_tensor x, y;
  int64_t comm, kind;
} ls_reduce_scatter_args;

/* x contiguous, in place. */
typedef struct ls_all_reduce_args {
  ls_tensor x;
  int64_t comm, kind;
} ls_all_reduce_args;

/* x contiguous, that of rank `root`. */
typedef struct ls_broadcast_args {
  ls_tensor x;
  int64_t comm, root;
} ls_broadcast_args;

/* x, y contiguous, of any sizes; what one rank sends, the other receives. */
typedef struct ls_send_receive_args {
  ls_tensor x, y;
  int64_t comm, to, from;
} ls_send_receive_args;

#ifdef __cplusplus
}
#endif
#endif /* LONGSEQ_COMM_H */
