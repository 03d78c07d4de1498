// Compiled for any machine: it runs when the library is loaded.
#include "gelu.h"

#include <cmath>

namespace {

// Replaces a polynomial of degree 6 by the one of degree 4 that is closest on [-1, 1] up to its last two Chebyshev
// terms.
void economise(double* a) {
    a[4] += a[6] * 48 / 32;
    a[2] -= a[6] * 18 / 32;
    a[0] += a[6] / 32;
    a[3] += a[5] * 20 / 16;
    a[1] -= a[5] * 5 / 16;
}

native::GeluTable make_table() {
    using native::kCoefficients, native::kPieces, native::kPieceWidth;
    constexpr int degree = kCoefficients + 1;
    native::GeluTable table;
    for (int piece = 0; piece < kPieces; ++piece) {
        const double t = piece * double(kPieceWidth);
        // Derivatives of T, from T' = -phi and phi'' = -t phi' - phi and so on.
        double T[degree + 3];
        T[0] = std::erfc(t / std::sqrt(2.0)) / 2;
        T[1] = -std::exp(-t * t / 2) / std::sqrt(2 * std::acos(-1.0));
        T[2] = -t * T[1];
        for (int n = 3; n < degree + 3; ++n) T[n] = -t * T[n - 1] - (n - 2) * T[n - 2];

        double tail[degree + 1], slope[degree + 1], factor = 1;  // in units of half a piece
        for (int n = 0; n <= degree; factor *= kPieceWidth / 2 / ++n) {
            tail[n] = T[n] * factor;
            slope[n] = (T[n] - T[n + 2]) * factor;  // phi' = -t phi = -T''
        }
        economise(tail);
        economise(slope);
        for (int n = 0; n < kCoefficients; ++n) {
            table.tail[n][piece] = float(std::ldexp(tail[n], n));
            table.slope[n][piece] = float(std::ldexp(slope[n], n));
        }
    }
    return table;
}

}  // namespace

const native::GeluTable native::gelu_table = make_table();
