/* Powers of two in float32, and what is made of them. */

/* Added to a float of magnitude below 2^22, it leaves the nearest integer (ties to even) in the low bits. */
static const float ROUNDER = 12582912.0f;

/* 2^x within 1e-7 for x up to 127: as power_of_two, with two terms more. */
INLINE Floats exact_power(Floats x) {
    const Floats rounder = all_floats(ROUNDER), least = all_floats(-126.0f);
    const Ints below = x < least;
    const Floats bounded = (Floats)(((Ints)x & ~below) | ((Ints)least & below)), shifted = bounded + rounder;
    const Floats fraction = bounded - (shifted - rounder);
    const Ints exponent = (Ints)shifted - (Ints)rounder;
    Floats y = all_floats(1.5370705e-4f);
    y = multiply_add(y, fraction, all_floats(1.3399848e-3f));
    y = multiply_add(y, fraction, all_floats(9.6183736e-3f));
    y = multiply_add(y, fraction, all_floats(5.550329e-2f));
    y = multiply_add(y, fraction, all_floats(2.4022648e-1f));
    y = multiply_add(y, fraction, all_floats(6.9314718e-1f));
    y = multiply_add(y, fraction, all_floats(1.0f));
    return (Floats)((Ints)(y * (Floats)((exponent + 127) << 23)) & ~below);
}

INLINE Floats within(Floats v, float least, float most) {
    const Ints above = v > all_floats(most), below = v < all_floats(least);
    return (Floats)(((Ints)v & ~(above | below)) | ((Ints)all_floats(most) & above) | ((Ints)all_floats(least) & below));
}

/* x times the sigmoid of z. Of 128 the power is infinite, and nothing is left of x. */
INLINE Floats times_sigmoid(Floats x, Floats z) {
    const Floats power = exact_power(within(z * all_floats(-1.44269504f), -126.0f, 128.0f));
    return x / (all_floats(1.0f) + power);
}

/* By the error function within 1.5e-7: formula 7.1.26 of Abramowitz and Stegun. */
INLINE Floats gelu(Floats x) {
    const Floats magnitude = (Floats)((Ints)x & all_ints(0x7fffffff));
    const Floats z = magnitude * all_floats(0.70710678f), one = all_floats(1.0f);
    const Floats t = one / multiply_add(z, all_floats(0.3275911f), one);
    Floats y = all_floats(1.061405429f);
    y = multiply_add(y, t, all_floats(-1.453152027f));
    y = multiply_add(y, t, all_floats(1.421413741f));
    y = multiply_add(y, t, all_floats(-0.284496736f));
    y = multiply_add(y, t, all_floats(0.254829592f));
    const Floats tail = y * t * exact_power(z * z * all_floats(-1.44269504f)); /* 1 - erf(z) */
    const Ints negative = x < all_floats(0.0f);
    const Floats other = all_floats(2.0f) - tail;
    return x * all_floats(0.5f) * (Floats)(((Ints)tail & negative) | ((Ints)other & ~negative));
}

/* By the hyperbolic tangent. */
INLINE Floats fast_gelu(Floats x) {
    const Floats cube = x * x * x;
    return times_sigmoid(x, multiply_add(cube, all_floats(0.044715f), x) * all_floats(1.5957691f));
}
