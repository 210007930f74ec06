// Collectives made of channels, and the tables of their transports.
#include <cstdio>
#include <cstring>
#include <vector>

#include "channels/channels.h"
#include "runtime/comm.h"

namespace longseq::channels {

namespace {

using Transfer = Channels::Transfer;

float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// To nearest even; a NaN stays one.
uint16_t narrow(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// How a stored value is read, added and written.
template <class T>
struct Stored {
  using Sum = T;
  static T read(T value) { return value; }
  static T write(T value) { return value; }
};
struct Bf16 {
  uint16_t bits;
};
template <>
struct Stored<Bf16> {
  using Sum = float;
  static float read(Bf16 value) { return widen(value.bits); }
  static Bf16 write(float value) { return {narrow(value)}; }
};

// A NaN of any rank stays one.
template <class Sum>
Sum larger(Sum a, Sum b) {
  return a != a || a > b ? a : b;
}

// y[i] = the reduction of x[0][i], x[1][i], ... in that order. `stride`: elements from one part to the next. y may be
// one of the parts.
template <class T>
void reduce(const T *x, int64_t parts, int64_t stride, T *y, int64_t count, int32_t kind) {
  using S = Stored<T>;
  using Sum = typename S::Sum;
  constexpr int64_t kBlock = 1024;
  Sum sums[kBlock];
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t n = count - begin < kBlock ? count - begin : kBlock;
    for (int64_t i = 0; i < n; ++i) sums[i] = S::read(x[begin + i]);
    for (int64_t p = 1; p < parts; ++p) {
      const T *part = x + p * stride + begin;
      if (kind == LS_REDUCE_SUM)
        for (int64_t i = 0; i < n; ++i) sums[i] += S::read(part[i]);
      else
        for (int64_t i = 0; i < n; ++i) sums[i] = larger(sums[i], S::read(part[i]));
    }
    for (int64_t i = 0; i < n; ++i) y[begin + i] = S::write(sums[i]);
  }
}

void reduce_parts(const void *x, int64_t parts, int64_t stride, void *y, int64_t count, int32_t dtype, int32_t kind) {
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    reduce(static_cast<const T *>(x), parts, stride, static_cast<T *>(y), count, kind);
  };
  if (dtype == LS_F32) return run(0.0f);
  if (dtype == LS_BF16) return run(Bf16{});
  if (dtype == LS_F64) return run(0.0);
  return run(int64_t{0});
}

char *at(const void *data, int64_t bytes) { return const_cast<char *>(static_cast<const char *>(data)) + bytes; }

// Parts of `bytes` each: this rank's own is copied, the others' travel.
void all_to_all_parts(Channels &channels, const void *x, void *y, int64_t bytes) {
  const int32_t own = channels.rank();
  std::vector<Transfer> sends, receives;
  // Every rank begins with its next neighbour, so that not all send to one.
  for (int32_t i = 1; i < channels.size(); ++i) {
    const int32_t to = (own + i) % channels.size(), from = (own + channels.size() - i) % channels.size();
    sends.push_back({to, at(x, to * bytes), bytes});
    receives.push_back({from, at(y, from * bytes), bytes});
  }
  if (bytes > 0) std::memcpy(at(y, own * bytes), at(x, own * bytes), static_cast<size_t>(bytes));
  channels.exchange(std::move(sends), std::move(receives));
}

void all_gather_parts(Channels &channels, const void *x, void *y, int64_t bytes) {
  const int32_t own = channels.rank();
  std::vector<Transfer> sends, receives;
  for (int32_t i = 1; i < channels.size(); ++i) {
    const int32_t to = (own + i) % channels.size(), from = (own + channels.size() - i) % channels.size();
    sends.push_back({to, at(x, 0), bytes});
    receives.push_back({from, at(y, from * bytes), bytes});
  }
  if (bytes > 0 && at(y, own * bytes) != x) std::memcpy(at(y, own * bytes), x, static_cast<size_t>(bytes));
  channels.exchange(std::move(sends), std::move(receives));
}

// Elements begin .. begin + count - 1 of n that rank r of P adds.
struct Share {
  int64_t begin, count;
  Share(int64_t n, int32_t r, int32_t ranks) {
    const int64_t size = (n + ranks - 1) / ranks;
    begin = std::min<int64_t>(n, r * size);
    count = std::min<int64_t>(size, n - begin);
  }
};

// Runs the body of an entry; no exception crosses the table.
template <class Body>
ls_status run(void *comm, char *error, size_t error_size, const Body &body) {
  try {
    body(*static_cast<Channels *>(comm));
    return LS_OK;
  } catch (const Error &failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return failure.code();
  } catch (const std::exception &failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return LS_DEVICE_FAILURE;
  }
}

// transport: makes a rank's ends.
template <std::unique_ptr<Channels> (*transport)(const ls_comm_options &)>
ls_status open(const ls_comm_options *options, void **comm, char *address, char *error, size_t error_size) {
  try {
    std::unique_ptr<Channels> channels = transport(*options);
    channels->address(address);
    *comm = channels.release();
    return LS_OK;
  } catch (const Error &failure) {
    std::snprintf(error, error_size, "%s", failure.what());
    return failure.code();
  }
}

ls_status connect(void *comm, const char *addresses, char *error, size_t error_size) {
  return run(comm, error, error_size, [&](Channels &channels) { channels.connect(addresses); });
}

ls_status all_to_all(const ls_exec *exec, void *comm, const void *x, void *y, int64_t bytes) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) { all_to_all_parts(channels, x, y, bytes); });
}

ls_status all_gather(const ls_exec *exec, void *comm, const void *x, void *y, int64_t bytes) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) { all_gather_parts(channels, x, y, bytes); });
}

ls_status reduce_scatter(const ls_exec *exec, void *comm, const void *x, void *y, int64_t count, int32_t dtype,
                         int32_t kind) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) {
    all_to_all_parts(channels, x, exec->workspace, count * dtype_bytes(dtype));
    reduce_parts(exec->workspace, channels.size(), count, y, count, dtype, kind);
  });
}

ls_status all_reduce(const ls_exec *exec, void *comm, void *x, int64_t count, int32_t dtype, int32_t kind) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) {
    const int32_t own = channels.rank(), ranks = channels.size();
    const int64_t width = dtype_bytes(dtype);
    const Share mine(count, own, ranks);
    // Every rank adds its share, then all get the shares of all.
    std::vector<Transfer> sends, receives, spread, collect;
    for (int32_t i = 1; i < ranks; ++i) {
      const int32_t to = (own + i) % ranks, from = (own + ranks - i) % ranks;
      const Share theirs(count, to, ranks), other(count, from, ranks);
      sends.push_back({to, at(x, theirs.begin * width), theirs.count * width});
      receives.push_back({from, at(exec->workspace, from * mine.count * width), mine.count * width});
      spread.push_back({to, at(x, mine.begin * width), mine.count * width});
      collect.push_back({from, at(x, other.begin * width), other.count * width});
    }
    if (mine.count > 0)
      std::memcpy(at(exec->workspace, own * mine.count * width), at(x, mine.begin * width),
                  static_cast<size_t>(mine.count * width));
    channels.exchange(std::move(sends), std::move(receives));
    reduce_parts(exec->workspace, ranks, mine.count, at(x, mine.begin * width), mine.count, dtype, kind);
    channels.exchange(std::move(spread), std::move(collect));
  });
}

ls_status broadcast(const ls_exec *exec, void *comm, void *x, int64_t bytes, int32_t root) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) {
    if (channels.rank() != root) return channels.exchange({}, {{root, at(x, 0), bytes}});
    std::vector<Transfer> sends;
    for (int32_t r = 0; r < channels.size(); ++r)
      if (r != root) sends.push_back({r, at(x, 0), bytes});
    channels.exchange(std::move(sends), {});
  });
}

ls_status send_receive(const ls_exec *exec, void *comm, const void *x, int64_t x_bytes, int32_t to, void *y,
                       int64_t y_bytes, int32_t from) {
  return run(comm, exec->error, exec->error_size, [&](Channels &channels) {
    channels.exchange({{to, at(x, 0), x_bytes}}, {{from, at(y, 0), y_bytes}});
  });
}

void set_timeout(void *comm, int64_t timeout_ms) { static_cast<Channels *>(comm)->set_timeout(timeout_ms); }
void abort(void *comm) { static_cast<Channels *>(comm)->abort(); }
void close(void *comm) { delete static_cast<Channels *>(comm); }

constexpr ls_comm_table table_of(const char *name, decltype(ls_comm_table::open) open_entry) {
  return {
      LS_COMM_API_VERSION,
      sizeof(ls_comm_table),
      name,
      open_entry,
      connect,
      all_to_all,
      all_gather,
      reduce_scatter,
      all_reduce,
      broadcast,
      send_receive,
      set_timeout,
      abort,
      close,
  };
}
const ls_comm_table shared_memory = table_of("shm", open<open_shared_memory>);
const ls_comm_table tcp = table_of("tcp", open<open_tcp>);

}  // namespace

const ls_comm_table *shared_memory_table() { return &shared_memory; }
const ls_comm_table *tcp_table() { return &tcp; }

}  // namespace longseq::channels
