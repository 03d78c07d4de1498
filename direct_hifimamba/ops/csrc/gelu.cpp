// Compiled for any machine: it runs when the library is loaded.
#include "gelu.h"

#include <cmath>

namespace {

const double kPi = std::acos(-1.0);

double tail(double t) { return std::erfc(t / std::sqrt(2.0)) / 2; }
double slope(double t) { return tail(t) - t * std::exp(-t * t / 2) / std::sqrt(2 * kPi); }

// The polynomial through N values of f on every piece, at Chebyshev's nodes: nearly the closest one.
template <int N>
void fit(double (*f)(double), native::Pieces<N>& pieces) {
    for (int piece = 0; piece < native::kPieces; ++piece) {
        double polynomial[N] = {};
        // Chebyshev polynomials T_k of 2 d, d in [-1/2, 1/2], by T_k+1 = 4 d T_k - T_k-1, from T_-1 = 2 d and T_0 = 1.
        double before[N] = {0, 2}, chebyshev[N] = {1};
        for (int k = 0; k < N; ++k) {
            double sum = 0;
            for (int node = 0; node < N; ++node) {
                const double angle = kPi * (node + 0.5) / N;
                sum += f((piece + std::cos(angle) / 2) * native::kPieceWidth) * std::cos(k * angle);
            }
            for (int power = 0; power < N; ++power) polynomial[power] += (k > 0 ? 2 : 1) * sum / N * chebyshev[power];
            for (int power = N - 1; power >= 0; --power) {
                const double next = (power > 0 ? 4 * chebyshev[power - 1] : 0) - before[power];
                before[power] = chebyshev[power];
                chebyshev[power] = next;
            }
        }
        for (int power = 0; power < N; ++power) pieces[power][piece] = float(polynomial[power]);
    }
}

native::GeluTable make_table() {
    native::GeluTable table;
    fit(tail, table.tail);
    fit(slope, table.slope);
    return table;
}

}  // namespace

const native::GeluTable native::gelu_table = make_table();
