// A block's part of one feature map as a matrix, and the two reductions over it.
//
// Every layout is read as a matrix of vectors of V adjacent elements, one 16-byte access each where
// alignment allows:
//
//   layout   rows                columns                         a vector holds
//   nchw     channels            positions of the slice, by V    V positions of one channel
//   nhwc     positions           channels, by V                  V channels of one position
//   chw32    positions           channels, by V                  V channels of one position
//
// so that the channel statistics reduce one axis, the spatial statistics the other, and one pair of
// functions, `reduce_rows` and `reduce_columns`, serves both in every layout.
//
// A block of T threads is a grid of R row lanes by Q column lanes, both powers of two. A thread
// visits rows r, r + R, ... and columns q, q + Q, .... Rows are reduced by one warp each, so there
// the block is a grid of at most a warp's column lanes (`Tiling::Rows`); between that and anything
// else that touches what is kept in shared memory lies a barrier. Accesses to it have no bank
// conflict beyond what 16 bytes per lane cost anyway. Sums run in an order fixed by the geometry:
// same input, same bits.
#pragma once

#include "element.cuh"

namespace cbam {

enum class Layout { nchw, nhwc, chw32 };

// Sum and maximum of some elements, or one of the two. Of none: 0 and minus infinity.
template <bool present> struct Sum { float sum = 0.0f; };
template <> struct Sum<false> {};
template <bool present> struct Max { float max = __int_as_float(0xff800000); };
template <> struct Max<false> {};

template <bool has_sum, bool has_max>
struct alignas(has_sum && has_max ? 8 : 4) Stat : Sum<has_sum>, Max<has_max> {
  static constexpr bool sums = has_sum, maxes = has_max;

  __device__ __forceinline__ void add(float v) {
    if constexpr (has_sum) this->sum += v;
    if constexpr (has_max) this->max = max_or_nan(this->max, v);
  }
  __device__ __forceinline__ void add(const Stat& other) {
    if constexpr (has_sum) this->sum += other.sum;
    if constexpr (has_max) this->max = max_or_nan(this->max, other.max);
  }
  // That of the lane whose number differs in the bits of `mask`.
  __device__ __forceinline__ Stat shuffled(int mask) const {
    Stat other;
    if constexpr (has_sum) other.sum = shuffle_xor(this->sum, mask);
    if constexpr (has_max) other.max = shuffle_xor(this->max, mask);
    return other;
  }
};

// Shape of the whole map. `stored` is the number of channels stored, a multiple of 32 for chw32 and
// at least `channels`; what lies beyond `channels` may hold anything in x and is zero in y.
struct Shape {
  int channels, stored, height, width;

  __device__ __forceinline__ int positions() const { return height * width; }
};

// The part of a map that one block works on: positions [p0, p1) of stored channels [c0, c1), all of
// them multiples of V where V elements along that axis make a vector.
struct Slice {
  int p0, p1, c0, c1;
};

// How a block of T threads walks the matrix: V elements per access, Q column lanes. `padded` says
// that more channels are stored than there are.
template <typename Element_, Layout layout_, bool padded_, int V_, int T_, int Q_>
struct Tiling {
  using Element = Element_;
  using Vector = Pack<Element_, V_>;
  static constexpr Layout layout = layout_;
  static constexpr bool padded = padded_;
  static constexpr int V = V_, T = T_, Q = Q_, R = T_ / Q_;
  static constexpr bool rows_are_channels = layout == Layout::nchw;

  // Rows a thread handles together, so that as many independent loads are in flight.
  static constexpr int batch = 4;

  // Rows that are waited for together where shared memory is filled in the background: what the
  // block's threads read at once.
  static constexpr int chunk = R * batch;

  // In chw32 the 32 channels of one position are adjacent, then comes the next position. To read
  // runs longer than 32 bytes, neighbouring lanes take `run` columns of `run_rows` rows first.
  static constexpr int run = layout == Layout::chw32 ? 32 / V : Q;
  static constexpr int run_rows = layout == Layout::chw32 ? 4 : 1;

  // Found anew wherever they are needed, and not kept from one image to the next.
  __device__ __forceinline__ static int row_lane() {
    const int t = opaque(threadIdx.x);
    return t / run % run_rows + t / (run_rows * Q) * run_rows;
  }
  __device__ __forceinline__ static int column_lane() {
    const int t = opaque(threadIdx.x);
    return t % run + t / (run * run_rows) % (Q / run) * run;
  }

  // Does flipping this bit of the thread's number change its column (otherwise: its row)?
  __device__ __forceinline__ static constexpr bool is_column_bit(int bit) {
    return bit < run || (bit >= run * run_rows && bit < Q * run_rows);
  }

  // The bits of a lane's number that change its column.
  __device__ __forceinline__ static constexpr unsigned column_bits() {
    unsigned bits = 0;
    for (int bit = 1; bit < kWarp; bit *= 2)
      if (is_column_bit(bit)) bits |= bit;
    return bits;
  }

  // Warps side by side along one row, and groups of such warps.
  static constexpr int warps_per_row = Q * run_rows > kWarp ? Q * run_rows / kWarp : 1;
  static constexpr int warp_rows = T / kWarp / warps_per_row;

  // The same block with no more column lanes than one warp has, so that a warp reduces a row alone.
  using Rows = Tiling<Element_, layout_, padded_, V_, T_, Q_ / warps_per_row>;

  // Vectors' values exchanged between warps at a time: four statistics for each thread at most.
  static constexpr int most_exchanged = 4 * kWarp * warps_per_row / Q;
  static constexpr int exchange = V < most_exchanged ? V : most_exchanged;
  // Statistics that `reduce_columns` keeps in shared memory: that is, per channel or per position.
  static constexpr int column_scratch = warp_rows * Q * exchange;
  static constexpr int channel_scratch = rows_are_channels ? 0 : column_scratch;
  static constexpr int position_scratch = rows_are_channels ? column_scratch : 0;

  static_assert(T % Q == 0 && T % kWarp == 0 && Q % run == 0 && R % run_rows == 0);
  static_assert(layout != Layout::chw32 || run * run_rows <= kWarp);
};

// Offset in elements of a vector in a map, or slice of one, that stores `row_stride` elements per
// row and, for chw32, `block_stride` elements per 32 channels.
template <class G>
__device__ __forceinline__ int offset_of(int row, int col, int row_stride, int block_stride) {
  if constexpr (G::layout == Layout::chw32) {
    return col / G::run * block_stride + row * row_stride + col % G::run * G::V;
  }
  return row * row_stride + col * G::V;
}

// The block's slice as a matrix. Its first `kept_rows` rows can be kept in shared memory.
template <class G>
struct Tile {
  using Element = typename G::Element;
  using Vector = typename G::Vector;

  size_t origin;  // of the slice in the tensor, in elements
  int rows, cols, row_stride, block_stride;
  int kept_rows = 0, kept_row_stride = 0, kept_block_stride = 0;
  Element* kept = nullptr;

  __device__ __forceinline__ Tile(const Shape& shape, int image, const Slice& slice) {
    const int positions = shape.positions();
    const int own_positions = slice.p1 - slice.p0, own_channels = slice.c1 - slice.c0;
    if constexpr (G::layout == Layout::nchw) {
      origin = (size_t(image) * shape.stored + slice.c0) * positions + slice.p0;
      rows = own_channels, cols = own_positions / G::V;
      row_stride = positions, block_stride = 0;
    } else if constexpr (G::layout == Layout::nhwc) {
      origin = (size_t(image) * positions + slice.p0) * shape.stored + slice.c0;
      rows = own_positions, cols = own_channels / G::V;
      row_stride = shape.stored, block_stride = 0;
    } else {
      origin = (size_t(image) * shape.stored + slice.c0) * positions + size_t(slice.p0) * 32;
      rows = own_positions, cols = own_channels / G::V;
      row_stride = 32, block_stride = positions * 32;
    }
  }

  __device__ __forceinline__ void keep(Element* memory, int kept_rows_) {
    kept = memory;
    kept_rows = kept_rows_ < rows ? kept_rows_ : rows;
    kept_row_stride = G::layout == Layout::chw32 ? 32 : cols * G::V;
    kept_block_stride = kept_rows * 32;
  }

  // The same slice of the image `number` further on, each of so many elements, which is kept behind
  // those of the images before it.
  __device__ __forceinline__ Tile of_image(int number, size_t image_elements) const {
    Tile other = *this;
    other.origin += number * image_elements;
    other.kept += number * kept_rows * cols * G::V;
    return other;
  }

  // Where a vector of the slice lies in a tensor of this shape.
  template <typename T>
  __device__ __forceinline__ T* at(T* x, int row, int col) const {
    return x + origin + offset_of<G>(row, col, row_stride, block_stride);
  }
  __device__ __forceinline__ Element* kept_at(int row, int col) const {
    return kept + offset_of<G>(row, col, kept_row_stride, kept_block_stride);
  }

  // Read a batch of vectors, rows `row`, `row + step`, ..., of a tensor of this shape.
  __device__ __forceinline__ void read(const Element* x, int row, int step, int col,
                                       Vector (&vectors)[G::batch]) const {
    const Element* const from = at(x, row, col);
    const int apart = step * row_stride;
#pragma unroll
    for (int u = 0; u < G::batch; ++u)
      if (row + u * step < rows) vectors[u] = Vector::load_global(from + u * apart);
  }

  // Read a batch and keep in shared memory what is to be kept.
  __device__ __forceinline__ void read_and_keep(const Element* x, int row, int step, int col,
                                                Vector (&vectors)[G::batch]) const {
    read(x, row, step, col, vectors);
#pragma unroll
    for (int u = 0; u < G::batch; ++u) {
      const int at_row = row + u * step;
      if (at_row < kept_rows) vectors[u].store(kept_at(at_row, col));
    }
  }

  // Read a batch again, from shared memory where it was kept.
  __device__ __forceinline__ void read_again(const Element* x, int row, int step, int col,
                                             Vector (&vectors)[G::batch]) const {
    if (row + (G::batch - 1) * step < kept_rows) {
#pragma unroll
      for (int u = 0; u < G::batch; ++u)
        vectors[u] = Vector::load_shared(kept_at(row + u * step, col));
      return;
    }
#pragma unroll
    for (int u = 0; u < G::batch; ++u) {
      const int at_row = row + u * step;
      if (at_row < kept_rows) {
        vectors[u] = Vector::load_shared(kept_at(at_row, col));
      } else if (at_row < rows) {
        vectors[u] = Vector::load_global(at(x, at_row, col));
      }
    }
  }

  // Read a batch from shared memory.
  __device__ __forceinline__ void read_kept(int row, int step, int col,
                                            Vector (&vectors)[G::batch]) const {
    const Element* const from = kept_at(row, col);
    const int apart = step * kept_row_stride;
#pragma unroll
    for (int u = 0; u < G::batch; ++u)
      if (row + u * step < rows) vectors[u] = Vector::load_shared(from + u * apart);
  }

  static constexpr bool by_rows = G::layout == Layout::nchw, in_blocks = G::layout == Layout::chw32;

  // Have a batch of `x` copied to where it is kept. Every thread does so in every chunk where its
  // column is not behind the last: the chunk counts `R * cols`.
  __device__ __forceinline__ void copy_batch(const Element* x, int row, int col,
                                             Arrival* chunk) const {
    const Element* const from = at(x, row, col);
    Element* const to = kept_at(row, col);
#pragma unroll
    for (int u = 0; u < G::batch; ++u)
      if (row + u * G::R < rows)
        copy(to + u * (G::R * kept_row_stride), from + u * (G::R * row_stride));
    arrive_with_copies(chunk);
  }
  __device__ __forceinline__ void copy_all(const Element* x, Arrival* chunks) const {
#pragma unroll 1
    for (int chunk = 0; chunk * G::chunk < rows; ++chunk)
#pragma unroll 1
      for (int col = G::column_lane(); col < cols; col += G::Q)
        copy_batch(x, chunk * G::chunk + G::row_lane(), col, chunks + chunk);
  }

  // Wait until a batch of rows of the slice has been copied.
  __device__ __forceinline__ void await_rows(int row, int step, Arrival* chunks,
                                             unsigned parity) const {
#pragma unroll
    for (int u = 0; u < G::batch; ++u)
      if (u == 0 || step * G::batch != G::chunk)
        await(chunks + min(row + u * step, rows - 1) / G::chunk, parity);
  }

  // Have the slice, of all channels stored unless it `cuts` them, of a tensor of this shape brought
  // to L2: run by run of what is contiguous, or in cache lines where the machine or the alignment
  // allows no more.
  template <bool cuts = false>
  __device__ __forceinline__ void prefetch(const Element* x) const {
    constexpr int piece = sizeof(Vector) == 16 ? kLongestPrefetch : 128;
    constexpr bool by_rows = Tile::by_rows || (cuts && !in_blocks);
    const int runs = by_rows ? rows : in_blocks ? cols / G::run : 1;
    const int length = sizeof(Element) * (by_rows ? cols * G::V : rows * row_stride);
    const int pieces = piece > 128 ? 1 : (length + piece - 1) / piece;
    for (int i = threadIdx.x; length > 0 && i < runs * pieces; i += G::T) {
      const int run = i / pieces, from = i % pieces * piece;
      const Element* const start = x + origin + size_t(run) * (by_rows ? row_stride : block_stride);
      prefetch_to_l2<piece == 128>(reinterpret_cast<const char*>(start) + from, length);
    }
  }
};

// One of the `count` lanes that hold the same value, and so can share the work of sending it.
template <int count_>
struct Holder {
  static constexpr int count = count_;
  int number = 0;
};

// How many lanes' numbers differ in `bits` alone.
__device__ __forceinline__ constexpr int lanes_apart(unsigned bits) {
  int lanes = 1;
  for (; bits; bits &= bits - 1) lanes *= 2;
  return lanes;
}

// Add up `values` of all lanes whose numbers differ in `bits` alone. Afterwards the first `left` of
// a lane's values are totals, of those `first`, `first + 1`, .... All lanes of the warp must call.
//
// The lanes exchange values for lanes: of two, one goes on with half of the values and the other
// one with the other half, until each has one left. For 4 values and 32 lanes that takes 6 shuffles
// where adding up one value after the other would take 20.
template <unsigned bits, int count>
struct Totals {
  static constexpr int lanes = lanes_apart(bits);
  static constexpr int left = count > lanes ? count / lanes : 1;
  int first = 0;
  Holder<(lanes > count ? lanes / count : 1)> holder;

  template <class Value>
  __device__ __forceinline__ explicit Totals(Value (&values)[count]) {
    add_lanes<kWarp / 2, count>(values);
  }

 private:
  // From `bit` downwards, of the lane's first `now` values.
  template <int bit, int now, class Value>
  __device__ __forceinline__ void add_lanes(Value (&values)[count]) {
    if constexpr (bit > 0 && !(bits & bit)) {
      add_lanes<bit / 2, now>(values);
    } else if constexpr (bit > 0 && now > 1) {
      const bool upper = threadIdx.x & bit;
      if (upper) first += now / 2;
#pragma unroll
      for (int i = 0; i < now / 2; ++i) {
        const Value sent = upper ? values[i] : values[i + now / 2];
        if (upper) values[i] = values[i + now / 2];
        values[i].add(sent.shuffled(bit));
      }
      add_lanes<bit / 2, now / 2>(values);
    } else if constexpr (bit > 0) {
      values[0].add(values[0].shuffled(bit));
      holder.number = 2 * holder.number + bool(threadIdx.x & bit);
      add_lanes<bit / 2, now>(values);
    }
  }
};

// For `weigh` of the reductions: every element counts, as it is.
struct AsTheyAre {
  template <int count>
  __device__ __forceinline__ int operator()(int, int, float (&)[count]) const { return count; }
};

// Whether a reduction counts in integers.
template <class G, class Weigh> constexpr bool in_integers = false;
template <class G> constexpr bool in_integers<G, AsTheyAre> = G::Vector::is_bytes;

// The statistic of one row's vectors.
template <class G, class Stat, bool integers>
struct RowStat {
  Stat stat;

  template <class Weigh>
  __device__ __forceinline__ void add(const typename G::Vector& vector, int row, int col,
                                      const Weigh& weigh) {
    float values[G::V];
    vector.unpack(values);
    const int count = weigh(row, col, values);
#pragma unroll
    for (int i = 0; i < G::V; ++i)
      if (count == G::V || i < count) stat.add(values[i]);
  }
  __device__ __forceinline__ Stat total() const { return stat; }
};

// Of bytes: sums by dot product, maxima in the halves of a word.
template <class G, class Stat>
struct RowStat<G, Stat, true> {
  int sum = 0;
  unsigned max = 0;

  __device__ __forceinline__ void add(const typename G::Vector& vector, int, int, AsTheyAre) {
    unsigned bytes[G::Vector::words];
    vector.biased(bytes);
#pragma unroll
    for (unsigned word : bytes) {
      if constexpr (Stat::sums) sum = __dp4a(int(word ^ 0x80808080u), 0x01010101, sum);
      if constexpr (Stat::maxes)
        max = __vmaxu2(max, __vmaxu2(even_bytes(word), odd_bytes(word)));
    }
  }
  __device__ __forceinline__ Stat total() const {
    Stat total;
    if constexpr (Stat::sums) total.sum = float(sum);
    if constexpr (Stat::maxes)
      total.max = half_over_base(__vmaxu2(max, max >> 16), 0) - (kIntegerBase + kByteBias);
    return total;
  }
};

// Reduce every row: `read(row, step, col, vectors)` reads a batch, `weigh(row, col, values)` scales
// a vector in place and returns how many of its elements count, `emit(row, stat, holder)` is called
// by every lane that holds the row's statistic in the end. All lanes of a warp must call.
template <class G, class Stat, class Read, class Weigh, class Emit>
__device__ __forceinline__ void reduce_rows(int rows, int cols, Read read, Weigh weigh, Emit emit) {
  using H = typename G::Rows;
  const int row_lane = H::row_lane(), column_lane = H::column_lane();
  for (int base = 0; base < rows; base += H::R * H::batch) {
    RowStat<H, Stat, in_integers<H, Weigh>> of_rows[H::batch];
    for (int col = column_lane; col < cols; col += H::Q) {
      typename H::Vector vectors[H::batch];
      read(base + row_lane, H::R, col, vectors);
#pragma unroll
      for (int u = 0; u < H::batch; ++u) {
        const int row = base + row_lane + u * H::R;
        if (row >= rows) break;
        of_rows[u].add(vectors[u], row, col, weigh);
      }
    }
    Stat stats[H::batch];
#pragma unroll
    for (int u = 0; u < H::batch; ++u) stats[u] = of_rows[u].total();
    const Totals<H::column_bits(), H::batch> totals(stats);
#pragma unroll
    for (int i = 0; i < totals.left; ++i) {
      const int row = base + row_lane + (totals.first + i) * H::R;
      if (row < rows) emit(row, stats[i], totals.holder);
    }
  }
}

// Statistics of the columns of one vector, over up to `most` rows.
template <class G, class Stat, bool integers>
struct ColumnStats {
  static constexpr int most = 1 << 20;
  Stat stats[G::V];

  template <class Weigh>
  __device__ __forceinline__ void add(const typename G::Vector& vector, int row, int col,
                                      const Weigh& weigh) {
    float values[G::V];
    vector.unpack(values);
    weigh(row, col, values);
#pragma unroll
    for (int i = 0; i < G::V; ++i) stats[i].add(values[i]);
  }
  __device__ __forceinline__ Stat total(int i) const { return stats[i]; }
};

// Of bytes: two columns in the halves of a word. 257 bytes of 255 would fill one with their sum.
template <class G, class Stat>
struct ColumnStats<G, Stat, true> {
  static constexpr int most = 256;
  unsigned sums[G::V / 2] = {}, maxima[G::V / 2] = {};
  int count = 0;

  __device__ __forceinline__ void add(const typename G::Vector& vector, int, int, AsTheyAre) {
    unsigned bytes[G::Vector::words];
    vector.biased(bytes);
    ++count;
#pragma unroll
    for (int i = 0; i < G::V / 2; ++i) {
      const unsigned halves = i % 2 ? odd_bytes(bytes[i / 2]) : even_bytes(bytes[i / 2]);
      if constexpr (Stat::sums) sums[i] += halves;
      if constexpr (Stat::maxes) maxima[i] = __vmaxu2(maxima[i], halves);
    }
  }
  __device__ __forceinline__ Stat total(int i) const {
    const int word = i / 4 * 2 + i % 2, half = i % 4 / 2;
    Stat total;
    if constexpr (Stat::sums)
      total.sum = half_over_base(sums[word], half) - (kIntegerBase + kByteBias * count);
    if constexpr (Stat::maxes)
      total.max = half_over_base(maxima[word], half) - (kIntegerBase + kByteBias);
    return total;
  }
};

// Reduce every column, element by element of its vectors: `emit(col * V + i, stat, holder)` is
// called once for each, by one thread. Otherwise as `reduce_rows`; all elements count, all threads
// must call, and `scratch` has Tiling::column_scratch stats of shared memory.
template <class G, class Stat, class Read, class Weigh, class Emit>
__device__ __forceinline__ void reduce_columns(int rows, int cols, Stat* scratch, Read read,
                                               Weigh weigh, Emit emit) {
  const int row_lane = G::row_lane(), column_lane = G::column_lane();
  const int warp_row = threadIdx.x / kWarp / G::warps_per_row;
  for (int base = 0; base < cols; base += G::Q) {
    const int col = base + column_lane;
    Stat stats[G::V];
    for (int start = row_lane; col < cols && start < rows;) {
      ColumnStats<G, Stat, in_integers<G, Weigh>> part;
      const int end = rows - start > part.most * G::R ? start + part.most * G::R : rows;
      for (int row = start; row < end; row += G::R * G::batch) {
        typename G::Vector vectors[G::batch];
        read(row, G::R, col, vectors);
#pragma unroll
        for (int u = 0; u < G::batch; ++u) {
          if (row + u * G::R >= rows) break;
          part.add(vectors[u], row + u * G::R, col, weigh);
        }
      }
#pragma unroll
      for (int i = 0; i < G::V; ++i) stats[i].add(part.total(i));
      start = end;
    }
    const Totals<(kWarp - 1) & ~G::column_bits(), G::V> totals(stats);
#pragma unroll
    for (int group = 0; group < G::V; group += G::exchange) {
#pragma unroll
      for (int i = 0; i < totals.left; ++i) {
        const int at = totals.first + i - group;
        if (at >= 0 && at < G::exchange && totals.holder.number == 0)
          scratch[(warp_row * G::exchange + at) * G::Q + column_lane] = stats[i];
      }
      __syncthreads();
      for (int j = threadIdx.x; j < G::exchange * G::Q; j += G::T) {
        const int total_col = base + j % G::Q;
        if (total_col >= cols) continue;
        Stat total;
#pragma unroll
        for (int w = 0; w < G::warp_rows; ++w) total.add(scratch[w * G::exchange * G::Q + j]);
        emit(total_col * G::V + group + j / G::Q, total, Holder<1>{});
      }
      __syncthreads();
    }
  }
}

}  // namespace cbam
