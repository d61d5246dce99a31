"""The installed JAX computes right: 0.10.2 does not, on CPU."""

import jax
import jax.numpy as jnp
import numpy as np


def test_vmapped_sum_of_products_is_right():
    """jax 0.10.2 fuses this wrongly: off by 0.8 on values of size 1.5."""
    rng = np.random.default_rng(0)
    keys = rng.standard_normal((2, 5, 64, 32)).astype(np.float32)
    queries = rng.standard_normal((2, 300, 32)).astype(np.float32)

    def one(k, q):
        return jax.nn.softmax(jnp.sum(k * q[None, None], -1), -1)

    many = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, 0)))
    logits = np.einsum("blpe,bne->bnlp", keys.astype(np.float64), queries)
    wanted = np.exp(logits - logits.max(-1, keepdims=True))
    wanted /= wanted.sum(-1, keepdims=True)
    np.testing.assert_allclose(many(keys, queries), wanted, atol=1e-5)
