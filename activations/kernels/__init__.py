"""Forward and backward of every activation family, one noun a file; each has its plain-torch `reference` beside it.

The contract of all of them: x is (..., channels) of any float dtype and layout; a coefficient tensor is (k,) for the whole
layer, or (rows, k) where row r serves the r-th of `rows` equal blocks of channels. Evaluated in float32 (float64 if x is
float64) and rounded once to x.dtype; differentiable once in x and every coefficient; only x and the coefficients are saved for
backward; coefficient gradients are accumulated in float32 or wider.
"""
