"""`mlotel trace`: which batches are worth a look, and which stage waited for which in one of them."""
