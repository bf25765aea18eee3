"""`mlotel trace`: which batches are worth a look, and who waited for whom in one of them."""
