"""Prints the coefficient tables of csrc/kernels/vmath.h: minimax polynomials by the Remez exchange, in mpmath.

    python scripts/coefficients.py            # needs mpmath

Each table is fitted for the smallest error *relative to the function that the kernel returns*, then rounded to the
type. The error printed behind each table is that of the rounded table in exact arithmetic, in units of 2^-24 (f32) or
2^-53 (f64).
"""

import mpmath as mp

mp.mp.dps = 50


def minimax(f, weight, degree, low, high, rounds=40):
    """Coefficients c minimising max |f(x) - sum c_i x^i| * weight(x) on [low, high]."""
    low, high = mp.mpf(low), mp.mpf(high)
    n = degree + 2
    # Chebyshev extrema, nudged off the places where a weight of 0 would make the system singular.
    points = [
        (low + high) / 2 - (high - low) / 2 * mp.cos(mp.pi * (i + mp.mpf("0.013") * (0 < i < n - 1)) / (n - 1))
        for i in range(n)
    ]
    coefficients = None
    for _ in range(rounds):
        system = mp.matrix(n, n)
        right = mp.matrix(n, 1)
        for i, x in enumerate(points):
            for j in range(degree + 1):
                system[i, j] = x**j
            system[i, n - 1] = (-1) ** i / weight(x)
            right[i] = f(x)
        solution = mp.lu_solve(system, right)
        coefficients = [solution[j] for j in range(degree + 1)]
        level = abs(solution[n - 1])

        def error(x, c=coefficients):
            return (f(x) - mp.polyval(c[::-1], x)) * weight(x)

        grid = [low + (high - low) * mp.mpf(i) / (40 * n) for i in range(40 * n + 1)]
        values = [error(x) for x in grid]
        extrema = []
        for i, (x, value) in enumerate(zip(grid, values, strict=True)):
            left = values[i - 1] if i else mp.mpf(0)
            right_value = values[i + 1] if i + 1 < len(grid) else mp.mpf(0)
            if (
                value == 0
                or (abs(value) < abs(left) and left * value > 0)
                or (abs(value) < abs(right_value) and right_value * value > 0)
            ):
                continue
            if extrema and extrema[-1][1] * value > 0:
                if abs(value) > abs(extrema[-1][1]):
                    extrema[-1] = (x, value)
            else:
                extrema.append((x, value))
        while len(extrema) > n:
            extrema.pop(0 if abs(extrema[0][1]) < abs(extrema[-1][1]) else -1)
        if len(extrema) < n:
            break
        points = [x for x, _ in extrema]
        if max(abs(v) for _, v in extrema) < level * mp.mpf("1.0001"):
            break
    return coefficients


def rounded(x, bits):
    """x to `bits` significant bits."""
    if not x:
        return x
    exponent = mp.frexp(x)[1]
    return mp.ldexp(mp.nint(mp.ldexp(x, bits - exponent)), exponent - bits)


def hexadecimal(x, bits):
    digits, exponent = float(rounded(x, bits)).hex().split("p")
    return digits.rstrip("0").rstrip(".") + "p" + exponent + ("f" if bits == 24 else "")


def table(name, comment, f, weight, degree, low, high, bits, split_terms=0):
    """Prints one table, and the low halves of its first `split_terms` coefficients where more bits are needed."""
    exact = minimax(f, weight, degree, low, high)
    c = [rounded(x, bits) for x in exact]
    xs = [mp.mpf(low) + (mp.mpf(high) - low) * i / 2000 for i in range(2001)]
    worst = max(abs((f(x) - mp.polyval(c[::-1], x)) * weight(x)) for x in xs)
    print(f"/* {comment}; off by {mp.nstr(worst * mp.mpf(2) ** bits, 3)} 2^-{bits} */")
    print(f"static const real {name}[] = {{" + ", ".join(hexadecimal(x, bits) for x in c) + "};")
    if split_terms:
        low_halves = [hexadecimal(e - r, bits) for e, r in zip(exact[:split_terms], c, strict=False)]
        print(f"static const real {name}_low[] = {{" + ", ".join(low_halves) + "};")
    print()


def split(name, x, high_bits, bits):
    high = rounded(x, high_bits)
    print(f"#define {name}_HIGH {hexadecimal(high, bits)}\n#define {name}_LOW {hexadecimal(x - high, bits)}")


def series_safe(f, at_zero):
    """f with its limit at 0, where the quotients below are 0 / 0."""
    return lambda x: f(mp.mpf(x)) if abs(x) > mp.mpf(10) ** -12 else mp.mpf(at_zero)


def exp2_quotient(x):
    return (mp.mpf(2) ** x - 1) / x


def exp_quotient(x):
    return (mp.expm1(x) - x) / x**2


def tanh_quotient(w):
    x = mp.sqrt(w)
    return (mp.tanh(x) / x - 1) / w


def cdf_quotient(w):
    """(Phi(x) - 1/2) / x with w = x^2."""
    x = mp.sqrt(w)
    return mp.erf(x / mp.sqrt(2)) / (2 * x)


def mills(a):
    """Phi(-a) exp(a^2 / 2)."""
    return mp.erfc(a / mp.sqrt(2)) * mp.exp(a * a / 2) / 2


def main():
    for bits, exp2_degree, exp_degree, tanh_degree, cdf_degree, mills_degree, tail, pivot in (
        (24, 4, 4, 5, 4, 12, 15, 2),
        (53, 10, 10, 13, 10, 28, 40, 4),
    ):
        print(f"---- {bits} bits ----")
        half_ln2 = mp.log(2) / 2
        for name, degree, rounded_to in (
            ("exp2_coefficient", exp2_degree, ""),
            ("exp2_coefficient_bf16", 2, ", for bfloat16"),
        ):
            if rounded_to and bits != 24:
                continue
            table(
                name,
                "(2^x - 1) / x on [-1/2, 1/2]" + rounded_to,
                series_safe(exp2_quotient, mp.log(2)),
                lambda x: abs(x) / mp.mpf(2) ** x + mp.mpf(10) ** -9,
                degree,
                mp.mpf(-1) / 2,
                mp.mpf(1) / 2,
                bits,
            )
        table(
            "exp_coefficient",
            "(e^x - 1 - x) / x^2 on [-ln 2 / 2, ln 2 / 2]",
            series_safe(exp_quotient, 0.5),
            lambda x: x * x / mp.exp(x) + mp.mpf(10) ** -9,
            exp_degree,
            -half_ln2,
            half_ln2,
            bits,
        )
        split("LN2", mp.log(2), 14 if bits == 24 else 40, bits)
        print()
        table(
            "tanh_coefficient",
            "(tanh(x) / x - 1) / x^2 in w = x^2 on [0, 0.625^2]",
            series_safe(tanh_quotient, mp.mpf(-1) / 3),
            lambda w: w * mp.sqrt(w) / mp.tanh(mp.sqrt(w)) if w else mp.mpf(10) ** -9,
            tanh_degree,
            0,
            mp.mpf("0.625") ** 2,
            bits,
        )
        table(
            "cdf_coefficient",
            "(Phi(x) - 1/2) / x in w = x^2 on [0, 1/4]",
            series_safe(cdf_quotient, 1 / mp.sqrt(2 * mp.pi)),
            lambda w: 1 / (mp.mpf(1) / 2 / mp.sqrt(w) - cdf_quotient(w)) if w else mp.mpf(10) ** -9,
            cdf_degree,
            0,
            mp.mpf(1) / 4,
            bits,
            split_terms=1,
        )

        def mills_of_t(t, k=mp.mpf(pivot)):  # noqa: B008  (a constant of this round)
            """a = k (1 + t) / (1 - t): t = (a - k) / (a + k) spreads [1, tail] evenly enough for a polynomial."""
            a = k * (1 + t) / (1 - t)
            return mills(a) * (a + k)

        low, high = (mp.mpf(1) / 2 - pivot) / (mp.mpf(1) / 2 + pivot), (mp.mpf(tail) - pivot) / (tail + pivot)
        table(
            "mills_coefficient",
            f"Phi(-a) exp(a^2/2) (a + {pivot}) in t = (a - {pivot}) / (a + {pivot}) on a in [1/2, {tail}]",
            mills_of_t,
            lambda t: 1 / mills_of_t(t),
            mills_degree,
            low,
            high,
            bits,
            split_terms=4,
        )


if __name__ == "__main__":
    main()
