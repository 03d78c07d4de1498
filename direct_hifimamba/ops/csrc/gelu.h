// Tables behind the GELU of machines that look 32 floats up at once.
#pragma once

namespace native {

// Polynomials on pieces [i - 1/2, i + 1/2] of |x| / kPieceWidth; coefficient k of piece i is [k][i].
constexpr int kPieces = 32;
constexpr float kGeluEnd = 5.75;
constexpr float kPieceWidth = kGeluEnd / (kPieces - 1);
template <int N>
using Pieces = float[N][kPieces];

struct GeluTable {
    alignas(64) Pieces<4> tail;   // T(t) = Phi(-t), Phi being the normal distribution
    alignas(64) Pieces<5> slope;  // T(t) - t phi(t), phi being its density: derivative of GELU at -t
};

extern const GeluTable gelu_table __attribute__((visibility("hidden")));

}  // namespace native
