// What the lanes of a warp do together: shuffles, votes, matrix loads and products.
//
// Fragment layouts: PTX ISA 8.7, sections 9.7.14.5.8 (m16n8k16), 9.7.14.5.9 (m16n8k32) and
// 9.7.14.5.15 (ldmatrix). groupID is lane / 4, threadID_in_group is lane % 4.
#include <cstring>

#include "state.h"

namespace qcemu {

// In the order in which the lanes of a mask are visited.
template <class Visit>
static void each(uint32_t lanes, Visit visit) {
  for (int lane = 0; lane < WARP_SIZE; ++lane)
    if (lanes >> lane & 1) visit(lane);
}

static void pass_warp_barrier(Warp& warp, uint32_t lanes) {
  each(lanes, [&](int lane) { warp.lanes[lane].warp_phase++; });
}

void warp_barrier(uint32_t mask) {
  static const Operation operation = {"__syncwarp", false, pass_warp_barrier};
  join(operation, mask, nullptr, nullptr);
}

// -------------------------------------------------------------------------------------- shuffles

// in[0]: the value's bits, in[1]: the lane it wants, or -1 for its own. A lane that takes no part
// has no value to give; CUDA leaves the result undefined, here it is poison.
static void exchange(Warp& warp, uint32_t lanes) {
  each(lanes, [&](int lane) {
    const auto source = static_cast<int>(warp.lanes[lane].in[1]);
    uint64_t value;
    memset(&value, POISON, sizeof value);
    if (lanes >> source & 1) value = warp.lanes[source].in[0];
    *warp.lanes[lane].out = value;
  });
}

// PTX ISA, shfl.sync: a source beyond the segment gives the lane its own value.
static int source_lane(Shuffle how, int operand, int width) {
  const int lane = lane_of(*current), first = lane / width * width, last = first + width - 1;
  switch (how) {
    case Shuffle::index: return first + (operand & (width - 1));
    case Shuffle::up: return lane - operand < first ? lane : lane - operand;
    case Shuffle::down: return lane + operand > last ? lane : lane + operand;
    case Shuffle::butterfly: return (lane ^ operand) > last ? lane : lane ^ operand;
  }
  return lane;
}

void shuffle(Shuffle how, uint32_t mask, const void* value, void* result, size_t size, int operand, int width) {
  static const Operation operations[] = {{"__shfl_sync", false, exchange},
                                         {"__shfl_up_sync", false, exchange},
                                         {"__shfl_down_sync", false, exchange},
                                         {"__shfl_xor_sync", false, exchange}};
  const Operation& operation = operations[static_cast<int>(how)];
  if (width < 1 || width > WARP_SIZE || (width & (width - 1)))
    fault("%s: the width is %d; it must be a power of two up to 32", operation.name, width);
  uint64_t in[2] = {0, static_cast<uint64_t>(source_lane(how, operand & 31, width))}, out = 0;
  memcpy(in, value, size);
  join(operation, mask, in, &out);
  memcpy(result, &out, size);
}

static void count_votes(Warp& warp, uint32_t lanes) {
  uint64_t ballot = 0;
  each(lanes, [&](int lane) { ballot |= static_cast<uint64_t>(warp.lanes[lane].in[0] != 0) << lane; });
  each(lanes, [&](int lane) { *warp.lanes[lane].out = ballot | static_cast<uint64_t>(lanes) << 32; });
}

uint32_t vote(Vote how, uint32_t mask, uint32_t predicate) {
  static const Operation operation = {"__ballot_sync", false, count_votes};
  const uint64_t in = predicate;
  uint64_t out = 0;
  join(operation, mask, &in, &out);
  const auto ballot = static_cast<uint32_t>(out), lanes = static_cast<uint32_t>(out >> 32);
  if (how == Vote::ballot) return ballot;
  return how == Vote::any ? ballot != 0 : ballot == lanes;
}

// ------------------------------------------------------------------------------ ldmatrix, stmatrix

constexpr uint32_t ALL = 0xffffffffu;
constexpr unsigned ROW_BYTES = 16;  // eight elements of 16 bits

// Lane 8 * m + r holds the address of row r of matrix m.
static unsigned char* row_of(Warp& warp, int matrix, int row, bool write) {
  current = &warp.lanes[matrix * 8 + row];
  const auto address = static_cast<uint32_t>(current->in[0]);
  if (address % ROW_BYTES) fault("ldmatrix or stmatrix row at shared address %u, not a multiple of 16", address);
  auto* pointer = static_cast<unsigned char*>(shared_pointer(address));
  check_access(pointer, ROW_BYTES, write);
  return pointer;
}

// Lane l holds elements 2 * (l % 4) and the next of row l / 4; of column l / 4 when transposed.
template <int COUNT, bool TRANSPOSED>
static void load(Warp& warp, uint32_t) {
  for (int m = 0; m < COUNT; ++m) {
    uint16_t matrix[8][8];
    for (int r = 0; r < 8; ++r) memcpy(matrix[r], row_of(warp, m, r, false), ROW_BYTES);
    for (int lane = 0; lane < WARP_SIZE; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint32_t low = TRANSPOSED ? matrix[j][i] : matrix[i][j];
      const uint32_t high = TRANSPOSED ? matrix[j + 1][i] : matrix[i][j + 1];
      warp.lanes[lane].out[m] = low | high << 16;
    }
  }
}

template <int COUNT, bool TRANSPOSED>
static void store(Warp& warp, uint32_t) {
  for (int m = 0; m < COUNT; ++m) {
    uint16_t matrix[8][8];
    for (int lane = 0; lane < WARP_SIZE; ++lane) {
      const int i = lane / 4, j = lane % 4 * 2;
      const uint64_t pair = warp.lanes[lane].in[1 + m];
      (TRANSPOSED ? matrix[j][i] : matrix[i][j]) = static_cast<uint16_t>(pair);
      (TRANSPOSED ? matrix[j + 1][i] : matrix[i][j + 1]) = static_cast<uint16_t>(pair >> 16);
    }
    for (int r = 0; r < 8; ++r) memcpy(row_of(warp, m, r, true), matrix[r], ROW_BYTES);
  }
}

void load_matrices(int line, int count, bool transposed, uint32_t* registers, uint32_t row_address) {
  static const Operation operations[2][3] = {
      {{"ldmatrix.x1", true, load<1, false>}, {"ldmatrix.x2", true, load<2, false>}, {"ldmatrix.x4", true, load<4, false>}},
      {{"ldmatrix.x1.trans", true, load<1, true>}, {"ldmatrix.x2.trans", true, load<2, true>}, {"ldmatrix.x4.trans", true, load<4, true>}}};
  const uint64_t in = row_address;
  uint64_t out[4];
  join(operations[transposed][count / 2], ALL, &in, out, line);
  for (int m = 0; m < count; ++m) registers[m] = static_cast<uint32_t>(out[m]);
}

void store_matrices(int line, int count, bool transposed, const uint32_t* registers, uint32_t row_address) {
  static const Operation operations[2][3] = {
      {{"stmatrix.x1", true, store<1, false>}, {"stmatrix.x2", true, store<2, false>}, {"stmatrix.x4", true, store<4, false>}},
      {{"stmatrix.x1.trans", true, store<1, true>}, {"stmatrix.x2.trans", true, store<2, true>}, {"stmatrix.x4.trans", true, store<4, true>}}};
  uint64_t in[5] = {row_address};
  for (int m = 0; m < count; ++m) in[1 + m] = registers[m];
  join(operations[transposed][count / 2], ALL, in, nullptr, line);
}

// ------------------------------------------------------------------------------------------ mma

// Operands as a lane passes them: registers of A, of B, and of the accumulator.
constexpr int B_AT = 4, C_AT = 6;

static int32_t saturated(int64_t value) {
  return static_cast<int32_t>(value > INT32_MAX ? INT32_MAX : value < INT32_MIN ? INT32_MIN : value);
}

// The byte of A in row `row`, column k: register (row >= 8) + 2 * (k >= 16), lane by row and k.
template <bool SIGNED>
static int a_byte(const Warp& warp, int row, int k) {
  const int reg = row / 8 + k / 16 * 2, lane = row % 8 * 4 + k % 16 / 4;
  const auto byte = static_cast<uint8_t>(warp.lanes[lane].in[reg] >> k % 4 * 8);
  return SIGNED ? static_cast<int8_t>(byte) : byte;
}

template <bool SIGNED>
static int b_byte(const Warp& warp, int k, int column) {
  const int reg = k / 16, lane = column * 4 + k % 16 / 4;
  const auto byte = static_cast<uint8_t>(warp.lanes[lane].in[B_AT + reg] >> k % 4 * 8);
  return SIGNED ? static_cast<int8_t>(byte) : byte;
}

template <int DEPTH, bool A_SIGNED, bool B_SIGNED, bool SATURATE>
static void multiply(Warp& warp, uint32_t) {
  int16_t a[16][DEPTH], b[8][DEPTH];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < DEPTH; ++k) a[row][k] = static_cast<int16_t>(a_byte<A_SIGNED>(warp, row, k));
  for (int column = 0; column < 8; ++column)
    for (int k = 0; k < DEPTH; ++k) b[column][k] = static_cast<int16_t>(b_byte<B_SIGNED>(warp, k, column));
  for (int lane = 0; lane < WARP_SIZE; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      int32_t sum = 0;
      for (int k = 0; k < DEPTH; ++k) sum += a[row][k] * b[column][k];
      const auto c = static_cast<int32_t>(warp.lanes[lane].in[C_AT + i]);
      const int32_t wrapped = static_cast<int32_t>(static_cast<uint32_t>(sum) + static_cast<uint32_t>(c));
      const int32_t d = SATURATE ? saturated(static_cast<int64_t>(sum) + c) : wrapped;
      warp.lanes[lane].out[i] = static_cast<uint32_t>(d);
    }
}

template <int DEPTH>
static const Operation& form_of(const IntegerMma& form) {
  static const char name[] = "mma.sync on integers";
  static const Operation forms[] = {
      {name, true, multiply<DEPTH, false, false, false>}, {name, true, multiply<DEPTH, false, false, true>},
      {name, true, multiply<DEPTH, false, true, false>},  {name, true, multiply<DEPTH, false, true, true>},
      {name, true, multiply<DEPTH, true, false, false>},  {name, true, multiply<DEPTH, true, false, true>},
      {name, true, multiply<DEPTH, true, true, false>},   {name, true, multiply<DEPTH, true, true, true>}};
  return forms[form.a_signed * 4 + form.b_signed * 2 + form.saturate];
}

void mma(int line, const IntegerMma& form, int32_t* d, const uint32_t* a, const uint32_t* b, const int32_t* c) {
  uint64_t in[10] = {}, out[4];
  for (int i = 0; i < form.depth / 8; ++i) in[i] = a[i];
  for (int i = 0; i < form.depth / 16; ++i) in[B_AT + i] = b[i];
  for (int i = 0; i < 4; ++i) in[C_AT + i] = static_cast<uint32_t>(c[i]);
  join(form.depth == 32 ? form_of<32>(form) : form_of<16>(form), ALL, in, out, line);
  for (int i = 0; i < 4; ++i) d[i] = static_cast<int32_t>(out[i]);
}

static float half_to_float(uint16_t bits) {
  const uint32_t sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t word = sign | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
  memcpy(&value, &word, sizeof value);
  return value;
}

static void multiply_half(Warp& warp, uint32_t) {
  for (int lane = 0; lane < WARP_SIZE; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      const auto c = static_cast<uint32_t>(warp.lanes[lane].in[C_AT + i]);
      float sum;
      memcpy(&sum, &c, sizeof sum);
      for (int k = 0; k < 16; ++k) {
        const uint64_t a = warp.lanes[row % 8 * 4 + k % 8 / 2].in[row / 8 + k / 8 * 2] >> k % 2 * 16;
        const uint64_t b = warp.lanes[column * 4 + k % 8 / 2].in[B_AT + k / 8] >> k % 2 * 16;
        sum += half_to_float(static_cast<uint16_t>(a)) * half_to_float(static_cast<uint16_t>(b));
      }
      uint32_t bits;
      memcpy(&bits, &sum, sizeof bits);
      warp.lanes[lane].out[i] = bits;
    }
}

void mma_half(int line, float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  static const Operation operation = {"mma.sync on float16", true, multiply_half};
  uint64_t in[10], out[4];
  for (int i = 0; i < 4; ++i) in[i] = a[i];
  for (int i = 0; i < 2; ++i) in[B_AT + i] = b[i];
  for (int i = 0; i < 4; ++i) {
    uint32_t bits;
    memcpy(&bits, &c[i], sizeof bits);
    in[C_AT + i] = bits;
  }
  join(operation, ALL, in, out, line);
  for (int i = 0; i < 4; ++i) {
    const auto bits = static_cast<uint32_t>(out[i]);
    memcpy(&d[i], &bits, sizeof bits);
  }
}

}  // namespace qcemu
